"""FedNova: Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization".

arXiv 2007.07481, section 4. Client i's delta is -lr G_i a_i: its gradients G_i, and a_i, what SGD made of each of them.
FedAvg leans to clients with many steps; FedNova averages d_i = delta_i / ||a_i||_1 instead and goes as far as FedAvg
would: w_{t+1} = w_t + (sum_i p_i ||a_i||_1) sum_i p_i delta_i / ||a_i||_1, with p_i = n_i / n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Trainer

from fedkd.core.errors import FedKDError
from fedkd.core.messages import ClientTask, ClientUpdate, ServerState
from fedkd.core.tensors import Tensors, weighted_mean
from fedkd.strategies.base import Strategy

SUM = "accumulation"


class FedNova(Strategy):
    """Average the clients' deltas a step, so that who takes more steps weighs no more; FedAvg where steps are equal.

    Momentum of the clients' SGD is counted in, dampened or Nesterov's too, and each client sends one number more,
    ||a_i||_1. Under any other optimizer, such as Adam, whose delta is no fixed sum of gradients, every step counts 1.
    Weight decay and a proximal term are taken for parts of the objective, not for parts of a_i.
    """

    def finalize_update(self, update: ClientUpdate, task: ClientTask, trainer: Trainer) -> ClientUpdate:
        """Add ||a_i||_1."""
        total = torch.tensor(accumulation(trainer.optimizers[0], update.num_steps), dtype=torch.float64)
        return replace(update, extras={**update.extras, SUM: total})

    def combine(self, state: ServerState, updates: Sequence[ClientUpdate], weights: Sequence[float]) -> Tensors:
        """Return the normalised average; a client that took no step adds nothing."""
        total = sum(weights)
        sums = [float(update.extras[SUM]) for update in updates]
        if not any(sums):
            return super().combine(state, updates, weights)
        length = sum(w / total * a for w, a in zip(weights, sums, strict=True))
        shares = [w / total * length / a if a else 0.0 for w, a in zip(weights, sums, strict=True)]
        mean, scale = weighted_mean([update.delta for update in updates], shares), sum(shares)
        return {name: scale * value for name, value in mean.items()}


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
