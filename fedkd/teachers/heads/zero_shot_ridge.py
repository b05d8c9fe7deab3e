"""Zero-shot logits of a dual encoder plus a ridge head fitted to the clients' labels."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedkd.core.errors import FedKDError
from fedkd.core.messages import ClientTask, ClientUpdate, with_prefix, without_prefix
from fedkd.data.site import ClientSite
from fedkd.teachers.heads.calibration import best, loss_sums, scale_grid
from fedkd.teachers.heads.clients import HeadClients, features_of, privacy_of
from fedkd.teachers.heads.head import FittedHead
from fedkd.teachers.heads.modules import ZeroShotHead
from fedkd.teachers.heads.ridge import RidgeHead, unseen_logits

ZERO_SHOT_WEIGHTS = (1.0, 0.5, 0.25, 0.0)
"""The candidate weights of the zero-shot logits, which have the checkpoint's own temperature."""


class SumOfHeads(nn.Module):
    """Logits (B, K) = weight * zero_shot(x) + ridge(x).

    Args:
        zero_shot: Features (B, D) -> logits (B, K).
        ridge: Features (B, D) -> logits (B, K), already scaled.
        weight: The weight of the zero-shot logits.
    """

    def __init__(self, zero_shot: nn.Module, ridge: nn.Module, weight: float) -> None:
        super().__init__()
        self.zero_shot, self.ridge, self.weight = zero_shot, ridge, weight

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, K)."""
        return self.weight * self.zero_shot(features) + self.ridge(features)


@dataclass(frozen=True)
class ZeroShotRidge(RidgeHead):
    """Zero-shot logits plus a ridge head on the same image embeddings, for a `ZeroShotTeacher`.

    The logits are a z + s r, with the zero-shot logits z and the ridge's leave-one-out logits r. The second exchange
    chooses the weight a and the scale s together from a grid. The grid contains pure zero-shot (s = 0) and pure ridge
    (a = 0), so on unseen images of the clients the choice is no worse than either. The server sends the zero-shot head
    with the grid, 4 (D K + 2) bytes per client, so clients do not run the text tower.

    Args:
        regularization: See `RidgeHead`.
        privacy: See `RidgeHead`.
        standardize: See `RidgeHead`.
        class_balanced: See `RidgeHead`.
    """

    def starting_from(self, head: nn.Module) -> ZeroShotRidge:
        """Return this method with the zero-shot head that the ridge head is added to."""
        method = copy.copy(self)
        object.__setattr__(method, "_zero_shot", head)
        return method

    def fit(self, clients: HeadClients) -> FittedHead:
        """Fit the head: see `FederatedHead.fit`."""
        zero_shot: nn.Module | None = getattr(self, "_zero_shot", None)
        if not isinstance(zero_shot, ZeroShotHead):
            raise FedKDError("ZeroShotRidge needs a teacher with a text tower: use ZeroShotTeacher(..., head=...).")
        balance = self._balance(clients)
        solution, regularization = self._regress(clients, balance)
        scales = torch.cat([torch.zeros(1, dtype=torch.float64), scale_grid(steps=1 if self.privacy else 4)])
        pairs = [(weight, float(scale)) for weight in ZERO_SHOT_WEIGHTS for scale in scales]
        grid = torch.tensor(pairs, dtype=torch.float64)  # (G, 2)
        words = {name: value.cpu() for name, value in zero_shot.state_dict().items()}
        extras = {**self._sent(solution), **balance, "grid": grid, **with_prefix(words, "words")}
        answers = clients.run(send_pair_losses, extras, privacy=self.privacy)
        weight, scale = grid[best([answer.extras["losses"] for answer in answers], self.privacy)].tolist()
        return FittedHead(
            SumOfHeads(zero_shot, self._module(solution, scale), weight),
            sends=f"{self._sends}; then its loss at {len(grid)} pairs of weight and scale",
            chosen={"regularization": regularization, "scale": scale, "zero_shot_weight": weight},
        )


def send_pair_losses(site: ClientSite, task: ClientTask) -> ClientUpdate:
    """Send the client's summed loss at each pair of a zero-shot weight a and a ridge scale s: ``extras["losses"]``.

    Args:
        site: The client's site.
        task: ``extras`` hold the solution (`RidgeHead`), the ``grid`` of pairs (G, 2), and the zero-shot head.
    """
    ridge, targets = unseen_logits(site, task), site.rows.targets
    text = without_prefix(task.extras, "words")
    zero_shot = ZeroShotHead(text["text"], float(text["scale"]), float(text["bias"]))
    with torch.no_grad():
        words = zero_shot(features_of(site, task, clip=False).float()).double()
    candidates = (float(a) * words + float(s) * ridge for a, s in task.extras["grid"])
    losses = loss_sums(candidates, targets, privacy_of(task), task.client, task.extras.get("class_weights"))
    return ClientUpdate(task.client, len(site.rows), extras={"losses": losses})
