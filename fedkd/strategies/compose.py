"""Several strategies as one, such as SCAFFOLD on the clients under FedAdam on the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, Trainer
from torch import Tensor

from fedkd.core.errors import FedKDError
from fedkd.core.messages import ClientTask, ClientUpdate, ServerState
from fedkd.core.tensors import Tensors
from fedkd.strategies.base import Strategy

if TYPE_CHECKING:
    from fedkd.data import FederatedDataModule
    from fedkd.server.context import ServerContext
    from fedkd.training.module import DistillationModule

EXCLUSIVE = ("weights", "combine", "combine_buffers", "step")
"""The hooks that one strategy alone can decide."""


class Combine(Strategy):
    """Applies several strategies in their order; each sees its own extras, client states and memory only.

    What can be done one after the other is: the clients' starts, callbacks and updates, and what the server refines.
    How updates are weighted, combined and stepped along is decided by the one strategy that has something to say of
    it; an average where none has. Where one notes gradients that another changes, such as `SCAFFOLD` beside `FedProx`,
    it notes what those before it have made of them.

    Args:
        strategies: The parts.

    Raises:
        FedKDError: If there is none, or two of them decide the same.
    """

    def __init__(self, strategies: list[Strategy]) -> None:
        if not strategies:
            raise FedKDError("strategies is empty: Combine needs at least one.")
        self.strategies = strategies
        self._deciding: dict[str, int] = {}
        for hook in EXCLUSIVE:
            own = [i for i, each in enumerate(strategies) if decides(each, hook)]
            if len(own) > 1:
                names = " and ".join(type(strategies[i]).__name__ for i in own)
                raise FedKDError(f"{names} cannot be combined: each decides how updates are joined ({hook}).")
            if own:
                self._deciding[hook] = own[0]

        readers = [each for each in strategies if each.reads_updates()]
        for each in strategies:
            if each.private and (others := [type(other).__name__ for other in readers if other is not each]):
                raise FedKDError(
                    f"{type(each).__name__} cannot be combined with {' and '.join(others)}: it protects the clients' "
                    "updates, which the other reads."
                )
        self.private = any(each.private for each in strategies)  # type: ignore[misc]

    def reads_updates(self) -> bool:
        """Whether one of them does."""
        return any(each.reads_updates() for each in self.strategies)

    def check(self, module: DistillationModule, datamodule: FederatedDataModule, cohort_size: int) -> None:
        """Check all."""
        for each in self.strategies:
            each.check(module, datamodule, cohort_size)

    def start(self, state: ServerState) -> None:
        """Start all."""
        for each in self.strategies:
            each.start(state)

    def broadcast(self, state: ServerState) -> dict[str, Tensor]:
        """Return what all send."""
        sent = [(i, each.broadcast(state)) for i, each in enumerate(self.strategies)]
        return {f"{i}/{name}": value for i, tensors in sent for name, value in tensors.items()}

    def client_start(self, task: ClientTask) -> ClientTask:
        """Let each have its say of the start, in their order."""
        for i, each in enumerate(self.strategies):
            started = each.client_start(own_task(task, i))
            task = replace(task, parameters=started.parameters, buffers=started.buffers)
        return task

    def client_callbacks(self, task: ClientTask) -> list[Callback]:
        """Return the callbacks of all."""
        return [c for i, each in enumerate(self.strategies) for c in each.client_callbacks(own_task(task, i))]

    def finalize_update(self, update: ClientUpdate, task: ClientTask, trainer: Trainer) -> ClientUpdate:
        """Let each complete the update, in their order."""
        extras: Tensors = {}
        client_state: Tensors = {}
        for i, each in enumerate(self.strategies):
            bare = replace(update, extras={}, client_state={})
            update = each.finalize_update(bare, own_task(task, i), trainer)
            extras |= {f"{i}/{name}": value for name, value in update.extras.items()}
            client_state |= {f"{i}/{name}": value for name, value in update.client_state.items()}
        return replace(update, extras=extras, client_state=client_state)

    def weights(self, updates: Sequence[ClientUpdate]) -> list[float]:
        """Ask the one that decides."""
        decider, own = self._decider("weights", updates)
        return decider.weights(own)

    def combine(self, state: ServerState, updates: Sequence[ClientUpdate], weights: Sequence[float]) -> Tensors:
        """Ask the one that decides."""
        decider, own = self._decider("combine", updates)
        return decider.combine(state, own, weights)

    def combine_buffers(self, state: ServerState, updates: Sequence[ClientUpdate], weights: Sequence[float]) -> Tensors:
        """Ask the one that decides."""
        decider, own = self._decider("combine_buffers", updates)
        return decider.combine_buffers(state, own, weights)

    def step(self, state: ServerState, delta: Mapping[str, Tensor]) -> Tensors:
        """Ask the one that decides."""
        return self._decider("step")[0].step(state, delta)

    def absorb(self, state: ServerState, updates: Sequence[ClientUpdate]) -> None:
        """Let each take its own."""
        for i, each in enumerate(self.strategies):
            each.absorb(state, own_updates(updates, i))

    def refine(self, state: ServerState, updates: Sequence[ClientUpdate], context: ServerContext) -> ServerState:
        """Let each work on the student, in their order."""
        for i, each in enumerate(self.strategies):
            state = each.refine(state, own_updates(updates, i), context)
        return state

    def metrics(self, state: ServerState, updates: Sequence[ClientUpdate], context: ServerContext) -> dict[str, float]:
        """Return the numbers of all."""
        found = [each.metrics(state, own_updates(updates, i), context) for i, each in enumerate(self.strategies)]
        return {name: value for numbers in found for name, value in numbers.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the memories of all."""
        return {str(i): each.state_dict() for i, each in enumerate(self.strategies)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give each its memory."""
        for i, each in enumerate(self.strategies):
            each.load_state_dict(state[str(i)])

    def _decider(self, hook: str, updates: Sequence[ClientUpdate] = ()) -> tuple[Strategy, list[ClientUpdate]]:
        """Return who decides a hook, and what it may see of the updates."""
        if hook not in self._deciding:
            return Strategy(), list(updates)
        i = self._deciding[hook]
        return self.strategies[i], own_updates(updates, i)


def decides(strategy: Strategy, hook: str) -> bool:
    """Tell whether a strategy has something of its own to say at a hook; a `Combine` has if one of its parts has."""
    if isinstance(strategy, Combine):
        return hook in strategy._deciding
    return getattr(type(strategy), hook) is not getattr(Strategy, hook)


def own_task(task: ClientTask, i: int) -> ClientTask:
    """Return a task as strategy i sees it."""
    return replace(task, extras=own_tensors(task.extras, i), client_state=own_tensors(task.client_state, i))


def own_updates(updates: Sequence[ClientUpdate], i: int) -> list[ClientUpdate]:
    """Return updates as strategy i sees them."""
    return [replace(u, extras=own_tensors(u.extras, i), client_state=own_tensors(u.client_state, i)) for u in updates]


def own_tensors(tensors: Mapping[str, Tensor], i: int) -> Tensors:
    """Return those of strategy i, under its own names."""
    prefix = f"{i}/"
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
