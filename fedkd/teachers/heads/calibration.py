"""The second exchange of a head's fit: it chooses a scale from a few losses of each client."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fedkd.teachers.heads.privacy import CHOICE_SHARE, GaussianPrivacy


def scale_grid(octaves: int = 8, steps: int = 4) -> Tensor:
    """Return the candidate scales: from 1 to ``2 ** octaves``, ``steps`` per factor of 2, float64."""
    return 2 ** (torch.arange(octaves * steps + 1, dtype=torch.float64) / steps)


def loss_sums(
    logits: Iterable[Tensor],
    targets: Tensor,
    privacy: GaussianPrivacy | None,
    client: int,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Return a client's summed loss under each of G candidates, (G,) float64.

    The loss is the cross-entropy. With privacy it is the Brier score minus one, |softmax - y|^2 - 1. The Brier score is
    also a proper scoring rule, and it is bounded: one image changes each of the G numbers by at most 1, so the
    sensitivity is sqrt(G).

    Args:
        logits: For each candidate (n, K).
        targets: (n,) labels.
        privacy: Adds noise; None adds no noise.
        client: The client's index, which is one of the keys of the noise.
        class_weights: How often an image of each class counts, (K,); None is once. Not with privacy.
    """
    if privacy is None:
        losses = [F.cross_entropy(each, targets, weight=class_weights, reduction="sum") for each in logits]
        return torch.stack(losses)
    sums = torch.stack([_brier(candidate, targets).sum() for candidate in logits])
    return privacy.add_noise(sums, math.sqrt(len(sums)), CHOICE_SHARE, "choice", client)


def best(answers: Sequence[Tensor], privacy: GaussianPrivacy | None) -> int:
    """Return the index of the candidate with the least loss over all clients.

    With privacy, return the first candidate whose loss differs from the least by no more than noise can explain.
    In a grid of scales alone, candidates are in the order of confidence, and an underconfident teacher does less harm
    than an overconfident one. (The grid of `ZeroShotRidge` has another weight first, so there the order is mixed.)
    The least of G noises with standard deviation s is about s sqrt(2 log G) below zero, and the noise of the first
    candidate is about s.
    """
    total = torch.stack(list(answers)).sum(0)
    if privacy is None:
        return int(total.argmin())
    noise = privacy.sigma(math.sqrt(len(total)), CHOICE_SHARE) * math.sqrt(len(answers))
    tolerance = noise * (1 + math.sqrt(2 * math.log(len(total))))
    return int((total <= total.min() + tolerance).nonzero()[0])


def _brier(logits: Tensor, targets: Tensor) -> Tensor:
    """(n, K), (n,) -> |softmax - y|^2 - 1 of each image, in [-1, 1]."""
    return (logits.softmax(1) - F.one_hot(targets, logits.shape[1])).square().sum(1) - 1
