"""Files on disk: fedkd's cache folder, and files that are replaced atomically."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from filelock import FileLock

from fedkd.core.errors import FedKDError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers of a full disk, of a full quota and of a file that is too large."""

NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
"""Error numbers of file systems that have no locks, such as some network file systems."""

CACHE_ADVICE = "Set FEDKD_CACHE to another folder"


class CannotWriteError(FedKDError):
    """A file cannot be written. The message names it, and says why and what to do."""


@contextmanager
def writing(path: Path | str, advice: str = "Choose another folder") -> Iterator[None]:
    """Make one line of the operating system's refusal to write a file.

    Args:
        path: The file that the block writes, or the folder that it makes.
        advice: What to do where it is not the disk that is full.

    Raises:
        CannotWriteError: If the block raises an OSError.
    """
    try:
        yield
    except OSError as error:
        room = "Free some space, or choose another disk" if error.errno in FULL else advice
        raise CannotWriteError(f"{str(path)!r} cannot be written: {error.strerror or error}. {room}.") from error


def take(lock: FileLock, wait: bool = True) -> None:
    """Take a lock between processes; a warning where the file system has no locks.

    Args:
        lock: The lock.
        wait: Whether to wait for another process that has it.

    Raises:
        filelock.Timeout: If another process has it, and ``wait`` is False.
        OSError: If the lock's file cannot be written.
    """
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except (NotImplementedError, OSError) as error:  # the first of earlier filelocks, where a disk has no locks
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        from lightning.pytorch.utilities import rank_zero_warn  # here: `fedkd report` runs without torch

        folder = str(Path(lock.lock_file).parent)
        rank_zero_warn(f"{folder!r} cannot be locked: let no other process write there.")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes while the block runs, as `take` does.

    Args:
        path: The lock's file.
    """
    lock = FileLock(path)
    take(lock)
    try:
        yield
    finally:
        lock.release()


def cache_dir(*parts: str) -> Path:
    """Return a folder of fedkd's cache, and create it if needed.

    The cache holds what fedkd can compute or download again. Its root is ``$FEDKD_CACHE``, else
    ``$XDG_CACHE_HOME/fedkd``, else ``~/.cache/fedkd``.

    Args:
        parts: Folders below the root.

    Raises:
        FedKDError: If there is no such place.
    """
    own, shared = os.environ.get("FEDKD_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        root = Path(own or Path(shared or "~/.cache") / "fedkd").expanduser()
    except RuntimeError as error:  # a container may have no HOME, and a user without an entry in passwd
        raise FedKDError("There is no home folder for the cache: set FEDKD_CACHE to a folder.") from error
    path = root.joinpath(*parts)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FedKDError(
            f"The cache folder {str(path)!r} cannot be made: {error.strerror}. Set FEDKD_CACHE to a folder."
        ) from error
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file through a temporary file, so that readers see either the old file or the complete new one.

    If the block raises, ``path`` stays as it was and the temporary file is deleted.

    Args:
        path: The file to create or replace.

    Yields:
        The temporary file to write, in the same folder: ``.<name>.<random>.tmp``.

    Raises:
        CannotWriteError: If the operating system refuses.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with writing(path):
            yield temporary
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # what went wrong is what counts
            temporary.unlink(missing_ok=True)
        raise


def make_parent(path: Path) -> None:
    """Make the folder of a file that is to be written.

    Raises:
        FedKDError: If it cannot be made, or a folder has the file's name.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise FedKDError(f"{str(path)!r} cannot be written: it is a folder.")


def claim(path: Path, overwrite: bool = False, is_folder: bool = False) -> None:
    """Make the folder of a file that a user names, before any work, and refuse to write over what is there.

    Args:
        path: The file, or a folder that is to be filled.
        overwrite: Whether what is there may be written over. A folder is never written over by a file.
        is_folder: Whether it is a folder.

    Raises:
        FedKDError: If the name is taken, or the folder cannot be made.
    """
    if not overwrite and path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FedKDError(f"{str(path)!r} exists and is not written over. Name another, or add --overwrite.")
    if is_folder:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
    else:
        make_parent(path)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that a crash at any moment leaves either the old file or the complete new one.

    Args:
        path: The file to create or replace.
        content: What to write; text is encoded as UTF-8.

    Raises:
        CannotWriteError: If the operating system refuses.
    """
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
