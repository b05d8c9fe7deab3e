"""Rounds without clients: a state and updates that are written down, for tests of what the server makes of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedkd.core.messages import ClientUpdate, ServerState, Weights
from fedkd.strategies import Strategy


def state(*values: float, round: int = 0, **buffers: Tensor) -> ServerState:
    """Return a state with one parameter ``w``."""
    return ServerState(round, Weights({"w": torch.tensor(values)}, buffers))


def update(client: int, *delta: float, num_examples: int = 10, num_steps: int = 1, extras=None, **buffers: Tensor):
    """Return a client's update of ``w``."""
    return ClientUpdate(client, num_examples, num_steps, {"w": torch.tensor(delta)}, buffers, {}, extras or {})


def cohort(deltas: Sequence[float | Sequence[float]], **arguments) -> list[ClientUpdate]:
    """Return one update a delta."""
    deltas = [delta if isinstance(delta, Sequence) else [delta] for delta in deltas]
    return [update(client, *delta, **arguments) for client, delta in enumerate(deltas)]


def joined(strategy: Strategy, deltas: Sequence[float | Sequence[float]], **arguments) -> list[float]:
    """Return what a strategy makes of clients' deltas, from zero."""
    updates = cohort(deltas, **arguments)
    before = state(*[0.0] * len(updates[0].delta["w"]))
    return strategy.aggregate(before, updates).weights.parameters["w"].tolist()
