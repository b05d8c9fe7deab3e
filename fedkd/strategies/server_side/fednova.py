"""FedNova: Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization".

arXiv 2007.07481, section 4. Client i's delta is -lr G_i a_i: with its gradients G_i and the weights a_i that SGD gives
them. FedAvg favors clients with many steps; FedNova averages d_i = delta_i / ||a_i||_1 instead and goes as far as
FedAvg would: w_{t+1} = w_t + (sum_i p_i ||a_i||_1) sum_i p_i delta_i / ||a_i||_1, with p_i = n_i / n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch import Trainer

from fedkd.core.errors import FedKDError
from fedkd.core.messages import ClientTask, ClientUpdate, LocalRule, ServerState
from fedkd.core.tensors import Tensors, weighted_mean
from fedkd.strategies.base import Strategy

SUM = "accumulation"


class FedNova(Strategy):
    """Average the clients' deltas per step, so that more local steps give no more weight; FedAvg if steps are equal.

    a_i includes the momentum of the clients' SGD, with dampening or Nesterov too. Each client sends one more number,
    ||a_i||_1. With any other optimizer, such as Adam, whose delta is no fixed sum of gradients, every step counts 1.
    Weight decay and a proximal term count as parts of the objective, not of a_i.
    """

    decides = frozenset({"combine"})

    def local_rule(self, state: ServerState, client: int) -> LocalRule:
        """Return the rule that sends ||a_i||_1."""
        return StepCount()

    def combine(self, state: ServerState, updates: Sequence[ClientUpdate], weights: Sequence[float]) -> Tensors:
        """Return the normalized average; a client that took no step adds nothing."""
        total = sum(weights)
        sums = [float(update.extras[SUM]) for update in updates]
        if not any(sums):
            return super().combine(state, updates, weights)
        length = sum(w / total * a for w, a in zip(weights, sums, strict=True))
        shares = [w / total * length / a if a else 0.0 for w, a in zip(weights, sums, strict=True)]
        mean, scale = weighted_mean([update.delta for update in updates], shares), sum(shares)
        return {name: scale * value for name, value in mean.items()}


@dataclass(frozen=True)
class StepCount(LocalRule):
    """Sends ||a_i||_1 beside the delta."""

    def finish(self, update: ClientUpdate, task: ClientTask, trainer: Trainer) -> ClientUpdate:
        """Add ||a_i||_1."""
        total = torch.tensor(accumulation(trainer.optimizers[0], update.num_steps), dtype=torch.float64)
        return replace(update, extras={**update.extras, SUM: total})


def accumulation(optimizer: torch.optim.Optimizer, num_steps: int) -> float:
    """Return ||a||_1 of a client's optimizer: how far it goes in so many steps of gradient 1 at a learning rate of 1.

    For SGD with momentum rho it is (num_steps - rho (1 - rho^num_steps) / (1 - rho)) / (1 - rho), the paper's closed
    form; the recursion is torch's, and so holds for its other forms of momentum too.

    Args:
        optimizer: The client's.
        num_steps: How many steps it took.

    Raises:
        FedKDError: If parameter groups differ in momentum: one number does not describe them.
    """
    groups: list[dict[str, Any]] = optimizer.param_groups if isinstance(optimizer, torch.optim.SGD) else [{}]
    kinds = {tuple(float(group.get(key, 0)) for key in ("momentum", "dampening", "nesterov")) for group in groups}
    if len(kinds) > 1:
        raise FedKDError("FedNova needs one momentum for all parameters; the optimizer's groups differ in it.")
    momentum, dampening, nesterov = kinds.pop()
    total = velocity = 0.0
    for step in range(num_steps):
        velocity = momentum * velocity + (1 - dampening) if step else 1.0  # torch dampens from the second step on
        total += 1 + momentum * velocity if nesterov else velocity
    return total
