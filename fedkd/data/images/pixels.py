"""Conversion of PIL images, tensors and arrays to uint8 pixels (C, H, W)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from fedkd.core.errors import FedKDError


def to_pixels(image: Any) -> np.ndarray:
    """Convert one image to uint8 pixels.

    Args:
        image: A PIL image, a tensor (C, H, W) or (H, W), or an array (H, W, C) or (H, W).

    Returns:
        uint8 (C, H, W), C is 1 or 3.

    Raises:
        FedKDError: If the image is none of these or has no pixels, or its values are neither uint8 nor float in [0, 1].
    """
    from PIL.Image import Image

    if isinstance(image, Image):
        if 0 in image.size:
            raise FedKDError(
                f"An image must have at least one pixel, got {image.width} x {image.height} (width x height)."
            )
        return pil_pixels(image)
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        array = (image.float() if image.is_floating_point() else image).numpy()
        array = array[None] if array.ndim == 2 else array
    elif isinstance(image, np.ndarray):
        array = image[None] if image.ndim == 2 else np.moveaxis(image, -1, 0) if image.ndim else image
    else:
        raise FedKDError(f"An image must be a PIL image, a tensor or an array, got {type(image).__name__}.")
    if array.ndim != 3 or array.shape[0] not in (1, 3):
        order = "(C, H, W)" if isinstance(image, Tensor) else "(H, W, C)"
        raise FedKDError(
            f"An image must have the shape {order} with 1 or 3 channels, got {tuple(image.shape)} "
            f"in a {type(image).__name__}."
        )
    if array.size == 0:
        raise FedKDError(f"An image must have at least one pixel, got the shape {tuple(image.shape)}.")
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise FedKDError(f"An image must be uint8, or float in [0, 1], got {array.dtype}.")
    if not (array.min() >= 0 and array.max() <= 1):  # also false for NaN
        raise FedKDError(
            f"The values of a float image must be in [0, 1], got [{array.min():.3g}, {array.max():.3g}]. Do not "
            "normalize images: the models do."
        )
    return np.rint(array * 255).astype(np.uint8)


def pil_pixels(image: Any) -> np.ndarray:
    """Convert a PIL image to uint8 (C, H, W): one channel for modes "L" and "1", RGB for all others."""
    if image.mode.startswith(("I", "F")):
        raise FedKDError(
            f"Images of mode {image.mode!r} have more than 8 bits per channel. Convert them to 'L' or 'RGB' first."
        )
    mode = "L" if image.mode in ("L", "1") else "RGB"
    array = np.asarray(image if image.mode == mode else image.convert(mode))
    return array[None] if mode == "L" else np.moveaxis(array, -1, 0)


def to_image(pixels: np.ndarray) -> Any:
    """Convert uint8 pixels (C, H, W) to a PIL image."""
    from PIL import Image

    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(np.moveaxis(pixels, 0, -1)))


def stack_pixels(pixels: Iterable[np.ndarray], count: int, names: Sequence[str] | None = None) -> Tensor:
    """Stack images of the same size.

    Where some have one channel and some three, those with three equal channels are grayscale too. If one is colored
    all become RGB, with a warning that names it where most are grayscale.

    Args:
        pixels: The images, uint8 (C, H, W) each; read one at a time.
        count: The number of images, at least 1.
        names: The images' names for error messages, instead of their positions.

    Returns:
        uint8 (N, C, H, W).

    Raises:
        FedKDError: If sizes differ.
    """
    stack = np.empty((0, 1, 0, 0), np.uint8)
    colored: list[int] = []
    has_gray = False
    for i, image in enumerate(pixels):
        channels, height, width = image.shape
        has_gray |= channels == 1
        if is_colored(image):
            colored.append(i)
        elif stack.shape[1] == 1 and i > 0:
            image = image[:1]
        if i == 0:
            stack = np.empty((count, channels, height, width), np.uint8)
        if (height, width) != stack.shape[2:]:
            called = names[i] if names else f"image {i}"
            raise FedKDError(
                f"All images must have the same size, but {called} is {height}x{width} (height x width) and those "
                f"before it are {stack.shape[2]}x{stack.shape[3]}: resize them, as ImageFolder does with image_size."
            )
        if len(image) > stack.shape[1]:
            stack = np.repeat(stack, len(image), axis=1)
        stack[i] = image  # a grayscale image is broadcast over the channels
    if has_gray and not colored:
        stack = np.ascontiguousarray(stack[:, :1])
    if has_gray and 0 < len(colored) < count / 2:
        called = names[colored[0]] if names else f"image {colored[0]}"
        rank_zero_warn(
            f"{len(colored)} of {count} images are colored, the first is {called}. All become RGB. Convert it to "
            "grayscale if it is there by mistake."
        )
    return torch.from_numpy(stack)


def is_colored(images: np.ndarray) -> bool:
    """Whether images (..., C, H, W) have three channels that differ."""
    red, *others = (images[..., channel, :, :] for channel in range(images.shape[-3]))
    return not all(np.array_equal(red, other) for other in others)
