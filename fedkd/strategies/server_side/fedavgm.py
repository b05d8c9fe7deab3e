"""FedAvgM: Hsu et al., "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification".

arXiv 1909.06335, section 4.3: v_t = beta v_{t-1} + Delta_t, w_{t+1} = w_t + v_t, with Delta_t the mean delta.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedkd.core.errors import check_range
from fedkd.core.tensors import Tensors, add_scaled
from fedkd.strategies.server_side.server_optimizer import ServerOptimizer


class FedAvgM(ServerOptimizer):
    """FedAvg with momentum on the server; with a momentum of 0, and server_lr 1, it is FedAvg.

    Args:
        momentum: beta, in [0, 1). In the long run steps grow to 1 / (1 - beta) of a delta.
        server_lr: The server's learning rate, > 0; 1 is the paper's.
    """

    def __init__(self, momentum: float = 0.9, server_lr: float = 1.0) -> None:
        super().__init__(server_lr)
        check_range("momentum", momentum, low=0, high=1, high_open=True)
        self.momentum = momentum

    def first_moments(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensors]:
        """Return a velocity of zero."""
        zeros = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in parameters.items()}
        return {"velocity": zeros}

    def direction(
        self, delta: Mapping[str, Tensor], moments: Mapping[str, Tensors]
    ) -> tuple[Tensors, dict[str, Tensors]]:
        """Return the velocity."""
        velocity = add_scaled(delta, moments["velocity"], self.momentum)
        return velocity, {"velocity": velocity}
