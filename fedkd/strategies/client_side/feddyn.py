"""FedDyn: Acar et al., "Federated Learning Based on Dynamic Regularization".

arXiv 2111.04263, algorithm 1. Client k minimises L_k(w) - <h_k, w> + (a / 2) ||w - w_t||^2 from the global student w_t,
and then sets h_k <- h_k - a (w_k - w_t), so that h_k becomes its gradient where it stopped. The server sets
h <- h - a sum_k p_k (w_k - w_t) and w_{t+1} = mean_k w_k - h / a. Where nothing moves any more h = 0, and the clients'
gradients cancel: the optimum is that of all data, whatever each client's own is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from fedkd.core.errors import check_range
from fedkd.core.messages import ClientTask, ClientUpdate, ServerState
from fedkd.core.tensors import Tensors, add_scaled, weighted_mean
from fedkd.strategies.base import Strategy
from fedkd.strategies.client_side.fedprox import ProximalTerm
from fedkd.strategies.client_side.gradients import pick


class FedDyn(Strategy):
    """Align every client's optimum with the global one by a linear term that it learns; nothing more travels.

    The paper counts clients alike; here p_k is the client's part of all images (`ServerState.shares`), and the mean is
    weighted alike, so that the optimum is that of training on all images. The paper's clients minimise fully; a few
    local steps do it in part. A client keeps one copy of the parameters between rounds, h_k, and the server one, h.

    Args:
        regularization: The paper's alpha > 0, a above (``alpha`` is the Dirichlet concentration in fedkd). Small
            values trust the clients more: the server's step grows with 1/a.

    Raises:
        FedKDError: If it is not positive.
    """

    def __init__(self, regularization: float = 0.01) -> None:
        check_range("regularization", regularization, low=0, low_open=True)
        self.regularization = regularization
        self._h: Tensors = {}

    def start(self, state: ServerState) -> None:
        """Begin with h = 0."""
        self._h = {}

    def client_callbacks(self, task: ClientTask) -> list[Callback]:
        """Return the two terms."""
        return [DynamicTerm(self.regularization, task.parameters, task.client_state)]

    def finalize_update(self, update: ClientUpdate, task: ClientTask, trainer: Trainer) -> ClientUpdate:
        """Keep the client's next h_k."""
        return replace(update, client_state=moved(task.client_state, update.delta, -self.regularization))

    def absorb(self, state: ServerState, updates: Sequence[ClientUpdate]) -> None:
        """Move h by the cohort's part of the clients."""
        shares = state.shares(updates)
        mean = weighted_mean([update.delta for update in updates], shares)
        self._h = moved(self._h, mean, -self.regularization * sum(shares))

    def step(self, state: ServerState, delta: Mapping[str, Tensor]) -> Tensors:
        """Return the old parameters plus the delta minus h / a."""
        if not self._h:
            return super().step(state, delta)
        return add_scaled(state.parameters, add_scaled(delta, self._h, -1 / self.regularization))

    def state_dict(self) -> dict[str, Any]:
        """Return h."""
        return {"h": self._h}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore h."""
        self._h = dict(state["h"])


class DynamicTerm(ProximalTerm):
    """Adds ``a * (w - centre) - h`` to the gradients.

    Args:
        regularization: a.
        centre: The global parameters, by name.
        h: The client's, likewise; empty is zero.
    """

    def __init__(self, regularization: float, centre: Mapping[str, Tensor], h: Mapping[str, Tensor]) -> None:
        super().__init__(regularization, centre)
        self.h = h

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring centre and h to the parameters' device."""
        super().prepare(trainer, pl_module)
        self.linear = self.like_parameters(self.h) if self.h else None

    def correct(self, gradients: list[Tensor], present: Sequence[bool], scale: float) -> None:
        """Add the gradients of both terms."""
        super().correct(gradients, present, scale)
        if self.linear is not None:
            torch._foreach_add_(gradients, pick(self.linear, present), alpha=-scale)


def moved(base: Mapping[str, Tensor], step: Mapping[str, Tensor], scale: float) -> Tensors:
    """Return ``base + scale * step`` by name; an empty base is zero."""
    return {name: base.get(name, torch.zeros(())) + scale * value for name, value in step.items()}
