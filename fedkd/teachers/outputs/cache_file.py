"""A ``.npy`` file (N, V, D) that grows by whole images, so that its length says how far it got."""

from __future__ import annotations

import math
from typing import BinaryIO

import numpy as np

from fedkd.core.errors import FedKDError


class DoesNotFitError(FedKDError):
    """Float16 cannot hold the values."""


def to_dtype(outputs: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Convert float32 outputs to what a file holds.

    Raises:
        DoesNotFitError: If float16 would lose more than its rounding.
    """
    if dtype == np.float32:
        return outputs
    with np.errstate(over="ignore"):
        half = outputs.astype(np.float16)
    lost = np.linalg.norm(half.astype(np.float32) - outputs)
    if not lost <= 1e-3 * np.linalg.norm(outputs):  # overflow, or all too small; rounding alone loses at most 5e-4
        raise DoesNotFitError("Float16 cannot hold the teacher's outputs.")
    return half


def images_done(file: BinaryIO, dtype: np.dtype, num_images: int, num_views: int) -> int:
    """Return how many images' outputs a file has, all views of each; 0 if there is anything wrong with it."""
    try:
        offset, image_bytes = _layout(file, dtype, num_images, num_views)
    except ValueError:
        return 0
    images, rest = divmod(file.seek(0, 2) - offset, image_bytes)
    if images < num_images or (images == num_images and rest == 0):
        return images
    return 0


def start_at(file: BinaryIO, dtype: np.dtype, done: int, shape: tuple[int, int, int]) -> None:
    """Leave a file with its header and ``done`` images' outputs, ready for the next: ``shape`` is (N, V, D)."""
    if done:
        offset, image_bytes = _layout(file, dtype, shape[0], shape[1])
        file.truncate(offset + done * image_bytes)
        file.seek(0, 2)
        return
    file.truncate(0)
    file.seek(0)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _layout(file: BinaryIO, dtype: np.dtype, num_images: int, num_views: int) -> tuple[int, int]:
    """Return where the outputs begin and the bytes of one image's.

    Raises:
        ValueError: If the file does not begin with the header that it should have.
    """
    file.seek(0)
    np.lib.format.read_magic(file)
    shape, _, found = np.lib.format.read_array_header_1_0(file)
    if found != dtype or len(shape) != 3 or shape[:2] != (num_images, num_views):
        raise ValueError(f"unexpected header {shape} {found}")
    return file.tell(), math.prod(shape[1:]) * dtype.itemsize
