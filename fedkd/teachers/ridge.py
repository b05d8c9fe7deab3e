"""Ridge regression from sums: what clients send, how the server adds it up, and how it solves.

Ridge regression needs the data only through sums over images, and sums can be formed by each client alone and added in
any order. So the solution is that of all data in one place, to rounding, however skewed the clients' shards are. With
x a feature vector, y its one-hot target and n the number of images:

    a client sends   A = sum [x 1] [x 1]^T  (its upper triangle)  and  B = sum [x 1] y^T
    the server adds  A and B over clients, and centres:  S = sum (x - m)(x - m)^T,  C = sum (x - m)(y - t)^T
    and solves       W = (S + lambda I)^-1 C,   b = t - W^T m           (m, t: the means; the bias is not penalised)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedkd.errors import FedKDError


@dataclass(frozen=True, eq=False)
class RidgeStatistics:
    """The sums over a client's images, in float64; adding two gives those of both clients' images.

    Args:
        second_moments: Upper triangle, row by row, of sum [x 1] [x 1]^T: ((D + 1) (D + 2) / 2,). Its last number is n.
        cross_moments: sum [x 1] y^T, (D + 1, K). Its last row counts the images of each class.
    """

    second_moments: Tensor
    cross_moments: Tensor

    @classmethod
    def from_features(cls, features: Tensor, targets: Tensor, num_classes: int) -> RidgeStatistics:
        """Sum over a client's images.

        Args:
            features: (n, D), any float type; n may be 0.
            targets: (n,) labels in [0, K).
            num_classes: K.
        """
        x = torch.cat(
            [features.double(), features.new_ones(len(features), 1, dtype=torch.float64)], dim=1
        )  # (n, D + 1)
        cross = x.new_zeros(num_classes, x.shape[1]).index_add_(0, targets.to(x.device), x)
        return cls(_pack(x.T @ x).cpu(), cross.T.contiguous().cpu())

    def __add__(self, other: RidgeStatistics) -> RidgeStatistics:
        """Return the sums over both clients' images."""
        if self.cross_moments.shape != other.cross_moments.shape:
            raise FedKDError(
                "Cannot add statistics of different features or classes: "
                f"{tuple(self.cross_moments.shape)} and {tuple(other.cross_moments.shape)}."
            )
        return RidgeStatistics(self.second_moments + other.second_moments, self.cross_moments + other.cross_moments)

    @property
    def num_bytes(self) -> int:
        """Return how many bytes a client sends: these two tensors and nothing else."""
        return sum(t.numel() * t.element_size() for t in (self.second_moments, self.cross_moments))

    @property
    def count(self) -> int:
        """Return n, the number of images."""
        return int(self.second_moments[-1])

    @property
    def class_counts(self) -> Tensor:
        """Return the number of images of each class, (K,) float64."""
        return self.cross_moments[-1]


@dataclass(frozen=True, eq=False)
class RidgeSolution:
    """A solved ridge regression, in float64.

    Args:
        weight: W, (D, K).
        bias: b, (K,).
        mean: m, the mean feature vector, (D,).
        precision: (S + lambda I)^-1, (D, D).
        count: n.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    precision: Tensor
    count: int

    @cached_property
    def num_bytes(self) -> int:
        """Return the bytes of all that is sent to a client that computes `leave_one_out` (precision: one triangle)."""
        dim = len(self.mean)
        return 8 * (self.weight.numel() + self.bias.numel() + dim + dim * (dim + 1) // 2 + 1)

    def predict(self, features: Tensor) -> Tensor:
        """Features (n, D) -> fitted values (n, K) float64."""
        return features.double() @ self.weight + self.bias

    def leave_one_out(self, features: Tensor, targets: Tensor) -> Tensor:
        """Return, for images that were fitted, what a fit without that one image would have predicted: (n, K) float64.

        It is exact: (f - h y) / (1 - h), with f the fitted value, y the one-hot target and the leverage
        h = 1/n + (x - m)^T (S + lambda I)^-1 (x - m).

        Args:
            features: (n, D).
            targets: (n,) labels.
        """
        x = features.double() - self.mean
        leverage = (1 / self.count + ((x @ self.precision) * x).sum(1, keepdim=True)).clamp(max=1 - 1e-9)  # (n, 1)
        one_hot = torch.nn.functional.one_hot(targets, self.weight.shape[1])
        return (self.predict(features) - leverage * one_hot) / (1 - leverage)


def solve_ridge(statistics: RidgeStatistics, regularization: float) -> RidgeSolution:
    """Solve the ridge regression of one-hot targets on features.

    Args:
        statistics: Summed over all clients.
        regularization: lambda is this times the features' summed variance over D, tr(S) / D: so it means the same
            whatever the features' scale and the number of images.

    Raises:
        FedKDError: If there is no image at all.
    """
    n = statistics.count
    if n == 0:
        raise FedKDError("Cannot fit a head: no client has an image.")
    full = _unpack(statistics.second_moments, statistics.cross_moments.shape[0])
    mean, target_mean = full[-1, :-1] / n, statistics.class_counts / n
    scatter = full[:-1, :-1] - n * torch.outer(mean, mean)  # S
    cross = statistics.cross_moments[:-1] - torch.outer(mean, statistics.class_counts)  # C
    penalty = regularization * float(scatter.trace()) / len(mean)
    ridge = torch.eye(len(mean), dtype=torch.float64) * (penalty if penalty > 0 else 1.0)  # constant features: W = 0
    precision = torch.cholesky_inverse(torch.linalg.cholesky(scatter + ridge))
    weight = precision @ cross
    return RidgeSolution(weight, target_mean - mean @ weight, mean, precision, n)


def _pack(matrix: Tensor) -> Tensor:
    """Return the upper triangle of a symmetric matrix, row by row."""
    rows, columns = torch.triu_indices(*matrix.shape, device=matrix.device)
    return matrix[rows, columns]


def _unpack(triangle: Tensor, size: int) -> Tensor:
    """Undo `_pack`."""
    rows, columns = torch.triu_indices(size, size)
    matrix = triangle.new_zeros(size, size)
    matrix[rows, columns] = triangle
    matrix[columns, rows] = triangle
    return matrix
