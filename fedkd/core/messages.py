"""What travels between a server and its clients: frozen values of tensors and plain numbers.

Every message has a byte form without pickle, safetensors with a JSON header: `to_bytes` and `from_bytes`.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fedkd.core.errors import FedKDError
from fedkd.core.tensors import all_finite, load_state, num_bytes, split_state

if TYPE_CHECKING:
    from lightning.pytorch import Callback, Trainer

Metrics = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Weights:
    """A model's state, parameters and buffers apart.

    Attributes:
        parameters: By name.
        buffers: Persistent buffers, such as BatchNorm statistics, by name.
    """

    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    buffers: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, module: nn.Module) -> Weights:
        """Copy a module's persistent state to the CPU."""
        return cls(*split_state(module))

    def load_into(self, module: nn.Module) -> None:
        """Overwrite the state of a module of the same kind."""
        load_state(module, self.parameters, self.buffers)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name, as in a ``state_dict``."""
        return {**self.parameters, **self.buffers}

    @property
    def is_finite(self) -> bool:
        """Whether no entry is infinite or NaN."""
        return all_finite(self.tensors.values())


@dataclass(frozen=True, eq=False)
class ServerState:
    """All that a run needs to go on after a round.

    Attributes:
        round: The number of finished rounds, which is the index of the next round.
        weights: The global student.
        memory: What the strategy remembers between rounds, by name.
        client_states: What the strategy remembers for each client, by client: in a run a
            `fedkd.core.client_states.ClientStates`, which reads from disk.
        num_examples: The number of all clients' training images, 0 if it is not known.
        cohort_size: The number of clients that were told to train in the round; some may have failed since. 0 if it is
            not known.
    """

    round: int
    weights: Weights
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    client_states: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)
    num_examples: int = 0
    cohort_size: int = 0

    def shares(self, updates: Sequence[ClientUpdate]) -> list[float]:
        """Return each update's share of all clients' images, in (0, 1]; of the cohort's images if N is not known.

        The shares sum to 1 if every client takes part, and to less for a sampled cohort. A sum over rounds, such as a
        control variate, then moves by the cohort's share of all images.
        """
        total = self.num_examples or sum(update.num_examples for update in updates)
        return [update.num_examples / total for update in updates]


@dataclass(frozen=True)
class LocalRule:
    """What a strategy does on a client. The base class does nothing: plain local training.

    A rule is a frozen dataclass of plain values, so it pickles and has a byte form. Tensors that it needs travel in the
    task: ``task.extras`` are the same for all clients, ``task.client_state`` belongs to this client.
    """

    def start(self, task: ClientTask) -> Weights:
        """Return the weights that local training starts from; the global student's by default.

        The update's delta is counted from the global weights in any case.
        """
        return task.weights

    def callbacks(self, task: ClientTask) -> list[Callback]:
        """Return fresh callbacks for the client's Trainer; none by default."""
        return []

    def finish(self, update: ClientUpdate, task: ClientTask, trainer: Trainer) -> ClientUpdate:
        """Return the update, completed with extras or with the client's new state; unchanged by default."""
        return update


