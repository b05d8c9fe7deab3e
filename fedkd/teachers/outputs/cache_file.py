"""A ``.npy`` file (N, V, D) that grows by whole images. Its length shows how many images are done."""

from __future__ import annotations

import math
from typing import BinaryIO

import numpy as np

from fedkd.core.errors import FedKDError


class DoesNotFitError(FedKDError):
    """Float16 cannot represent the values."""


def to_dtype(outputs: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Convert float32 outputs to the dtype of a file.

    Raises:
        DoesNotFitError: If float16 loses more than rounding: values overflow, or are too small.
    """
    if dtype == np.float32:
        return outputs
    with np.errstate(over="ignore"):
        half = outputs.astype(np.float16)
    lost = np.linalg.norm(half.astype(np.float32) - outputs)
    if not lost <= 1e-3 * np.linalg.norm(outputs):  # rounding alone loses at most 5e-4
        raise DoesNotFitError("Float16 cannot represent the teacher's outputs.")
    return half


def images_done(file: BinaryIO, dtype: np.dtype, num_images: int, num_views: int) -> int:
    """Return the number of images whose views are all in a file; 0 if the file is invalid."""
    try:
        offset, image_bytes = _layout(file, dtype, num_images, num_views)
    except ValueError:
        return 0
    images, rest = divmod(file.seek(0, 2) - offset, image_bytes)
    if images < num_images or (images == num_images and rest == 0):
        return images
    return 0


def start_at(file: BinaryIO, dtype: np.dtype, done: int, shape: tuple[int, int, int]) -> None:
    """Prepare a file for appending: keep its header and the outputs of ``done`` images. ``shape`` is (N, V, D)."""
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
    """Return the offset of the outputs, and the bytes per image.

    Raises:
        ValueError: If the file does not start with the expected header.
    """
    file.seek(0)
    np.lib.format.read_magic(file)
    try:
        shape, _, found = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # Python's own parser reads it, and raises what it likes for what is no Python
        raise ValueError(f"no header: {error}") from error
    if found != dtype or len(shape) != 3 or shape[:2] != (num_images, num_views) or shape[2] < 1:
        raise ValueError(f"unexpected header {shape} {found}")
    return file.tell(), math.prod(shape[1:]) * dtype.itemsize
