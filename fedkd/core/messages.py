"""The values that travel between the server, the backend and the clients. All are frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fedkd.core.tensors import num_bytes


@dataclass(frozen=True)
class ServerState:
    """What the server holds between two rounds, and all that a round checkpoint needs of it.

    Attributes:
        round: Number of rounds that are done; the next one has this index.
        parameters: The global student's parameters, by name.
        buffers: Its persistent buffers (BatchNorm statistics), by name.
        client_states: What a strategy keeps for each client between rounds, by client.
        num_examples: Images of all clients together, those of no cohort included; 0 where it is not known.
    """

    round: int
    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    client_states: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)
    num_examples: int = 0

    def shares(self, updates: Sequence[ClientUpdate]) -> list[float]:
        """Return each update's part of all clients' images, in (0, 1]; where that is not known, of the cohort's.

        They sum to 1 where every client took part, and to less for a sampled cohort: what a server sums up over rounds
        (a control variate) then moves as far as the cohort is a part of all.
        """
        total = self.num_examples or sum(update.num_examples for update in updates)
        return [update.num_examples / total for update in updates]


@dataclass(frozen=True)
class ClientTask:
    """What one client is given to do in one round.

    Attributes:
        round: The round, 0-based.
        client: The client's index.
        parameters: The global student's parameters.
        buffers: Its buffers.
        extras: What the strategy broadcasts beside the student.
        client_state: What the strategy kept for this client; it stays with the client and does not travel.
    """

    round: int
    client: int
    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    client_state: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Bytes that go down to the client."""
        return num_bytes(self.parameters, self.buffers, self.extras)


@dataclass(frozen=True)
class ClientUpdate:
    """What one client sends back.

    Attributes:
        client: The client's index.
        num_examples: Images of its shard.
        num_steps: Optimizer steps that it took.
        delta: Local minus global parameters, float32, by name.
        buffers: The local buffers.
        metrics: Mean of each training term over the client's last epoch, and ``seconds``.
        extras: What the strategy sends beside the student.
        client_state: What the strategy keeps for this client; it does not travel.
    """

    client: int
    num_examples: int
    num_steps: int
    delta: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    metrics: Mapping[str, float]
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    client_state: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Bytes that go up to the server."""
        return num_bytes(self.delta, self.buffers, self.extras)

    @property
    def is_finite(self) -> bool:
        """Whether training stayed finite, in all that is sent."""
        sent = (value for tensors in (self.delta, self.buffers, self.extras) for value in tensors.values())
        return all(bool(value.isfinite().all()) for value in sent)


Metrics = dict[str, Any]
