"""Solve the ridge regression from the clients' sums, and choose its regularization."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedkd.core.errors import FedKDError
from fedkd.teachers.heads.ridge_statistics import RidgeStatistics, unpack

REGULARIZATIONS = tuple(10 ** (step / 2) for step in range(-12, 5))
"""The values that "auto" chooses from: 1e-6 to 100, two per decade."""


@dataclass(frozen=True, eq=False)
class RidgeSolution:
    """A solved ridge regression, in float64.

    Args:
        weight: W, (D, K).
        bias: b, (K,).
        mean: m, the mean feature vector, (D,).
        precision: (S + lambda I)^-1, (D, D).
        count: n, or the sum of the images' weights.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    precision: Tensor
    count: float

    def predict(self, features: Tensor) -> Tensor:
        """Features (n, D) -> fitted values (n, K) float64."""
        return features.double() @ self.weight + self.bias

    def leave_one_out(self, features: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return for each fitted image the prediction of a fit without that image (leave-one-out), (n, K) float64.

        The predictions are exact: (f - h y) / (1 - h), with the fitted value f, the one-hot target y and the leverage
        h = 1/n + (x - m)^T (S + lambda I)^-1 (x - m); an image of weight w has w h.

        Args:
            features: (n, D).
            targets: (n,) labels.
            weights: (n,), how often each image counts; None is once.
        """
        x = features.double() - self.mean
        leverage = 1 / self.count + ((x @ self.precision) * x).sum(1, keepdim=True)  # (n, 1)
        leverage = (leverage if weights is None else weights[:, None] * leverage).clamp(max=1 - 1e-9)
        one_hot = torch.nn.functional.one_hot(targets, self.weight.shape[1])
        return (self.predict(features) - leverage * one_hot) / (1 - leverage)


def solve_ridge(statistics: RidgeStatistics, regularization: float) -> RidgeSolution:
    """Solve the ridge regression of one-hot targets on features.

    Args:
        statistics: The sums over all clients.
        regularization: lambda divided by tr(S) / D, where tr(S) is the summed variance of the features. So it means the
            same for every scale of the features and every number of images.

    Raises:
        FedKDError: If there is no image.
    """
    return RidgeProblem.from_statistics(statistics).solve(regularization)


@dataclass(frozen=True, eq=False)
class RidgeProblem:
    """The centered sums of a ridge regression, which can be solved for any lambda.

    Args:
        scatter: S, (D, D).
        cross: C, (D, K).
        mean: m, (D,).
        target_mean: t, (K,).
        least: The least lambda, 0 without noise. Noise of variance v on S has the norm 2 sqrt(v D) (Wigner's
            semicircle), and directions with less variance are not distinguishable from it.
        count: n, or the sum of the images' weights.
        scale: By what the features were divided before, (D,); see `from_statistics`.
    """

    scatter: Tensor
    cross: Tensor
    mean: Tensor
    target_mean: Tensor
    least: float
    count: float
    scale: Tensor | None = None

    @classmethod
    def from_statistics(cls, statistics: RidgeStatistics, standardize: bool = False) -> RidgeProblem:
        """Center the sums.

        Args:
            statistics: The sums over all clients.
            standardize: Whether each feature is divided by its standard deviation, so that the penalty means the same
                for all. The solution is for the features as they were.

        Raises:
            FedKDError: If there is no image.
        """
        n = statistics.count
        if n < 1:
            raise FedKDError("Cannot fit a head: no client has an image, according to the clients' sums.")
        full = unpack(statistics.second_moments, statistics.cross_moments.shape[0])
        mean, target_mean = full[-1, :-1] / n, statistics.class_counts / n
        scatter = full[:-1, :-1] - n * torch.outer(mean, mean)
        cross = statistics.cross_moments[:-1] - torch.outer(mean, statistics.class_counts)
        scale = None
        if standardize:
            scale = (scatter.diagonal() / n).clamp(min=0).sqrt()
            scale = torch.where(scale > 1e-12 * scale.max(), scale, torch.ones_like(scale))  # constants stay
            scatter, cross = scatter / torch.outer(scale, scale), cross / scale[:, None]
        return cls(scatter, cross, mean, target_mean, 2 * math.sqrt(statistics.noise * len(mean)), n, scale)

    def solve(self, regularization: float) -> RidgeSolution:
        """Solve for lambda = regularization * tr(S) / D, but at least ``least``."""
        precision = torch.cholesky_inverse(self._factor(regularization))
        weight = precision @ self.cross
        if self.scale is not None:
            weight, precision = weight / self.scale[:, None], precision / torch.outer(self.scale, self.scale)
        return RidgeSolution(weight, self.target_mean - self.mean @ weight, self.mean, precision, self.count)

    def errors(self, regularizations: Sequence[float], held_out: RidgeStatistics) -> Tensor:
        """Return the solutions' summed squared errors on held-out images, from the sums over these images, float64.

        With V = [W; b]:  sum |V^T [x 1] - y|^2 = tr(V^T A V) - 2 tr(V^T B) + n.
        """
        moments = unpack(held_out.second_moments, held_out.cross_moments.shape[0])
        found = []
        for regularization in regularizations:
            weight = torch.cholesky_solve(self.cross, self._factor(regularization))
            weight = weight if self.scale is None else weight / self.scale[:, None]
            v = torch.cat([weight, (self.target_mean - self.mean @ weight)[None]])  # (D + 1, K)
            found.append((v * (moments @ v - 2 * held_out.cross_moments)).sum() + moments[-1, -1])
        return torch.stack(found)

    def effective(self, regularization: float) -> float:
        """Return the regularization that `solve` uses: the requested one, or a larger one if the noise needs it."""
        unit = self._unit
        return max(regularization, self.least / unit) if unit > 0 else regularization

    @property
    def _unit(self) -> float:
        """The lambda of a regularization of 1: tr(S) / D."""
        return float(self.scatter.trace()) / len(self.mean)

    def _factor(self, regularization: float) -> Tensor:
        """Return the lower Cholesky factor of S + lambda I."""
        penalty = max(regularization * self._unit, self.least)
        ridge = torch.eye(len(self.mean), dtype=torch.float64) * (penalty if penalty > 0 else 1.0)  # constant: W = 0
        factor, failed = torch.linalg.cholesky_ex(self.scatter + ridge)
        if not failed:
            return factor
        variances, basis = torch.linalg.eigh(self.scatter)  # noise makes some negative: these become 0
        positive = (basis * variances.clamp(min=0)) @ basis.T
        return torch.linalg.cholesky((positive + positive.T) / 2 + ridge)


def choose_regularization(fit: RidgeStatistics, held_out: RidgeStatistics, standardize: bool = False) -> float:
    """Return the regularization in `REGULARIZATIONS` whose fit has the least squared error on held-out images.

    Args:
        fit: The sums over the images to fit.
        held_out: The sums over other images. If one of the two has no image, the choice is 0.01.
        standardize: As for `RidgeProblem.from_statistics`.
    """
    if min(fit.count, held_out.count) < 1:
        return 1e-2
    errors = RidgeProblem.from_statistics(fit, standardize).errors(REGULARIZATIONS, held_out)
    return REGULARIZATIONS[int(errors.argmin())]
