"""Images generated from a seed: discs that hide each other, like fallen leaves.

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
from fedkd.data.shared import SharedImages, Unlabelled

LEAVES = 128
"""Discs an image: with these radii they leave less than 1% of the pixels to the background."""


@dataclass(frozen=True)
class DeadLeaves(SharedImages):
    """Discs of random colours whose radii follow a power law, as sizes do in photographs: no image is needed.

    The density of radii falls as r^-3, between 1/16 and 1/2 of the shorter side: then what is seen has the same
    statistics at every scale. Image i follows from (``seed``, i) alone.

    Args:
        count: How many images.
        seed: Draws the images; it belongs to the data, and the run's seed changes nothing.
        weight: As for `SharedImages`.
        fraction: As for `SharedImages`.
    """

    count: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("count", self.count, low=1, whole=True)

    def load(self, train: ImageSet, public: np.ndarray) -> Unlabelled:
        """Return the images, in the shape of ``train``."""
        images = [
            dead_leaves(train.image_shape, np.random.default_rng(derive_seed("dead leaves", self.seed, i)))
            for i in range(self.count)
        ]
        return Unlabelled.of(torch.from_numpy(np.stack(images)), train.classes)


def dead_leaves(shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw one image.

    Args:
        shape: (C, H, W).
        rng: Where all randomness comes from.

    Returns:
        uint8 (C, H, W).
    """
    channels, height, width = shape
    side = min(height, width)
    # Of the generator only uniform numbers are used, and of these no powers: both are the same on every machine.
    x, y, u = rng.random((3, LEAVES))
    colours = (256 * rng.random((LEAVES + 1, channels))).astype(np.uint8)  # the last one is the background's
    low, high = (2 / side) ** 2, (16 / side) ** 2  # of 1 / r^2, which is uniform where the density of r is r^-3
    squared = 1 / (low + (high - low) * u)  # r^2, (D,)
    across = (np.arange(width) + 0.5 - width * x[:, None]) ** 2  # (D, W)
    down = (np.arange(height) + 0.5 - height * y[:, None]) ** 2  # (D, H)
    hides = down[:, :, None] + across[:, None, :] < squared[:, None, None]  # (D, H, W)
    front = np.where(hides.any(0), hides.argmax(0), LEAVES)  # (H, W), the first disc that covers a pixel
    return np.moveaxis(colours[front], -1, 0)
