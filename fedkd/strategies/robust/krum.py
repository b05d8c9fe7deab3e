"""Krum: Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017.

arXiv 1703.02757, section 4: a client's score is the sum of squared distances from its delta to the n - f - 2 nearest
others; Krum takes the delta with the lowest score, Multi-Krum the mean of the m lowest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedkd.core.errors import FedKDError, check_range
from fedkd.core.messages import ClientUpdate, ServerState
from fedkd.core.tensors import Tensors
from fedkd.strategies.base import Strategy


class MultiKrum(Strategy):
    """The plain mean of the clients whose deltas lie closest together; the others are left out of the round.

    Selected clients have the same weight, whatever their numbers of examples; their buffers are averaged too.

    Args:
        num_byzantine: f, how many of a cohort may be attackers, >= 0. Cohorts need more than 2 f + 2 clients.
        num_selected: m, how many clients to average, >= 1; None takes all but f.

    Raises:
        FedKDError: For a cohort that is too small for f or m.
    """

    decides = frozenset({"client_weights", "combine"})
    is_robust = True

    def __init__(self, num_byzantine: int = 1, num_selected: int | None = None) -> None:
        check_range("num_byzantine", num_byzantine, low=0, whole=True)
        if num_selected is not None:
            check_range("num_selected", num_selected, low=1, whole=True)
        self.num_byzantine, self.num_selected = num_byzantine, num_selected

    def check_cohort(self, num_clients: int) -> None:
        """Refuse a cohort that is too small."""
        f = self.num_byzantine
        if num_clients <= 2 * f + 2:
            raise FedKDError(f"num_byzantine {f} needs a cohort of more than {2 * f + 2} clients, got {num_clients}.")
        if self.num_selected is not None and self.num_selected > num_clients:
            raise FedKDError(f"num_selected must be <= {num_clients}, the cohort's size, got {self.num_selected}.")

    def client_weights(self, updates: Sequence[ClientUpdate]) -> list[float]:
        """Return 1 for those selected and 0 for the others; on equal scores the first client wins."""
        n, f = len(updates), self.num_byzantine
        self.check_cohort(n)
        m = n - f if self.num_selected is None else self.num_selected
        nearest = squared_distances(updates).sort(dim=1).values[:, 1 : n - f - 1]  # the first is the distance to itself
        selected = nearest.sum(dim=1).sort(stable=True).indices[:m].tolist()
        return [float(i in selected) for i in range(n)]

    def combine(self, state: ServerState, updates: Sequence[ClientUpdate], weights: Sequence[float]) -> Tensors:
        """Return the mean of those selected: the rule is in `client_weights`, and allows no other."""
        return super().combine(state, updates, weights)


class Krum(MultiKrum):
    """The one client whose delta lies closest to the others.

    Args:
        num_byzantine: f, how many of a cohort may be attackers, >= 0. Cohorts need more than 2 f + 2 clients.
    """

    def __init__(self, num_byzantine: int = 1) -> None:
        super().__init__(num_byzantine, num_selected=1)


def squared_distances(updates: Sequence[ClientUpdate]) -> Tensor:
    """Return the squared distances between all deltas, float64 (n, n)."""
    total = torch.zeros(len(updates), len(updates), dtype=torch.float64)
    for name in updates[0].delta:
        values = torch.stack([update.delta[name].flatten() for update in updates]).double()  # (n, P)
        # by differences: products would lose the small distances between large deltas
        total += torch.cdist(values, values, compute_mode="donot_use_mm_for_euclid_dist").square()
    return total
