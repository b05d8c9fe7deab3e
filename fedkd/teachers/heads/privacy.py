"""Differential privacy for the sums that clients send: the Gaussian mechanism, calibrated analytically.

Balle & Wang 2018, "Improving the Gaussian Mechanism for Differential Privacy" (arXiv 1805.06530).

Two shards are neighbors if one has one image more. If a release f has the L2 sensitivity Delta (the most that one
image can change it), then f + N(0, sigma^2 I) is (epsilon, delta)-private exactly if, with mu = Delta / sigma,

    Phi(mu / 2 - epsilon / mu) - e^epsilon Phi(-mu / 2 - epsilon / mu) <= delta                            (Theorem 8)

Several such releases, each of which may be chosen by the ones before, are together as private as one with
mu^2 = mu_1^2 + mu_2^2 + ... (Dong et al. 2019, arXiv 1905.02383, Corollary 2). So a budget (epsilon, delta) is a budget
mu^2, and exchanges share it: what they spend adds up to it, with nothing lost.
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
"""How the budget mu^2 is shared by the two exchanges of a head: its sums, and the choice of its scale."""


@dataclass(frozen=True)
class GaussianPrivacy:
    """Every image is (epsilon, delta)-private towards the server: its client adds noise to all that it sends.

    Nobody needs to be trusted, so the noise of all clients adds up: few large clients lose less than many small ones.
    The guarantee is for one image of one client and for the fit of one head. It does not cover the student, which is
    trained on the images as well.

    Args:
        epsilon: How much one image may change the odds of any outcome, as a factor e^epsilon; > 0.
        delta: The probability with which that may fail; in (0, 1), and well below one over the number of images.
        clip: Longer feature vectors are scaled down to this norm. A small one is no loss: it makes them unit vectors.
        seed: Where the noise comes from, so that a simulation can be run again. Real clients must keep theirs secret.

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
        """The budget: the greatest sensitivity over noise that is still (epsilon, delta)-private."""
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
            sensitivity: Delta, the most that one image changes the release, in L2 norm.
            share: How much of the budget mu^2 it may spend, in (0, 1].
        """
        return sensitivity / (self.mu * math.sqrt(share))

    def add_noise(self, release: Tensor, sensitivity: float, share: float, *keys: int | str) -> Tensor:
        """Return ``release`` with noise, on the CPU.

        The noise follows from the seed, the keys and the release itself. So two releases never share noise, which their
        difference would be free of; and the same one, made again, has the same, so that no mean over many is.

        Args:
            release: Any shape.
            sensitivity: See `sigma`, also for what follows.
            share: How much of the budget it may spend.
            keys: Say whose release it is.
        """
        release = release.double().cpu()
        content = hashlib.sha256(release.numpy().tobytes()).hexdigest()
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "privacy", content, *keys))
        noise = torch.randn(release.shape, dtype=torch.float64, generator=generator)
        return release + self.sigma(sensitivity, share) * noise

    def clipped(self, features: Tensor) -> Tensor:
        """Scale vectors that are longer than ``clip`` down to it: (n, D) -> (n, D) float64."""
        return clip_norm(features.double(), self.clip)


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Return the least delta for which the Gaussian mechanism is (epsilon, delta)-private.

    Args:
        epsilon: >= 0.
        mu: Sensitivity over the noise's standard deviation; > 0.
    """
    above, below = torch.tensor([mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu], dtype=torch.float64)
    # e^epsilon overflows where Phi vanishes: their product is taken in logarithms
    return float(torch.special.ndtr(above) - (epsilon + torch.special.log_ndtr(below)).exp())


def clip_norm(features: Tensor, limit: float) -> Tensor:
    """Scale rows (n, D) whose norm is above ``limit`` down to it."""
    norms = features.norm(dim=1, keepdim=True)
    return features * (limit / norms.clamp(min=limit))
