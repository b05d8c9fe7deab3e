"""Further transforms of images, such as torchvision's, each image with random numbers of its own.

A transform of ``torchvision.transforms.v2`` draws one set of parameters a call, so a whole batch would get the same
colors and angles. So fedkd calls the transforms once for each image. Before it all generators are seeded for the image,
so what a transform draws does not depend on the other images, on other clients, or on what ran before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import CutMix, MixUp

from fedkd.core.errors import FedKDError, in_one_line
from fedkd.core.seeding import seed_all, states_kept

TRIALS = 8
"""Images of noise on which transforms are tried before any work."""


def transform_each(images: Tensor, transforms: Sequence[Callable[[Any], Any]], seeds: Iterable[int]) -> Tensor:
    """Apply transforms to each image.

    Args:
        images: uint8 (B, C, H, W).
        transforms: Called one after the other with an image (C, H, W), at first uint8. What comes out last is uint8, or
            float in [0, 1], which is rounded to 8 bits.
        seeds: B numbers: what Python, numpy and torch are seeded by before each image. Their states are restored.

    Returns:
        uint8 (B, C, H, W), in the memory format channels_last, on the device of ``images``.
    """
    found = []
    with states_kept():
        for image, seed in zip(images, seeds, strict=True):
            seed_all(seed)
            found.append(_to_uint8(_through(image.clone(), transforms)))  # a transform may work in place
    if not found:
        return images
    return torch.stack(found).contiguous(memory_format=torch.channels_last)


def _through(image: Any, transforms: Sequence[Callable[[Any], Any]]) -> Any:
    for transform in transforms:
        image = transform(image)
    return image


def _to_uint8(image: Tensor) -> Tensor:
    return image if image.dtype == torch.uint8 else image.float().mul(255).round_().clamp_(0, 255).to(torch.uint8)


def check_types(transforms: Sequence[Any]) -> None:
    """Raise if something is not a transform of one image.

    Raises:
        FedKDError: If it is not.
    """
    for transform in transforms:
        if isinstance(transform, type):
            name = transform.__name__
            raise FedKDError(f"transforms has the class {name}: give an instance of it, {name}(...).")
        if not callable(transform):
            raise FedKDError(f"transforms must be transforms of images, such as RandAugment(), got {transform!r}.")
        if isinstance(transform, MixUp | CutMix):
            name = type(transform).__name__
            raise FedKDError(f"transforms: {name} mixes a batch, not an image: set mix, to fedkd.data.{name}(...).")


def check_transforms(transforms: Sequence[Callable[[Any], Any]], image_shape: tuple[int, int, int]) -> None:
    """Try transforms on noise.

    Args:
        transforms: See `transform_each`.
        image_shape: (C, H, W) of the images.

    Raises:
        FedKDError: If one fails, or what comes out is no such image.
    """
    noise = torch.randint(0, 256, (TRIALS, *image_shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with states_kept():
        for seed, image in enumerate(noise):
            seed_all(seed)
            shown: Any = image
            for transform in transforms:
                name = getattr(transform, "__name__", type(transform).__name__)
                try:
                    shown = transform(shown)
                except Exception as error:  # a transform's own code can raise anything
                    raise FedKDError(
                        f"transforms: {name} fails on an image {_kind(shown)}: {in_one_line(error)}"
                    ) from error
            _check_image(shown, image_shape, name)


def _check_image(shown: Any, image_shape: tuple[int, int, int], name: str) -> None:
    """Raise unless a tensor is an image of the given shape."""
    if not isinstance(shown, Tensor) or tuple(shown.shape) != image_shape:
        raise FedKDError(
            f"transforms must keep an image's shape {image_shape}, but after {name} there is {_kind(shown)}."
        )
    if shown.dtype == torch.uint8:
        return
    if not shown.is_floating_point():
        raise FedKDError(f"transforms must end in uint8 or float, but after {name} there is {_kind(shown)}.")
    low, high = (float(value) for value in shown.aminmax())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # also true for NaN
        raise FedKDError(
            f"transforms must keep float images in [0, 1], but after {name} values reach from {low:.3g} to {high:.3g}. "
            "Leave Normalize out: students and teachers normalize."
        )


def _kind(image: Any) -> str:
    if isinstance(image, Tensor):
        return f"{str(image.dtype).removeprefix('torch.')} {tuple(image.shape)}"
    return f"a {type(image).__name__}"
