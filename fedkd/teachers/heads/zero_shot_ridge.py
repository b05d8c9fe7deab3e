"""Zero-shot and ridge together: what a dual encoder knows by words, and what the clients' labels add."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.core.errors import FedKDError
from fedkd.teachers.heads.calibration import best, loss_sums, scale_grid
from fedkd.teachers.heads.head import FittedHead, RidgeHead, Shards

ZERO_SHOT_WEIGHTS = (1.0, 0.5, 0.25, 0.0)
"""What the zero-shot logits, at the checkpoint's own temperature, are multiplied with."""


class SumOfHeads(nn.Module):
    """Logits (B, K) = weight * zero_shot(x) + ridge(x).

    Args:
        zero_shot: Features (B, D) -> logits (B, K).
        ridge: Likewise, scaled already.
        weight: Of the zero-shot logits.
    """

    def __init__(self, zero_shot: nn.Module, ridge: nn.Module, weight: float) -> None:
        super().__init__()
        self.zero_shot, self.ridge, self.weight = zero_shot, ridge, weight

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, K)."""
        return self.weight * self.zero_shot(features) + self.ridge(features)


@dataclass(frozen=True)
class ZeroShotRidge(RidgeHead):
    """Zero-shot logits plus a ridge head on the same image embeddings; for a `ZeroShotTeacher`.

    The second exchange chooses two numbers at once, from a grid: the weight a of the zero-shot logits z and the scale s
    of the ridge's leave-one-out ones r, for logits a z + s r. The grid holds pure zero-shot (s = 0) and pure ridge
    (a = 0), so on unseen images of the clients the choice is no worse than either.

    Args:
        regularization: See `RidgeHead`.
        privacy: See `RidgeHead`.
    """

    def starting_from(self, head: nn.Module) -> ZeroShotRidge:
        """Return this method with the zero-shot head that it adds to."""
        method = copy.copy(self)
        object.__setattr__(method, "_zero_shot", head)
        return method

    def fit(self, features: np.ndarray, targets: Tensor, shards: Sequence[np.ndarray], num_classes: int) -> FittedHead:
        """Fit the head: see `FederatedHead.fit`."""
        zero_shot: nn.Module | None = getattr(self, "_zero_shot", None)
        if zero_shot is None:
            raise FedKDError("ZeroShotRidge needs a teacher with a text tower: give it to ZeroShotTeacher(head=...).")
        data = Shards(features, targets, shards, self.privacy)
        solution, regularization, bytes_up = self._regress(data, num_classes)
        scales = torch.cat([torch.zeros(1, dtype=torch.float64), scale_grid(steps=1 if self.privacy else 4)])
        grid = [(weight, float(scale)) for weight in ZERO_SHOT_WEIGHTS for scale in scales]

        answers = []
        for client, shard in data.clients.items():
            x, y = data.rows(shard)
            ridge = self._unseen(solution, x, y)
            with torch.no_grad():
                words = zero_shot.cpu()(data.rows(shard, clip=False)[0].float()).double()
            answers.append(loss_sums((a * words + s * ridge for a, s in grid), y, self.privacy, client))
        weight, scale = grid[best(answers, self.privacy)]
        return FittedHead(
            SumOfHeads(zero_shot, self._module(solution, scale), weight),
            bytes_up=bytes_up + sum(8 * len(answer) for answer in answers),
            bytes_down=len(data) * (self._bytes_down(solution) + 16 * len(grid)),
            sends=f"{self._sends}; then its loss at {len(grid)} pairs of weight and scale",
            chosen={"regularization": regularization, "scale": scale, "zero_shot_weight": weight},
        )
