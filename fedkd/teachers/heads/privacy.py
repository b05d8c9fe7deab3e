"""Differential privacy for the sums that clients send: the Gaussian mechanism, calibrated analytically.

Balle & Wang 2018, "Improving the Gaussian Mechanism for Differential Privacy" (arXiv 1805.06530).

Two shards are neighbors if one has one more image. If a release f has the L2 sensitivity Delta (the largest change by
one image), then f + N(0, sigma^2 I) is (epsilon, delta)-private if and only if, with mu = Delta / sigma,

    Phi(mu / 2 - epsilon / mu) - e^epsilon Phi(-mu / 2 - epsilon / mu) <= delta                            (Theorem 8)

Several such releases, each of which may depend on the earlier ones, are together as private as one release with
mu^2 = mu_1^2 + mu_2^2 + ... (Dong et al. 2019, arXiv 1905.02383, Corollary 2). So a budget (epsilon, delta) equals a
budget mu^2. Exchanges share it: their mu^2 add up to exactly this budget.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedkd.core.errors import check_range
from fedkd.core.seeding import derive_seed

SUMS_SHARE, CHOICE_SHARE = 0.9, 0.1
"""The shares of the budget mu^2 for the two exchanges of a head: its sums, and the choice of its scale."""


@dataclass(frozen=True)
class GaussianPrivacy:
    """Every image is (epsilon, delta)-private toward the server: its client adds noise to everything that it sends.

    Clients need not trust the server, so each adds its own noise, and the noise of all clients adds up. With few large
    clients the head is therefore more accurate than with many small ones. The guarantee holds for one image of one
    client and for the fit of one head. It does not cover the student, which is also trained on the images.

    Args:
        epsilon: One image changes the odds of any outcome by a factor of at most e^epsilon; > 0.
        delta: The probability that this bound fails; in (0, 1), and well below 1 / (number of images).
        clip: Longer feature vectors are scaled down to this norm. A small value does no harm: all vectors then have the
            same length.
        seed: The seed of the noise, so that a simulation can be repeated. Real clients must keep their seeds secret.

    Raises:
        FedKDError: If a value is out of range.
    """

    epsilon: float
    delta: float = 1e-5
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("epsilon", self.epsilon, low=0, low_open=True)
        check_range("delta", self.delta, low=0, high=1, low_open=True, high_open=True)
        check_range("clip", self.clip, low=0, low_open=True)

    @cached_property
    def mu(self) -> float:
        """The budget: the largest ratio of sensitivity to noise that is still (epsilon, delta)-private."""
        low, high = 0.0, 1.0
        while gaussian_delta(self.epsilon, high) < self.delta:
            low, high = high, 2 * high
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if gaussian_delta(self.epsilon, middle) <= self.delta else (low, middle)
        return low

    def sigma(self, sensitivity: float, share: float = 1.0) -> float:
        """Return the noise's standard deviation.

        Args:
            sensitivity: Delta, the largest change of the release by one image, in L2 norm.
            share: The share of the budget mu^2 that the release may spend, in (0, 1].
        """
        return sensitivity / (self.mu * math.sqrt(share))

    def add_noise(self, release: Tensor, sensitivity: float, share: float, *keys: int | str) -> Tensor:
        """Return ``release`` with noise, on the CPU.

        The seed, the keys and the release itself determine the noise. Different releases never have the same noise;
        otherwise their difference would have no noise. The same release always has the same noise, so the mean of
        repeated releases does not reduce it.

        Args:
            release: Any shape.
            sensitivity: See `sigma`.
            share: See `sigma`.
            keys: Identify the release.
        """
        release = release.double().cpu()
        content = hashlib.sha256(release.numpy().tobytes()).hexdigest()
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "privacy", content, *keys))
        noise = torch.randn(release.shape, dtype=torch.float64, generator=generator)
        return release + self.sigma(sensitivity, share) * noise

    def clipped(self, features: Tensor) -> Tensor:
        """Scale vectors longer than ``clip`` down to this length: (n, D) -> (n, D) float64."""
        return clip_norm(features.double(), self.clip)


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Return the least delta for which the Gaussian mechanism is (epsilon, delta)-private.

    Args:
        epsilon: >= 0.
        mu: Sensitivity divided by the noise's standard deviation; > 0.
    """
    above, below = torch.tensor([mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu], dtype=torch.float64)
    # e^epsilon overflows where Phi vanishes, so their product is computed in logarithms.
    return float(torch.special.ndtr(above) - (epsilon + torch.special.log_ndtr(below)).exp())


def clip_norm(features: Tensor, limit: float) -> Tensor:
    """Scale rows (n, D) with a norm above ``limit`` down to this norm."""
    norms = features.norm(dim=1, keepdim=True)
    return features * (limit / norms.clamp(min=limit))
