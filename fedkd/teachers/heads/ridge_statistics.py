"""Ridge regression from sums: what clients send, and how the server adds it.

Ridge regression needs only sums over images. Each client computes its own sums, and the server adds them in any order.
So the solution equals that of the centralized data, up to rounding, for every skew of the clients' shards. With a
feature vector x, its one-hot target y and the number of images n:

    a client sends   A = sum [x 1] [x 1]^T  (its upper triangle)  and  B = sum [x 1] y^T
    the server adds  A and B over clients, and centers:  S = sum (x - m)(x - m)^T,  C = sum (x - m)(y - t)^T
    and solves       W = (S + lambda I)^-1 C,   b = t - W^T m           (m, t: the means; the bias is not penalized)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedkd.core.errors import FedKDError
from fedkd.teachers.heads.privacy import SUMS_SHARE, GaussianPrivacy


@dataclass(frozen=True, eq=False)
class RidgeStatistics:
    """The sums over a client's images, in float64. Adding two of them gives the sums over both clients' images.

    Args:
        second_moments: Upper triangle, row by row, of ``sum [x 1] [x 1]^T``: ((D + 1) (D + 2) / 2,). Its last number
            is n.
        cross_moments: ``sum [x 1] y^T``, (D + 1, K). Its last row counts the images of each class.
        noise: The variance of the noise in each number. It is public.
    """

    second_moments: Tensor
    cross_moments: Tensor
    noise: float = 0.0

    @classmethod
    def from_features(
        cls, features: Tensor, targets: Tensor, num_classes: int, class_weights: Tensor | None = None
    ) -> RidgeStatistics:
        """Sum over a client's images.

        Args:
            features: (n, D), any float type; n may be 0.
            targets: (n,) labels in [0, K).
            num_classes: K.
            class_weights: How often an image of each class counts, (K,) float64; None is once.
        """
        x = torch.cat(
            [features.double(), features.new_ones(len(features), 1, dtype=torch.float64)], dim=1
        )  # (n, D + 1)
        weighted = x if class_weights is None else class_weights.to(x.device)[targets.to(x.device), None] * x
        cross = x.new_zeros(num_classes, x.shape[1]).index_add_(0, targets.to(x.device), weighted)
        return cls(pack(weighted.T @ x).cpu(), cross.T.contiguous().cpu())

    def __add__(self, other: RidgeStatistics) -> RidgeStatistics:
        """Return the sums over both clients' images."""
        if self.cross_moments.shape != other.cross_moments.shape:
            raise FedKDError(
                "Cannot add statistics of different features or classes: "
                f"{tuple(self.cross_moments.shape)} and {tuple(other.cross_moments.shape)}."
            )
        return RidgeStatistics(
            self.second_moments + other.second_moments,
            self.cross_moments + other.cross_moments,
            self.noise + other.noise,
        )

    def noisy(self, privacy: GaussianPrivacy, *keys: int | str) -> RidgeStatistics:
        """Return the sums with noise, which a client sends if there is privacy. Features have norm c at most.

        c is ``privacy.clip``. One image adds x x^T to A; its upper triangle has the squared norm
        (|x|^4 + sum x_i^4) / 2 <= c^4. It also adds [x 1] to one column of B, with a squared norm of at most c^2 + 1.
        So the sensitivity is sqrt(c^4 + c^2 + 1), reached by x = (c, 0, ..., 0). The last column of A is the sum of B
        over the classes, so it is computed from the noisy B and spends no budget.

        Args:
            privacy: The budget. The release spends its share for sums.
            keys: Identify the release.
        """
        c, size = privacy.clip, len(self.cross_moments)
        sensitivity = math.sqrt(c**4 + c**2 + 1)
        flat = torch.cat([self.second_moments, self.cross_moments.flatten()])
        noisy = privacy.add_noise(flat, sensitivity, SUMS_SHARE, *keys)
        second, cross = noisy[: len(self.second_moments)], noisy[len(self.second_moments) :].view(size, -1)
        full = unpack(second, size)
        full[-1], full[:, -1] = cross.sum(1), cross.sum(1)
        return RidgeStatistics(pack(full), cross, self.noise + privacy.sigma(sensitivity, SUMS_SHARE) ** 2)

    @property
    def count(self) -> float:
        """Return n, the number of images; with class weights the sum of their weights."""
        count = float(self.second_moments[-1])
        return int(count) if self.noise else count

    @property
    def class_counts(self) -> Tensor:
        """Return the number of images of each class, (K,) float64."""
        return self.cross_moments[-1]


def is_held_out(indices: np.ndarray) -> np.ndarray:
    """Whether each image is held out, (n,) bool. About a fifth of the images is.

    The choice is a fixed hash (SplitMix64, Steele et al. 2014) of the image's index in the data set, not of its
    position in a shard. So it is the same for every partition.
    """
    with np.errstate(over="ignore"):
        z = (indices.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) % np.uint64(5) == 0


def pack(matrix: Tensor) -> Tensor:
    """Return the upper triangle of a symmetric matrix, row by row."""
    rows, columns = torch.triu_indices(*matrix.shape, device=matrix.device)
    return matrix[rows, columns]


def unpack(triangle: Tensor, size: int) -> Tensor:
    """Undo `pack`."""
    rows, columns = torch.triu_indices(size, size)
    matrix = triangle.new_zeros(size, size)
    matrix[rows, columns] = triangle
    matrix[columns, rows] = triangle
    return matrix
