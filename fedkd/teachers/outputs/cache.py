"""Teacher outputs on disk: computed once, then read in every round of every run."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_warn

from fedkd.core.errors import FedKDError
from fedkd.core.storage import CACHE_ADVICE, cache_dir, take, write_atomically, writing
from fedkd.teachers.ensemble import EnsembleTeacher
from fedkd.teachers.outputs.cache_file import DoesNotFitError, images_done, start_at, to_dtype
from fedkd.teachers.outputs.passes import JoinedPass, Pass
from fedkd.teachers.teacher import Teacher

if TYPE_CHECKING:
    from fedkd.core.progress import ProgressBar
    from fedkd.data import ImageSet, Views


class TeacherCache:
    """Memory-mapped teacher outputs (N, V, D), by image index and view.

    The cache stores *features*, the input of the head: computing them is slow, while a head is cheap to fit and differs
    between partitions. For a teacher that overrides ``forward``, which has no head to fit, it stores logits.

    The name of a file is a hash of everything that its content depends on, so a stale file is never read. Outputs are
    appended in the order of the images, so the length of a file shows how many images are done. An interrupted or
    truncated file is completed from there. A file's checksum stands beside it, and a damaged file is computed again. A
    lock lets one process write at a time; other processes wait for it. In a folder that is read-only, complete files
    are used.
    Values are float16, or float32 if float16 cannot represent them.

    The features of an ensemble are joined from the files of its members. A member's features are therefore computed
    once, whether it is used alone or in several ensembles.

    Args:
        folder: The folder of the files; None is ``teachers`` in fedkd's cache (`fedkd.core.storage.cache_dir`).
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        self.folder = cache_dir("teachers") if folder is None else Path(folder).expanduser()
        with writing(self.folder, CACHE_ADVICE):
            self.folder.mkdir(parents=True, exist_ok=True)

    def get(
        self,
        teacher: Teacher,
        data: ImageSet,
        *,
        views: Views | None = None,
        features: bool = False,
        batch_size: int = 128,
        index: np.ndarray | None = None,
        progress: bool = True,
    ) -> np.memmap:
        """Return the teacher's outputs for all images. Missing outputs are computed on the teacher's device.

        Args:
            teacher: The teacher, prepared.
            data: N images.
            views: The V views of each image; None is one view, the image itself.
            features: Return features even for a teacher that overrides ``forward``.
            batch_size: Images in a batch, where each view counts as an image.
            index: The number of each image in the data set that it is from, int64 (N,), which decides its views; None
                if ``data`` is all of it.
            progress: Whether to show a progress bar on a terminal.

        Returns:
            A read-only memory map (N, V, D), float16 or float32.

        Raises:
            FedKDError: If there are no images, or outputs are not finite or not (B, D).
            CannotWriteError: If the folder cannot be written, and has no complete file.
        """
        if len(data) == 0:
            raise FedKDError("There are no images to compute teacher outputs for.")
        work = Pass(teacher, data, views, teacher.overrides_forward and not features, batch_size, index)
        if type(teacher).features is EnsembleTeacher.features and not work.gives_logits:

            def outputs_of(member: Teacher) -> np.memmap:
                return self.get(member, data, views=views, batch_size=batch_size, index=index, progress=progress)

            work = JoinedPass(**vars(work), outputs_of=outputs_of)
        return self._read(work, progress)

    def _read(self, work: Pass, progress: bool) -> np.memmap:
        """Return the outputs of a pass from its file, which is completed first."""
        half, full = self._files(work)
        lock = FileLock(self.folder / f"{_stem(work)}.lock")
        try:
            take(lock)
        except OSError:
            for path, dtype in ((half, np.float16), (full, np.float32)):
                if _is_complete(path, work, np.dtype(dtype)):
                    return _mapped(path)
            with writing(self.folder, CACHE_ADVICE):
                raise
        try:
            if not full.exists():  # it exists only after float16 has failed
                try:
                    return _whole(half, work, np.dtype(np.float16), progress and work.is_slow)
                except DoesNotFitError:
                    full.touch()
                    half.unlink(missing_ok=True)
            return _whole(full, work, np.dtype(np.float32), progress and work.is_slow)
        finally:
            lock.release()

    def images_done(self, work: Pass) -> int:
        """Return for how many images of a pass the outputs are in a file. Nothing is computed.

        Args:
            work: The pass; not of an ensemble, whose members have files of their own.
        """
        done = 0
        for path, dtype in zip(self._files(work), (np.float16, np.float32), strict=True):
            if path.is_file():
                with path.open("rb") as file:
                    done = max(done, images_done(file, np.dtype(dtype), len(work.data), work.num_views))
        return done

    def _files(self, work: Pass) -> tuple[Path, Path]:
        """Return the file of a pass in float16, and that in float32."""
        stem = _stem(work)
        return self.folder / f"{stem}.float16.npy", self.folder / f"{stem}.float32.npy"

    def clear(self) -> int:
        """Delete all outputs except those that a process is computing. Return the number of bytes freed."""
        freed = 0
        for lock in sorted(self.folder.glob("*.lock")):
            try:
                with FileLock(lock, timeout=0):
                    for path in set(self.folder.glob(f"{lock.stem}.*")) - {lock}:
                        freed += path.stat().st_size
                        path.unlink()
            except Timeout:
                continue
        return freed


