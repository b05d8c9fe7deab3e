"""Teacher outputs on disk, computed once and then read for every round of every run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock, Timeout

from fedkd.core.errors import FedKDError
from fedkd.core.storage import cache_dir
from fedkd.teachers.ensemble import EnsembleTeacher
from fedkd.teachers.outputs.cache_file import DoesNotFitError, images_done, start_at, to_dtype
from fedkd.teachers.outputs.passes import JoinedPass, Pass
from fedkd.teachers.teacher import Teacher, overrides_forward

if TYPE_CHECKING:
    from fedkd.core.progress import ProgressBar
    from fedkd.data import ImageSet, Views


class TeacherCache:
    """Memory-mapped teacher outputs (N, V, D), by image index and view.

    *Features*, from before the head, are kept: passing images through the teacher is what takes long, while heads are
    fitted anew for every partition, and cheap. (A teacher that overrides ``forward`` has no head to be fitted: of it
    the logits are kept.)

    A file's name is a hash of all that its content depends on, so a stale file is never found. Outputs are in the order
    of the images and only ever appended, so a file's length says how far it got: what was killed goes on there, and
    what was truncated is completed. A lock lets one process at a time build; others wait, and find it done. Values are
    float16, or float32 where float16 cannot hold them.

    An ensemble's features are put together from its members' own files: what a member has seen, alone or in another
    ensemble, it does not look at again.

    Args:
        folder: Where files are; None is ``teachers`` in fedkd's cache (`fedkd.core.storage.cache_dir`).
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        self.folder = cache_dir("teachers") if folder is None else Path(folder).expanduser()
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(
        self,
        teacher: Teacher,
        data: ImageSet,
        *,
        views: Views | None = None,
        features: bool = False,
        batch_size: int = 128,
        progress: bool = True,
    ) -> np.memmap:
        """Return the teacher's outputs on all images; what is not there yet is computed on the teacher's device.

        Args:
            teacher: The teacher, prepared.
            data: N images.
            views: Their V views; None is a single one, the images themselves.
            features: Whether features are wanted even of a teacher that overrides ``forward``.
            batch_size: Images in a batch, all views counted.
            progress: Whether to show a progress bar, if this is a terminal.

        Returns:
            A read-only memory map (N, V, D), float16 or float32.

        Raises:
            FedKDError: If there are no images, or outputs are not finite or not (B, D).
        """
        if len(data) == 0:
            raise FedKDError("There are no images for the teacher to look at.")
        work = Pass(teacher, data, views, overrides_forward(teacher) and not features, batch_size)
        if type(teacher).features is EnsembleTeacher.features and not work.gives_logits:

            def look(member: Teacher) -> np.memmap:
                return self.get(member, data, views=views, batch_size=batch_size, progress=progress)

            work = JoinedPass(**vars(work), look=look)
        stem = f"{type(teacher).__name__}-{work.key}"
        half, full = (self.folder / f"{stem}.{dtype}.npy" for dtype in ("float16", "float32"))
        with FileLock(self.folder / f"{stem}.lock"):
            if not full.exists():  # it is there only if float16 was tried
                try:
                    _complete(half, work, np.dtype(np.float16), progress and work.is_slow)
                    return _mapped(half)
                except DoesNotFitError:
                    full.touch()
                    half.unlink(missing_ok=True)
            _complete(full, work, np.dtype(np.float32), progress and work.is_slow)
            return _mapped(full)

    def clear(self) -> int:
        """Delete all outputs but those that a process is just computing; return the bytes that were freed."""
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


def _complete(path: Path, work: Pass, dtype: np.dtype, progress: bool) -> None:
    """Append to ``path`` what it lacks."""
    path.touch()
    count = len(work.data)
    with open(path, "r+b") as file:
        done = images_done(file, dtype, count, work.num_views)
        if done == count:
            return
        # Go on from a whole batch: then the content is that of a build which was never interrupted, bit for bit.
        done -= done % work.step
        with _bar(work, done) if progress else nullcontext() as bar:
            begun = False
            for outputs in work.outputs(done):
                rows = to_dtype(outputs.numpy(), dtype).reshape(-1, work.num_views, outputs.shape[1])
                if not begun:
                    start_at(file, dtype, done, (count, *rows.shape[1:]))
                    begun = True
                file.write(rows.tobytes())
                file.flush()  # from here on a kill loses nothing of it
                if bar is not None:
                    bar.advance(len(rows))


def _bar(work: Pass, done: int) -> AbstractContextManager[ProgressBar]:
    from fedkd.core.progress import progress_bar

    return progress_bar(f"{type(work.teacher).__name__} looks at the images", len(work.data), done)


def _mapped(path: Path) -> np.memmap:
    outputs = np.load(path, mmap_mode="r")
    assert isinstance(outputs, np.memmap)
    return outputs