@dataclass(frozen=True, eq=False)
class ClientTask:
    """What one client is told to do.

    Attributes:
        round: The round, 0-based.
        client: The client's index.
        weights: The model to start from.
        extras: Further tensors, by name.
        client_state: What the strategy remembers for this client. It stays with the client and costs no bytes.
        settings: Plain values (JSON).
        rule: What the strategy does on the client while it trains.
    """

    round: int
    client: int
    weights: Weights = field(default_factory=Weights)
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    client_state: Mapping[str, Tensor] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    rule: LocalRule = field(default_factory=LocalRule)

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors that go down to the client."""
        return num_bytes(self.weights.parameters, self.weights.buffers, self.extras)


@dataclass(frozen=True, eq=False)
class ClientUpdate:
    """What one client sends back.

    Attributes:
        client: The client's index.
        num_examples: The number of its training images.
        num_steps: Optimizer steps that it took.
        delta: Local minus global parameters, float32, by name.
        buffers: The local buffers, by name.
        metrics: Plain numbers by name: the mean of each training term over the last epoch, and ``seconds``.
        extras: Further tensors, by name.
        client_state: What the strategy is to remember for this client from now on: None leaves it as it is, an empty
            mapping clears it. It stays with the client and costs no bytes.
    """

    client: int
    num_examples: int = 0
    num_steps: int = 0
    delta: Mapping[str, Tensor] = field(default_factory=dict)
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    client_state: Mapping[str, Tensor] | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors that go up to the server."""
        return num_bytes(self.delta, self.buffers, self.extras)

    @property
    def is_finite(self) -> bool:
        """Whether no entry of what is sent, or is to be remembered, is infinite or NaN."""
        kept = self.client_state or {}
        parts = (self.delta, self.buffers, self.extras, kept)
        return all_finite(value for tensors in parts for value in tensors.values())


@dataclass(frozen=True)
class ClientFailure:
    """A client that failed in a round that went on without it.

    Attributes:
        client: The client.
        round: The round.
        reason: What happened.
    """

    client: int
    round: int
    reason: str


Work = Callable[[Any, ClientTask], ClientUpdate]
"""What a client does with a task: a module-level function ``work(site, task) -> update``."""


class Exchange(Protocol):
    """Sends one task to each of some clients and returns their updates, ordered by client."""

    def __call__(self, work: Work, tasks: Sequence[ClientTask], min_updates: int | None = None) -> list[ClientUpdate]:
        """Run ``work(site, task)`` for every task, at the task's client. ``min_updates`` must succeed; None is all."""
        ...

    def stream(self, work: Work, tasks: Sequence[ClientTask], min_updates: int | None = None) -> Iterator[ClientUpdate]:
        """Do the same, and yield each update once those of the clients before it were yielded."""
        ...


Message = TypeVar("Message", Weights, ServerState, ClientTask, ClientUpdate)

_HEADER = "fedkd"


def to_bytes(
    message: Weights | ServerState | ClientTask | ClientUpdate, metadata: Mapping[str, str] | None = None
) -> bytes:
    """Return a message as bytes: its tensors as safetensors, all else as JSON in the header. No pickle is involved.

    Args:
        message: The message.
        metadata: Further text to keep in the header, for `metadata_of`.
    """
    header, tensors = to_parts(message)
    # safetensors wants contiguous tensors of storages of their own; the same tensor may stand in two places
    named = {str(i): value.detach().cpu().contiguous().clone() for i, value in enumerate(tensors)}
    return safetensors.torch.save(named, metadata={**(metadata or {}), _HEADER: header})


def from_bytes(kind: type[Message], data: bytes) -> Message:
    """Return the message that `to_bytes` wrote.

    Args:
        kind: The message's class.
        data: The bytes.

    Raises:
        FedKDError: If the bytes are no such message.
    """
    try:
        named = safetensors.torch.load(data)
        return from_parts(kind, metadata_of(data)[_HEADER], [named[str(i)] for i in range(len(named))])
    except (SafetensorError, ValueError, KeyError) as error:
        raise FedKDError(f"These {len(data)} bytes are not a message of fedkd: {error}") from error


def to_parts(message: Weights | ServerState | ClientTask | ClientUpdate) -> tuple[str, list[Tensor]]:
    """Return a message as JSON and the tensors that it refers to by their numbers."""
    tensors: list[Tensor] = []
    return json.dumps(_encode(message, tensors)), tensors


