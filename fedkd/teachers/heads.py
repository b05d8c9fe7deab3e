"""Heads: from a teacher's features to logits, fitted without any image or feature leaving a client."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedkd.errors import check_range
from fedkd.teachers.ridge import RidgeSolution, RidgeStatistics, solve_ridge


class LinearClassifier(nn.Module):
    """A frozen linear classifier, features (B, D) -> logits (B, K) = scale * (x W + b).

    Args:
        weight: W, (D, K).
        bias: b, (K,).
        scale: The inverse temperature.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", bias.float())
        self.register_buffer("scale", torch.tensor(float(scale)))

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, K)."""
        return self.scale * torch.addmm(self.bias, features.float(), self.weight)


@dataclass(frozen=True, eq=False)
class FittedHead:
    """What a federated fit ends with.

    Args:
        module: Features (B, D) -> logits (B, K).
        bytes_up: Bytes that all clients sent, together.
        bytes_down: Bytes that were sent to them, together (not the finished head itself).
    """

    module: nn.Module
    bytes_up: int
    bytes_down: int


class FederatedHead(ABC):
    """A way to fit a head from what clients compute on their own features. Arguments are its configuration."""

    @abstractmethod
    def fit(self, features: np.ndarray, targets: Tensor, shards: Sequence[np.ndarray], num_classes: int) -> FittedHead:
        """Fit a head.

        Args:
            features: (N, D) of all images; a client looks only at the rows of its shard.
            targets: (N,) labels, likewise.
            shards: For each client its positions in the two; empty ones send nothing.
            num_classes: K.
        """


@dataclass(frozen=True)
class RidgeHead(FederatedHead):
    """Ridge regression on one-hot targets, solved in closed form from sums that clients send, then given a temperature.

    The head is the same, to rounding, for every partition of the same data: see `fedkd.teachers.ridge`.

    What a ridge regression fits lies around 0 and 1, too flat for a softmax to teach with. So in a second exchange a
    scale is chosen: the server sends the solution and a grid of scales, each client answers with its sum of
    cross-entropies at each of them, and the server takes the scale of the least total. The logits in it are
    leave-one-out ones, for a head is overconfident on images that it was fitted to.

    Args:
        regularization: The penalty, relative to the features' mean variance; > 0.
    """

    regularization: float = 1e-2

    def __post_init__(self) -> None:
        check_range("regularization", self.regularization, low=0, low_open=True)

    def fit(self, features: np.ndarray, targets: Tensor, shards: Sequence[np.ndarray], num_classes: int) -> FittedHead:
        """Fit the head: see `FederatedHead.fit`."""
        clients = [shard for shard in shards if len(shard)] or [np.empty(0, np.int64)]

        def private(shard: np.ndarray) -> tuple[Tensor, Tensor]:
            return torch.from_numpy(np.asarray(features[shard])), targets[torch.from_numpy(shard)]

        sent = [RidgeStatistics.from_features(*private(shard), num_classes) for shard in clients]
        solution = solve_ridge(reduce(add, sent), self.regularization)

        scales = scale_grid()
        losses = [scale_losses(solution, *private(shard), scales) for shard in clients]
        best = scales[torch.stack(losses).sum(0).argmin()]

        return FittedHead(
            LinearClassifier(solution.weight, solution.bias, float(best)),
            bytes_up=sum(statistics.num_bytes for statistics in sent) + sum(8 * len(loss) for loss in losses),
            bytes_down=len(clients) * (solution.num_bytes + 8 * len(scales)),
        )


class ZeroShotHead(nn.Module):
    """Compare image embeddings with one text embedding a class (Radford et al. 2021, arXiv 2103.00020).

    Unit features (B, D) -> logits (B, K) = scale * x T^T + bias.

    Args:
        text: T, one unit vector a class, (K, D).
        scale: The checkpoint's learnt inverse temperature.
        bias: SigLIP's learnt bias. The same for all classes, it changes no softmax, but a sigmoid.
    """

    text: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, text: Tensor, scale: float, bias: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("text", text.float())
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.register_buffer("bias", torch.tensor(float(bias)))

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, K)."""
        return self.scale * (features.float() @ self.text.T) + self.bias


def scale_grid() -> Tensor:
    """Return the scales that are tried: 1 to 256, four an octave, float64 (33,)."""
    return 2 ** torch.arange(0, 8.25, 0.25, dtype=torch.float64)


def scale_losses(solution: RidgeSolution, features: Tensor, targets: Tensor, scales: Tensor) -> Tensor:
    """Return what a client answers: its summed cross-entropy of scaled leave-one-out logits at each scale, float64."""
    logits = solution.leave_one_out(features, targets)
    return torch.stack([F.cross_entropy(scale * logits, targets, reduction="sum") for scale in scales])
