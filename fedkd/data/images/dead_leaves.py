"""Images generated from a seed: discs that cover each other ("dead leaves").

Baradad, Wulff, Wang, Isola and Torralba, "Learning to See by Looking at Noise" (arXiv 2106.05963), section 3.1; Lee,
Mumford and Huang, "Occlusion Models for Natural Images" (IJCV 2001).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fedkd.core.errors import check_range
from fedkd.core.seeding import derive_seed
from fedkd.data.images.image_set import ImageSet
from fedkd.data.shared import SharedImages, Unlabeled

LEAVES = 128
"""Discs per image. With the radii below, less than 1% of the pixels show the background."""


MAX_IMAGES = 10_000_000
"""A larger number is a mistake: the images would fill the memory."""


@dataclass(frozen=True)
class DeadLeaves(SharedImages):
    """Generated images of discs in random colors. No data set is needed.

    The radii follow a power law, as the sizes of objects in photographs do. Their density falls as r^-3 between 1/16
    and 1/2 of the shorter side, so the visible parts have the same statistics at every scale. Image i depends on
    (``seed``, i) alone. With ``noise`` every image is mixed with 1/f noise in random colors (Baradad et al., section
    3.2), which has texture where the discs are flat.

    Args:
        count: The number of images.
        noise: Up to which share noise is mixed in, in [0, 1]; each image draws its own share.
        seed: The seed of the images. It belongs to the data; the run's seed has no effect.
        weight: See `SharedImages`.
        fraction: See `SharedImages`.
    """

    count: int = 2000
    seed: int = 0
    noise: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("count", self.count, low=1, high=MAX_IMAGES, whole=True)
        check_range("noise", self.noise, low=0, high=1)

    def load(self, train: ImageSet, public: np.ndarray) -> Unlabeled:
        """Generate the images, in the shape of those of ``train``."""
        images = []
        for i in range(self.count):
            rng = np.random.default_rng(derive_seed("dead leaves", self.seed, i))
            image = dead_leaves(train.image_shape, rng)
            images.append(with_noise(image, self.noise, rng) if self.noise else image)
        return Unlabeled.of(torch.from_numpy(np.stack(images)), train.classes)


def dead_leaves(shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw one image.

    Args:
        shape: (C, H, W).
        rng: The source of all randomness.

    Returns:
        uint8 (C, H, W).
    """
    channels, height, width = shape
    side = min(height, width)
    # Only uniform numbers and no powers of them: both give the same bits on every machine.
    x, y, u = rng.random((3, LEAVES))
    colors = (256 * rng.random((LEAVES + 1, channels))).astype(np.uint8)  # the last is the background's
    low, high = (2 / side) ** 2, (16 / side) ** 2  # bounds of 1 / r^2, which is uniform if r has density r^-3
    squared = 1 / (low + (high - low) * u)  # r^2, (D,)
    across = (np.arange(width) + 0.5 - width * x[:, None]) ** 2  # (D, W)
    down = (np.arange(height) + 0.5 - height * y[:, None]) ** 2  # (D, H)
    covers = down[:, :, None] + across[:, None, :] < squared[:, None, None]  # (D, H, W)
    front = np.where(covers.any(0), covers.argmax(0), LEAVES)  # (H, W), the first disc that covers a pixel
    return np.moveaxis(colors[front], -1, 0)


def with_noise(image: np.ndarray, most: float, rng: np.random.Generator) -> np.ndarray:
    """Mix an image with 1/f noise.

    The noise's amplitude falls as frequency to the power of -a, with a drawn from 0.5 to 2, as in photographs, and its
    channels are mixed at random.

    Args:
        image: uint8 (C, H, W).
        most: The share of the noise is drawn from 0 to this.
        rng: The source of all randomness.

    Returns:
        uint8 (C, H, W).
    """
    channels, height, width = image.shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])  # (H, W)
    frequency[0, 0] = 1
    fall = frequency ** -rng.uniform(0.5, 2.0)
    white = np.fft.fft2(rng.normal(size=(channels, height, width)))
    noise = np.tensordot(rng.normal(size=(channels, channels)), np.real(np.fft.ifft2(white * fall)), 1)
    noise = np.clip(127 + 60 * (noise - noise.mean()) / noise.std(), 0, 255)
    share = rng.uniform(0, most)
    return ((1 - share) * image + share * noise).astype(np.uint8)
