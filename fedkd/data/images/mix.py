"""Mix each image of a batch with the image before it: MixUp and CutMix.

Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: Beyond Empirical Risk Minimization" (arXiv 1710.09412);
Yun, Han, Oh, Chun, Choe and Yoo, "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
Features" (arXiv 1905.04899).

torchvision's classes of these names draw one number for the host from torch's global state and mix labels alone. Here
all numbers of an epoch are drawn from its seed and go to the device at once, and `fedkd.losses.DistillationLoss` mixes
what the labels and the teacher's outputs say.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedkd.core.errors import check_range

LEAST, GREATEST = 1e-3, 1e6
"""The range of alpha. Below it every number drawn is 0 or 1 in float32, above it 1/2."""


class MixDraws(NamedTuple):
    """How the images of n batches are mixed. Outside of a box an image has one share in the pixels, inside of it 0."""

    weight: Tensor  # float32 (n,), each image's share of the whole, in [0, 1]: of what it is to be learned as
    outside: Tensor  # float32 (n,), its share of the pixels outside of the box
    box: Tensor  # int64 (n, 4): top, bottom, left, right; the rows and columns from the first to before the second

    def on(self, device: torch.device) -> MixDraws:
        """Return the draws on a device."""
        return MixDraws(*(each.to(device) for each in self))

    def mixed(self, images: Tensor, batch: int) -> Tensor:
        """Mix each image with the one before it, the first with the last.

        Args:
            images: float32 (B, C, H, W).
            batch: Which of the n batches they are.

        Returns:
            (B, C, H, W).
        """
        top, bottom, left, right = self.box[batch]
        rows, columns = (torch.arange(size, device=images.device) for size in images.shape[2:])
        inside = ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))  # (H, W)
        own = torch.where(inside, 0.0, self.outside[batch])
        return own * images + (1 - own) * images.roll(1, 0)


@dataclass(frozen=True)
class Mix(ABC):
    r"""Mixes pairs of images in a share :math:`\lambda \sim \mathrm{Beta}(\alpha, \alpha)`, drawn for each batch.

    Args:
        alpha: The papers' alpha, in [0.001, 1000000]. 1 is uniform; below 1 most shares are near 0 or 1.
        probability: With which a batch is mixed at all, in [0, 1].
    """

    alpha: float = 1.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        check_range("alpha", self.alpha, low=LEAST, high=GREATEST)
        check_range("probability", self.probability, low=0, high=1)

    def draw(self, count: int, size: tuple[int, int], seed: int) -> MixDraws:
        """Draw how the batches of an epoch are mixed.

        Args:
            count: n, the number of batches.
            size: (H, W) of the images.
            seed: Decides all.

        Returns:
            The draws, on the CPU.
        """
        rng = np.random.default_rng(seed)
        uniform = rng.random((count, 3))  # whether; where
        shares = np.where(uniform[:, 0] < self.probability, rng.beta(self.alpha, self.alpha, count), 1.0)
        return self.shapes(shares, uniform[:, 1:], size)

    @abstractmethod
    def shapes(self, shares: np.ndarray, places: np.ndarray, size: tuple[int, int]) -> MixDraws:
        """Turn numbers into the way in which images are mixed.

        Args:
            shares: lambda of each batch, (n,) in [0, 1].
            places: Uniform numbers in [0, 1), (n, 2).
            size: (H, W).
        """


@dataclass(frozen=True)
class MixUp(Mix):
    r"""Mix all pixels: :math:`\lambda x_i + (1 - \lambda) x_{i-1}`.

    Zhang et al. (arXiv 1710.09412), section 2. As in the authors' code, a batch has one lambda. Batches are shuffled,
    so the image before an image is a random one of the same client.

    Args:
        alpha: The paper's alpha, in [0.001, 1000000]. The paper uses 1 for CIFAR-10 and 0.1 to 0.4 for ImageNet.
        probability: With which a batch is mixed at all, in [0, 1].
    """

    def shapes(self, shares: np.ndarray, places: np.ndarray, size: tuple[int, int]) -> MixDraws:
        """Return the shares, and boxes without a pixel."""
        weight = torch.from_numpy(shares).float()
        return MixDraws(weight, weight, torch.zeros(len(shares), 4, dtype=torch.int64))


@dataclass(frozen=True)
class CutMix(Mix):
    r"""Paste a box of the image before each image over it; the box has the share :math:`1 - \lambda` of the area.

    Yun et al. (arXiv 1905.04899), section 3.1 and algorithm A1. As in the authors' code, a batch has one box, its
    center is uniform over the image, and what lies outside of the image is cut off. Lambda is then computed again from
    the pixels, so it is exact.

    Args:
        alpha: The paper's alpha, in [0.001, 1000000].
        probability: With which a batch is mixed at all, in [0, 1].
    """

    def shapes(self, shares: np.ndarray, places: np.ndarray, size: tuple[int, int]) -> MixDraws:
        """Return boxes, and the share of the area that they leave."""
        extent, sides = np.array(size), np.sqrt(1 - shares)[:, None]  # (2,), (n, 1)
        center, half = np.floor(places * extent), np.floor(sides * extent) // 2
        first, end = (center - half).clip(0, extent), (center + half).clip(0, extent)  # (n, 2) each
        weight = torch.from_numpy(1 - (end - first).prod(axis=1) / extent.prod()).float()
        box = np.stack([first[:, 0], end[:, 0], first[:, 1], end[:, 1]], axis=1)
        return MixDraws(weight, torch.ones(len(shares)), torch.from_numpy(box).long())
