"""The base of server optimizers: the clients' mean delta is taken for a (negative) gradient.

Reddi et al., "Adaptive Federated Optimization", arXiv 2003.00295, algorithm 1: w_{t+1} = ServerOpt(w_t, -Delta_t).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from fedkd.core.errors import check_range
from fedkd.core.messages import ServerState, with_prefix, without_prefix
from fedkd.core.tensors import Tensors, add_scaled
from fedkd.strategies.base import Strategy


class ServerOptimizer(Strategy, ABC):
    """Steps along a direction made of this and earlier rounds' deltas. Buffers are averaged as in FedAvg.

    It remembers moments, float32 tensors under ``moment/parameter``.

    Args:
        server_lr: The server's learning rate, > 0.
    """

    decides = frozenset({"step"})

    def __init__(self, server_lr: float) -> None:
        check_range("server_lr", server_lr, low=0, low_open=True)
        self.server_lr = server_lr

    @abstractmethod
    def first_moments(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensors]:
        """Return the moments before the first round, by name."""

    @abstractmethod
    def direction(
        self, delta: Mapping[str, Tensor], moments: Mapping[str, Tensors]
    ) -> tuple[Tensors, dict[str, Tensors]]:
        """Return the step for a learning rate of 1, and the moments after it.

        Args:
            delta: The round's, by parameter.
            moments: Those after the last round.
        """

    def step(self, state: ServerState, delta: Mapping[str, Tensor]) -> tuple[Tensors, Mapping[str, Tensor]]:
        """Return ``parameters + server_lr * direction``, and the moments."""
        parameters = state.weights.parameters
        first = self.first_moments(parameters)
        moments = {name: without_prefix(state.memory, name) for name in first} if state.memory else first
        direction, moments = self.direction(delta, moments)
        memory: Tensors = {}
        for name, tensors in moments.items():
            memory |= with_prefix(tensors, name)
        return add_scaled(parameters, direction, self.server_lr), memory
