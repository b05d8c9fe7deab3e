"""FedProx: Li et al., "Federated Optimization in Heterogeneous Networks".

arXiv 1812.06127, equation 2: client k minimizes F_k(w) + (mu / 2) ||w - w_t||^2, where w_t is the global student.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from fedkd.core.errors import check_range
from fedkd.core.messages import ClientTask, LocalRule, ServerState
from fedkd.strategies.base import Strategy
from fedkd.strategies.client_side.gradients import GradientCorrection


class FedProx(Strategy):
    """Keep every client near the global student by a proximal term; with ``proximal_mu`` 0 it is FedAvg, bit for bit.

    The term's gradient, mu (w - w_t), is added before each optimizer step, which equals the term in the loss. It acts
    on all trainable parameters. (The paper also varies the amount of work per client, which is not part of this class.)

    Args:
        proximal_mu: The paper's mu >= 0.

    Raises:
        FedKDError: If it is negative.
    """

    def __init__(self, proximal_mu: float = 0.01) -> None:
        check_range("proximal_mu", proximal_mu, low=0)
        self.proximal_mu = proximal_mu

    def local_rule(self, state: ServerState, client: int) -> LocalRule:
        """Return the rule that adds the term."""
        return ProximalRule(self.proximal_mu)


@dataclass(frozen=True)
class ProximalRule(LocalRule):
    """Adds the proximal term.

    Args:
        mu: Its weight.
    """

    mu: float

    def callbacks(self, task: ClientTask) -> list[Callback]:
        """Return the term, if it has any weight."""
        return [ProximalTerm(self.mu, task.weights.parameters)] if self.mu else []


class ProximalTerm(GradientCorrection):
    """Adds ``mu * (w - center)`` to the gradients.

    Args:
        mu: Twice the weight of the squared distance.
        center: The parameters to stay near, by name.
    """

    def __init__(self, mu: float, center: Mapping[str, Tensor]) -> None:
        self.mu = mu
        self.center = center

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, list[Tensor]]:
        """Bring the center to the parameters' device."""
        return {"center": self.like_parameters(self.center)}

    def correct(
        self,
        gradients: list[Tensor],
        parameters: Sequence[Tensor],
        memory: Mapping[str, list[Tensor]],
        scale: float,
    ) -> None:
        """Add the term's gradient."""
        away = torch._foreach_sub(list(parameters), memory["center"])
        torch._foreach_add_(gradients, away, alpha=self.mu * scale)