def _stem(work: Pass) -> str:
    return f"{type(work.teacher).__name__}-{work.key}"


def _whole(path: Path, work: Pass, dtype: np.dtype, progress: bool) -> np.memmap:
    """Return a file's outputs, once they are complete and as they were when they first were."""
    _complete(path, work, dtype, progress)
    if not _is_intact(path):
        rank_zero_warn(f"{str(path)!r} is damaged: its content does not match its checksum. It is computed again.")
        path.unlink()
        _checksum(path).unlink()
        _complete(path, work, dtype, progress)
        if not _is_intact(path):
            raise FedKDError(f"{str(path)!r} was written, and is not read back as it was: its disk is damaged.")
    return _mapped(path)


def _mapped(path: Path) -> np.memmap:
    outputs = np.load(path, mmap_mode="r")
    assert isinstance(outputs, np.memmap)
    return outputs


def _is_complete(path: Path, work: Pass, dtype: np.dtype) -> bool:
    """Whether a file in a folder that cannot be written is complete, and matches its checksum."""
    if not (path.is_file() and _checksum(path).is_file()):
        return False
    with path.open("rb") as file:
        is_complete = images_done(file, dtype, len(work.data), work.num_views) == len(work.data)
    return is_complete and _is_intact(path)


def _checksum(path: Path) -> Path:
    """Return where a file's checksum is: its SHA-256, in a file beside it."""
    return path.with_suffix(".sha256")


def _is_intact(path: Path) -> bool:
    """Whether a complete file's checksum is what it was when the file was first complete, which may be now."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    known = _checksum(path)
    if not known.exists():
        write_atomically(known, found)
    return known.read_bytes() == found.encode()


def _complete(path: Path, work: Pass, dtype: np.dtype, progress: bool) -> None:
    """Compute and append the outputs that are missing in ``path``."""
    with writing(path, CACHE_ADVICE):
        path.touch()
    count = len(work.data)
    with open(path, "r+b") as file:
        done = images_done(file, dtype, count, work.num_views)
        if done == count:
            return
        # Continue from a whole batch, so that the bits equal those of an uninterrupted pass.
        done -= done % work.step
        with _bar(work, done) if progress else nullcontext() as bar:
            started = False
            for outputs in work.outputs(done):
                rows = to_dtype(outputs.numpy(), dtype).reshape(-1, work.num_views, outputs.shape[1])
                with writing(path, CACHE_ADVICE):
                    if not started:
                        start_at(file, dtype, done, (count, *rows.shape[1:]))
                        started = True
                    file.write(rows.tobytes())
                    file.flush()  # after this, a killed process keeps these rows
                if bar is not None:
                    bar.advance(len(rows))


def _bar(work: Pass, done: int) -> AbstractContextManager[ProgressBar]:
    from fedkd.core.progress import progress_bar

    return progress_bar(f"{type(work.teacher).__name__}: teacher outputs", len(work.data), done)
