"""Augmentation on the training device: random crop and flip, further transforms, and what is done to whole batches.

Crop, flip and the seed of further transforms depend on (seed, index, view) alone, through a counter-based hash:
SplitMix64, from Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (OOPSLA 2014). They are
therefore the same on every device, in any order and for any split into batches, and teacher outputs for a view can be
cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import Transform

from fedkd.core.config import ADDED, one_line
from fedkd.core.errors import FedKDError, check_range, refuse_classes
from fedkd.data.images.mix import Mix
from fedkd.data.images.transforms import check_transforms, check_types, transform_each


def _signed(value: int) -> int:
    """Return the unsigned 64-bit ``value`` as an int64 with the same bits, since torch computes in int64."""
    return (value + 2**63) % 2**64 - 2**63


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MULTIPLIERS = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


class Draw(NamedTuple):
    """The crop and flip of each of B images."""

    top: Tensor  # int64 (B,), the crop's first row in the padded image
    left: Tensor  # int64 (B,), its first column
    flip: Tensor  # bool (B,)


MAX_PADDING = 4096
"""Pixels. A larger value is a mistake and would fill the memory."""


@dataclass(frozen=True)
class Augmentation:
    """Zero-pad, crop at random to the original size, flip horizontally at random; then transform, then mix.

    Args:
        crop_padding: Pixels of zeros added on each side before the crop; 0 means no crop.
        flip: Whether to flip with probability 1/2.
        transforms: Transforms of ``torchvision.transforms.v2``, or other callables that pickle, in a list. They are
            applied to each image (C, H, W) by itself, at first uint8: see
            `fedkd.data.images.transforms.transform_each`.
        mix: `fedkd.data.MixUp` or `fedkd.data.CutMix` of the images of a batch, with their labels and teacher outputs.

    Raises:
        FedKDError: If a value is out of its range, or is no transform of an image.
    """

    crop_padding: int = 0
    flip: bool = False
    transforms: Sequence[Transform] = field(default=(), metadata=ADDED)
    mix: Mix | None = field(default=None, metadata=ADDED)

    def __post_init__(self) -> None:
        check_range("crop_padding", self.crop_padding, low=0, high=MAX_PADDING, whole=True)
        refuse_classes(mix=self.mix)
        if self.mix is not None and not isinstance(self.mix, Mix):
            raise FedKDError(f"mix must be fedkd.data.MixUp or fedkd.data.CutMix, got {self.mix!r}.")
        given: Any = self.transforms
        object.__setattr__(self, "transforms", tuple(given) if isinstance(given, list | tuple) else (given,))
        check_types(self.transforms)

    def __repr__(self) -> str:
        """Show all settings, those of the transforms too."""
        return one_line(self)

    @property
    def of_images(self) -> Augmentation:
        """Return what is done to each image by itself."""
        return self if self.mix is None else replace(self, mix=None)

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raise if the transforms do not suit images of a shape (C, H, W).

        Raises:
            FedKDError: See `fedkd.data.images.transforms.check_transforms`.
        """
        if self.transforms:
            check_transforms(self.transforms, image_shape)

    def draw(self, index: Tensor, view: Tensor, seed: int) -> Draw:
        """Draw the crop and flip of each image, from (seed, index, view) alone.

        Args:
            index: int64 (B,), the image's position in its ImageSet.
            view: int64, (B,) or a scalar, the number of the view.
            seed: The seed of the run and client.
        """
        state = counter_state(index, view, seed)
        offsets = 2 * self.crop_padding + 1
        return Draw(
            top=below(splitmix64(state + _signed(_GAMMA)), offsets),
            left=below(splitmix64(state + _signed(2 * _GAMMA)), offsets),
            flip=below(splitmix64(state + _signed(3 * _GAMMA)), 2).bool() & self.flip,
        )

    def sample(self, index: Tensor, epoch: int | Tensor, seed: int) -> tuple[Tensor, Draw]:
        """Draw a new view of each image in every epoch. The number of the view is that of the epoch.

        Args:
            index: int64 (B,), the image's position in its ImageSet.
            epoch: The epoch, one for all images or int64 (B,).
            seed: The seed of the run and client.

        Returns:
            The views, int64 (B,), and their crops and flips.
        """
        view = torch.zeros_like(index) + epoch
        return view, self.draw(index, view, seed)

    def transform_seeds(self, index: Tensor, view: Tensor, seed: int) -> Tensor:
        """Return what the transforms' random numbers follow from: int64 (B,), of arguments as for `draw`."""
        return splitmix64(counter_state(index, view, seed) + _signed(4 * _GAMMA))

    def transform(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Apply the transforms: uint8 (B, C, H, W), and seeds (B,) on the CPU -> uint8 (B, C, H, W)."""
        return transform_each(images, self.transforms, seeds.tolist()) if self.transforms else images

    def apply(self, images: Tensor, draw: Draw) -> Tensor:
        """Crop and flip: (B, C, H, W) -> (B, C, H, W), in the memory format channels_last."""
        if not self.crop_padding and not self.flip:
            return images
        (batch, channels, height, width), padding = images.shape, self.crop_padding
        padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))  # (B, H+2p, W+2p, C)
        device = images.device
        rows = draw.top[:, None] + torch.arange(height, device=device)  # (B, H)
        columns = torch.arange(width, device=device).expand(batch, width)
        columns = draw.left[:, None] + torch.where(draw.flip[:, None], width - 1 - columns, columns)  # (B, W)
        rows = rows + torch.arange(batch, device=device)[:, None] * padded.shape[1]
        # Selecting whole pixels from a flat list is 3x faster than indexing by row and column.
        pixel = rows[:, :, None] * padded.shape[2] + columns[:, None, :]  # (B, H, W)
        cropped = padded.reshape(-1, channels).index_select(0, pixel.reshape(-1))
        return cropped.view(batch, height, width, channels).permute(0, 3, 1, 2)

    def __call__(self, images: Tensor, index: Tensor, view: Tensor, seed: int) -> Tensor:
        """Augment each image of a batch.

        Args:
            images: uint8 (B, C, H, W).
            index: int64 (B,), the image's position in its ImageSet.
            view: int64, (B,) or a scalar, the number of the view.
            seed: The seed of the run and client.

        Returns:
            uint8 (B, C, H, W) on the device of ``images``.
        """
        shown = self.apply(images, self.draw(index, view, seed))
        if not self.transforms:
            return shown
        return self.transform(shown, self.transform_seeds(index.cpu(), torch.as_tensor(view).cpu(), seed))


def counter_state(index: Tensor, view: Tensor, seed: int) -> Tensor:
    """Hash (seed, index, view) to 64 bits: ``index`` int64 (B,), ``view`` int64 (B,) or a scalar -> int64 (B,)."""
    state = splitmix64(torch.full_like(index, _signed(seed)))
    return splitmix64(splitmix64(state + index * _GAMMA) + view * _GAMMA)


def splitmix64(state: Tensor) -> Tensor:
    """Return SplitMix64's output for each int64 counter: a bijection of 64 bits that scatters neighboring counters."""
    z = state + _GAMMA
    z = (z ^ _shift_right(z, 30)) * _MULTIPLIERS[0]
    z = (z ^ _shift_right(z, 27)) * _MULTIPLIERS[1]
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Shift as unsigned integers; torch's own shift copies the sign bit."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def below(bits: Tensor, bound: int) -> Tensor:
    """Map random bits to [0, bound), uniform up to a relative bias of ``bound / 2**63``."""
    return (bits & (2**63 - 1)) % bound
