"""FedDyn: Acar et al., "Federated Learning Based on Dynamic Regularization".

arXiv 2111.04263, algorithm 1. Client k minimizes L_k(w) - <h_k, w> + (a / 2) ||w - w_t||^2 from the global student w_t,
and then sets h_k <- h_k - a (w_k - w_t), so that h_k becomes its gradient where it stopped. The server sets
h <- h - a sum_k p_k (w_k - w_t) and w_{t+1} = mean_k w_k - h / a. At a fixed point h = 0 and the clients' gradients
cancel, so the fixed point is the optimum on all data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from fedkd.core.errors import check_range
from fedkd.core.messages import ClientTask, ClientUpdate, LocalRule, ServerState
from fedkd.core.tensors import Tensors, add_scaled, weighted_mean
from fedkd.strategies.base import Strategy
from fedkd.strategies.client_side.fedprox import ProximalTerm


class FedDyn(Strategy):
    """Align every client's optimum with the global one by a linear term that is updated each round.

    The paper weights all clients equally. Here p_k is the client's share of all images (`ServerState.shares`), and the
    mean has the same weights, so the optimum is that of training on all images. The paper's clients minimize fully; a
    few local steps do so in part. Between rounds a client keeps h_k and the server h, each of the parameters' size.

    Args:
        regularization: The paper's alpha > 0, a above (``alpha`` is the Dirichlet concentration in fedkd). Small
            values follow the clients more: the server's step grows with 1/a.

    Raises:
        FedKDError: If it is not positive.
    """

    decides = frozenset({"step"})
    reads_updates = True

    def __init__(self, regularization: float = 0.01) -> None:
        check_range("regularization", regularization, low=0, low_open=True)
        self.regularization = regularization

    def local_rule(self, state: ServerState, client: int) -> LocalRule:
        """Return the rule that adds the two terms."""
        return DynamicRule(self.regularization)

    def remember(self, state: ServerState, updates: Sequence[ClientUpdate]) -> Mapping[str, Tensor]:
        """Update h, which starts at 0, by the cohort's share of all images."""
        shares = state.shares(updates)
        mean = weighted_mean([update.delta for update in updates], shares)
        return moved(state.memory, mean, -self.regularization * sum(shares))

    def step(self, state: ServerState, delta: Mapping[str, Tensor]) -> tuple[Tensors, Mapping[str, Tensor]]:
        """Return the old parameters plus the delta minus h / a."""
        corrected = add_scaled(delta, state.memory, -1 / self.regularization)
        return add_scaled(state.weights.parameters, corrected), state.memory


@dataclass(frozen=True)
class DynamicRule(LocalRule):
    """Adds the linear and the proximal term, and updates the client's h_k.

    Args:
        regularization: a.
    """

    regularization: float

    def callbacks(self, task: ClientTask) -> list[Callback]:
        """Return the two terms."""
        return [DynamicTerm(self.regularization, task.weights.parameters, task.client_state)]

    def finish(self, update: ClientUpdate, task: ClientTask, trainer: Trainer) -> ClientUpdate:
        """Keep the client's next h_k."""
        return replace(update, client_state=moved(task.client_state, update.delta, -self.regularization))


class DynamicTerm(ProximalTerm):
    """Adds ``a * (w - center) - h`` to the gradients.

    Args:
        regularization: a.
        center: The global parameters, by name.
        h: The client's, likewise; empty is zero.
    """

    def __init__(self, regularization: float, center: Mapping[str, Tensor], h: Mapping[str, Tensor]) -> None:
        super().__init__(regularization, center)
        self.h = h

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, list[Tensor]]:
        """Move center and h to the parameters' device."""
        found = super().prepare(trainer, pl_module)
        return {**found, "h": self.like_parameters(self.h)} if self.h else found

    def correct(
        self,
        gradients: list[Tensor],
        parameters: Sequence[Tensor],
        memory: Mapping[str, list[Tensor]],
        scale: float,
    ) -> None:
        """Add the gradients of both terms."""
        super().correct(gradients, parameters, memory, scale)
        if "h" in memory:
            torch._foreach_add_(gradients, memory["h"], alpha=-scale)


def moved(base: Mapping[str, Tensor], step: Mapping[str, Tensor], scale: float) -> Tensors:
    """Return ``base + scale * step`` by name; an empty base is zero."""
    return {name: base.get(name, torch.zeros(())) + scale * value for name, value in step.items()}
