"""Teacher outputs on disk, computed once and then read for every round of every run."""

from __future__ import annotations

import hashlib
import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from fedkd.errors import FedKDError
from fedkd.paths import cache_dir
from fedkd.teachers.base import Teacher
from fedkd.teachers.fingerprint import fingerprint

if TYPE_CHECKING:
    from fedkd.data import ImageSet
    from fedkd.progress import ProgressBar

_FORMAT = "fedkd teacher cache 1, views: the clean image"


class TeacherCache:
    """Memory-mapped teacher outputs (N, V, D), by image index and view; V is 1 for now, the clean image.

    *Features*, from before the head, are kept: passing images through the teacher is what takes long, while heads are
    fitted anew for every partition, and cheap. (A teacher that overrides ``forward`` has no head to be fitted: of it
    the logits are kept.)

    A file's name is a hash of all that its content depends on, so a stale file is never found. Rows are in the order of
    the images and only ever appended, so a file's length says how far it got: what was killed goes on there, and what
    was truncated is completed. A lock lets one process at a time build; others wait, and find it done. Values are
    float16, or float32 where float16 cannot hold them.

    Args:
        folder: Where files are; None is ``teachers`` in fedkd's cache (`fedkd.paths.cache_dir`).
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        self.folder = cache_dir("teachers") if folder is None else Path(folder).expanduser()
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, teacher: Teacher, data: ImageSet, *, batch_size: int = 128, progress: bool = True) -> np.ndarray:
        """Return the teacher's outputs on all images; what is not there yet is computed on the teacher's device.

        Args:
            teacher: The teacher, prepared.
            data: N images.
            batch_size: Images in a batch.
            progress: Whether to show a progress bar, if this is a terminal.

        Returns:
            A read-only memory map (N, 1, D), float16 or float32.

        Raises:
            FedKDError: If there are no images, or outputs are not finite or not (B, D).
        """
        if len(data) == 0:
            raise FedKDError("There are no images for the teacher to look at.")
        stem = f"{type(teacher).__name__}-{self._key(teacher, data)}"
        half, full = (self.folder / f"{stem}.{dtype}.npy" for dtype in ("float16", "float32"))
        with FileLock(self.folder / f"{stem}.lock"):
            if not full.exists():  # it is there only if float16 was tried
                try:
                    _build(half, np.dtype(np.float16), teacher, data, batch_size, progress)
                    return np.load(half, mmap_mode="r")
                except _DoesNotFitError:
                    full.touch()
                    half.unlink(missing_ok=True)
            _build(full, np.dtype(np.float32), teacher, data, batch_size, progress)
            return np.load(full, mmap_mode="r")

    @staticmethod
    def _key(teacher: Teacher, data: ImageSet) -> str:
        what = f"logits {fingerprint(teacher)}" if overrides_forward(teacher) else f"features {teacher.fingerprint()}"
        return hashlib.sha256(f"{_FORMAT}; {what}; {data.fingerprint}".encode()).hexdigest()[:32]


def overrides_forward(teacher: Teacher) -> bool:
    """Whether a teacher makes its logits otherwise than by its head from its features."""
    return type(teacher).forward is not Teacher.forward


class _DoesNotFitError(Exception):
    """Float16 cannot hold the values."""


def _build(path: Path, dtype: np.dtype, teacher: Teacher, data: ImageSet, batch_size: int, progress: bool) -> None:
    """Append to ``path`` the rows that it lacks."""
    path.touch()
    with open(path, "r+b") as file:
        done = _rows_done(file, dtype, len(data))
        if done == len(data):
            return
        # Go on from a whole batch: then the content is that of a build which was never interrupted, bit for bit.
        done -= done % batch_size
        if done == 0:
            file.truncate(0)
            file.seek(0)
        with _bar(teacher, len(data), done) if progress else nullcontext() as bar:
            for start in range(done, len(data), batch_size):
                rows = _to_rows(_outputs(teacher, data.images[start : start + batch_size]), dtype)
                if start == 0:
                    _write_header(file, dtype, (len(data), 1, rows.shape[1]))
                elif start == done:
                    offset, row_bytes = _layout(file, dtype, len(data))
                    file.truncate(offset + done * row_bytes)
                    file.seek(0, 2)
                file.write(rows.tobytes())
                file.flush()  # from here on a kill loses nothing of it
                if bar is not None:
                    bar.advance(len(rows))


def _bar(teacher: Teacher, total: int, done: int) -> AbstractContextManager[ProgressBar]:
    from fedkd.progress import progress_bar

    return progress_bar(f"{type(teacher).__name__} looks at the images", total, done)


def _outputs(teacher: Teacher, images: Tensor) -> Tensor:
    """Images uint8 (B, C, H, W) -> features, or logits where forward is overridden, (B, D) float32 on the CPU."""
    pixels = images.to(teacher.device).float() / 255
    with torch.no_grad():
        outputs = teacher(pixels) if overrides_forward(teacher) else teacher.features(pixels)
    if outputs.ndim != 2 or len(outputs) != len(images):
        raise FedKDError(
            f"{type(teacher).__name__} must give one vector an image, (B, D): for {len(images)} images it gave "
            f"{tuple(outputs.shape)}."
        )
    outputs = outputs.float().cpu()
    if not outputs.isfinite().all():
        raise FedKDError(f"{type(teacher).__name__} gave outputs that are not finite; try dtype float32.")
    return outputs


def _to_rows(outputs: Tensor, dtype: np.dtype) -> np.ndarray:
    rows = outputs.numpy().astype(np.float32)
    if dtype == np.float32:
        return rows
    with np.errstate(over="ignore"):
        half = rows.astype(np.float16)
    lost = np.linalg.norm(half.astype(np.float32) - rows)
    if not lost <= 1e-3 * np.linalg.norm(rows):  # overflow, or all too small; rounding alone loses at most 5e-4
        raise _DoesNotFitError
    return half


def _write_header(file: BinaryIO, dtype: np.dtype, shape: tuple[int, int, int]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _layout(file: BinaryIO, dtype: np.dtype, num_rows: int) -> tuple[int, int]:
    """Return where the rows begin and the bytes of one.

    Raises:
        ValueError: If the file does not begin with the header that it should have.
    """
    file.seek(0)
    np.lib.format.read_magic(file)
    shape, _, found = np.lib.format.read_array_header_1_0(file)
    if found != dtype or len(shape) != 3 or shape[0] != num_rows:
        raise ValueError(f"unexpected header {shape} {found}")
    return file.tell(), math.prod(shape[1:]) * dtype.itemsize


def _rows_done(file: BinaryIO, dtype: np.dtype, num_rows: int) -> int:
    """Return how many whole rows a file has; 0 if there is anything wrong with it."""
    try:
        offset, row_bytes = _layout(file, dtype, num_rows)
    except ValueError:
        return 0
    rows, rest = divmod(file.seek(0, 2) - offset, row_bytes)
    if rows < num_rows or (rows == num_rows and rest == 0):
        return rows
    return 0
