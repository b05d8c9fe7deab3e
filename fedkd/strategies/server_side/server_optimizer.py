"""The base of server optimisers: the clients' mean delta is taken for a (negative) gradient.

Reddi et al., "Adaptive Federated Optimization", arXiv 2003.00295, algorithm 1: w_{t+1} = ServerOpt(w_t, -Delta_t).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedkd.core.errors import check_range
from fedkd.core.messages import ServerState
from fedkd.core.tensors import Tensors, add_scaled
from fedkd.strategies.base import Strategy


class ServerOptimizer(Strategy, ABC):
    """Steps along a direction made of this and earlier rounds' deltas. Buffers are averaged as in FedAvg.

    Args:
        server_lr: The server's learning rate, > 0.

    Attributes:
        memory: What is remembered between rounds, float32 tensors by name of the moment, then of the parameter.
    """

    def __init__(self, server_lr: float) -> None:
        check_range("server_lr", server_lr, low=0, low_open=True)
        self.server_lr = server_lr
        self.memory: dict[str, Tensors] = {}

    @abstractmethod
    def first_memory(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensors]:
        """Return the memory before the first round."""

    @abstractmethod
    def direction(self, delta: Mapping[str, Tensor]) -> Tensors:
        """Take the round's delta into the memory and return the step for a learning rate of 1."""

    def start(self, state: ServerState) -> None:
        """Forget earlier rounds."""
        self.memory = self.first_memory(state.parameters)

    def step(self, state: ServerState, delta: Mapping[str, Tensor]) -> Tensors:
        """Return ``parameters + server_lr * direction``."""
        if not self.memory:
            self.start(state)
        return add_scaled(state.parameters, self.direction(delta), self.server_lr)

    def state_dict(self) -> dict[str, Any]:
        """Return the memory."""
        return {name: dict(tensors) for name, tensors in self.memory.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the memory back."""
        self.memory = {name: dict(tensors) for name, tensors in state.items()}