def from_parts(kind: type[Message], header: str, tensors: Sequence[Tensor]) -> Message:
    """Return the message that `to_parts` took apart.

    Args:
        kind: The message's class.
        header: The JSON.
        tensors: The tensors.

    Raises:
        FedKDError: If they are no such message.
    """
    try:
        message = _decode(json.loads(header), tensors)
    except (ValueError, LookupError, TypeError, AttributeError, ImportError, RecursionError) as error:
        raise FedKDError(f"This is not a message of fedkd: {type(error).__name__}: {error}") from error
    if not isinstance(message, kind):
        raise FedKDError(f"A {kind.__name__} was expected, got a {type(message).__name__}.")
    if isinstance(message, ClientUpdate):
        _check_fields(message)
    return message


def _check_fields(update: ClientUpdate) -> None:
    """Raise if a field of an update that came as bytes is not of its kind: what reads it relies on that."""
    for name in ("client", "num_examples", "num_steps"):
        value = getattr(update, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise FedKDError(f"An update's {name} must be a whole number >= 0, got {value!r}.")
    for name in ("delta", "buffers", "extras", "client_state"):
        tensors = getattr(update, name)
        if tensors is None and name == "client_state":
            continue
        if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
            raise FedKDError(f"An update's {name} must be tensors by name.")
    metrics: Any = update.metrics
    if not isinstance(metrics, Mapping) or not all(isinstance(value, int | float) for value in metrics.values()):
        raise FedKDError("An update's metrics must be numbers by name.")


def metadata_of(data: bytes) -> dict[str, str]:
    """Return the text in the header of a message's bytes.

    Raises:
        ValueError: If the bytes have no such header.
    """
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length])["__metadata__"]


_KINDS: dict[str, type] = {kind.__name__: kind for kind in (Weights, ServerState, ClientTask, ClientUpdate)}


def _encode(value: Any, tensors: list[Tensor]) -> Any:
    """Return a JSON-able form of a value; tensors are appended to the list and stand as their numbers."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return {"t": len(tensors) - 1}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str | int) for key in value):
            raise FedKDError(f"A message holds mappings by name or number, got {list(value)!r}.")
        return {"m": [[key, _encode(item, tensors)] for key, item in value.items()]}
    if is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        name = kind.__name__ if kind in _KINDS.values() else f"{kind.__module__}:{kind.__qualname__}"
        return {"o": name, "f": {f.name: _encode(getattr(value, f.name), tensors) for f in fields(value)}}
    if isinstance(value, list | tuple):
        return {"l" if isinstance(value, list) else "u": [_encode(item, tensors) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise FedKDError(f"A message holds tensors and plain values, got {value!r}.")


def _decode(value: Any, tensors: Sequence[Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "t" in value:
        return tensors[value["t"]]
    if "m" in value:
        return {key: _decode(item, tensors) for key, item in value["m"]}
    if "l" in value:
        return [_decode(item, tensors) for item in value["l"]]
    if "u" in value:
        return tuple(_decode(item, tensors) for item in value["u"])
    name = value["o"]
    kind = _KINDS.get(name) or _local_rule(name)
    return kind(**{key: _decode(item, tensors) for key, item in value["f"].items()})


def _local_rule(name: str) -> type:
    """Return the class of a rule by ``module:qualname``. A message can name no other class."""
    module, _, qualname = name.partition(":")
    if module.split(".")[0] == "fedkd":
        importlib.import_module(module)
    found: Any = sys.modules.get(module)  # a message never imports what is not fedkd's own
    for part in qualname.split("."):
        found = getattr(found, part)
    if not (isinstance(found, type) and issubclass(found, LocalRule)):
        raise FedKDError(f"A message holds messages and local rules, got {name!r}.")
    return found


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return tensors under ``prefix/name``."""
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors under ``prefix/name``, by name."""
    start = f"{prefix}/"
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


__all__ = [
    "ClientFailure",
    "ClientTask",
    "ClientUpdate",
    "Exchange",
    "LocalRule",
    "Metrics",
    "ServerState",
    "Weights",
    "Work",
    "from_bytes",
    "from_parts",
    "metadata_of",
    "to_bytes",
    "to_parts",
    "with_prefix",
    "without_prefix",
]
