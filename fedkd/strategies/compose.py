"""Several strategies as one, such as SCAFFOLD on the clients under FedAdam on the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from fedkd.core.client_states import ClientStates, ViewedStates
from fedkd.core.errors import FedKDError
from fedkd.core.messages import (
    ClientTask,
    ClientUpdate,
    LocalRule,
    Metrics,
    ServerState,
    Weights,
    with_prefix,
    without_prefix,
)
from fedkd.core.tensors import Tensors
from fedkd.data import FederatedDataModule
from fedkd.losses import DistillationLoss
from fedkd.strategies.base import Strategy
from fedkd.strategies.context import RoundContext
from fedkd.training.module import DistillationModule

DECIDED = ("client_weights", "combine", "combine_buffers", "step")
"""The hooks that one part alone decides."""

OF_THE_WHOLE = ("students", "round", "tasks", "aggregate", "aggregate_stream", "evaluate", "models", "summary")
"""The hooks that parts have no share in."""


class Compose(Strategy):
    """Applies several strategies in their order. Each sees its own extras, client states and memory only.

    Clients' starts, callbacks and updates, and what the server refines, are applied one after the other. How updates
    are weighted, combined and stepped along is decided by the one strategy that declares it (`Strategy.decides`); the
    rest is FedAvg. Where one notes gradients that another changes, such as `SCAFFOLD` beside `FedProx`, it notes what
    the strategies before it have made of them.

    Args:
        strategies: The parts, in their order.

    Raises:
        FedKDError: If there is none, two decide the same, one reads the updates that another protects or has clients
            send sums beside them, one changes the student behind another that needs it final, or one has a round of its
            own (`FedMD`) or overrides what Compose does not call.
    """

    def __init__(self, strategies: list[Strategy]) -> None:
        if not strategies:
            raise FedKDError("strategies is empty: Compose needs at least one.")
        for each in strategies:
            if each.has_own_round:
                raise FedKDError(
                    f"{type(each).__name__} cannot be composed: its rounds differ from those of the others."
                )
            if unheard := overrides_beyond_parts(each):
                raise FedKDError(
                    f"{type(each).__name__} cannot be composed: it overrides {unheard}, which Compose does not call on "
                    f"its parts.{f' Declare decides = {{{unheard!r}}}.' if unheard in DECIDED else ''}"
                )
        for hook in DECIDED:
            names = [type(each).__name__ for each in strategies if hook in each.decides]
            if len(names) > 1:
                raise FedKDError(f"{' and '.join(names)} cannot be composed: each decides {hook}.")
        for each in strategies:
            readers = [type(other).__name__ for other in strategies if other is not each and other.reads_updates]
            if each.protects_updates and readers:
                raise FedKDError(
                    f"{type(each).__name__} cannot be composed with {' and '.join(readers)}: it protects the clients' "
                    "updates, which the other reads."
                )
            senders = [type(other).__name__ for other in strategies if other is not each and other.sends_sums]
            if each.protects_updates and senders:
                raise FedKDError(
                    f"{type(each).__name__} cannot be composed with {' and '.join(senders)}: clients would send sums "
                    "over their images for it, which get neither clipping nor noise."
                )
        for i, each in enumerate(strategies):
            behind = [type(other).__name__ for other in strategies[i + 1 :] if other.changes_student]
            if each.needs_final_student and behind:
                raise FedKDError(
                    f"{type(each).__name__} cannot stand before {' and '.join(behind)} in a Compose, which changes the "
                    "student that it has finished: put it last, once."
                )
        self.strategies = strategies

    @property
    def changes_student(self) -> bool:  # type: ignore[override]
        """Whether one of the parts does."""
        return any(each.changes_student for each in self.strategies)

    @property
    def needs_final_student(self) -> bool:  # type: ignore[override]
        """Whether one of the parts does."""
        return any(each.needs_final_student for each in self.strategies)

    @property
    def decides(self) -> frozenset[str]:  # type: ignore[override]
        """Whatever one of the parts decides."""
        return frozenset().union(*(each.decides for each in self.strategies))

    @property
    def needs_teacher_features(self) -> bool:  # type: ignore[override]
        """Whether one of the parts does."""
        return any(each.needs_teacher_features for each in self.strategies)

    @property
    def protects_updates(self) -> bool:  # type: ignore[override]
        """Whether one of the parts does."""
        return any(each.protects_updates for each in self.strategies)

    @property
    def reads_updates(self) -> bool:
        """Whether one of the parts does."""
        return any(each.reads_updates for each in self.strategies)

    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of all parts."""
        return tuple(dict.fromkeys(name for each in self.strategies for name in each.columns))

    @property
    def sends_sums(self) -> bool:  # type: ignore[override]
        """Whether clients send sums for one of the parts."""
        return any(each.sends_sums for each in self.strategies)

    @property
    def is_robust(self) -> bool:  # type: ignore[override]
        """Whether one of the parts is, and none beside it takes in what it leaves out."""
        return any(each.is_robust for each in self.strategies) and not self._opened()

    @property
    def needs_last_round(self) -> bool:
        """Whether a part does something in the last round."""
        return any(each.needs_last_round for each in self.strategies)

    @property
    def streams(self) -> bool:
        """Whether all parts do."""
        return all(each.streams for each in self.strategies)

    def wrap(self, student: nn.Module, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        """Let each add what it needs."""
        for each in self.strategies:
            student = each.wrap(student, num_classes, image_shape)
        return student

    def check(self, module: DistillationModule, datamodule: FederatedDataModule) -> None:
        """Check all. Warn of a robust rule beside which attackers have another way."""
        for each in self.strategies:
            each.check(module, datamodule)
        robust = [type(each).__name__ for each in self.strategies if each.is_robust]
        if robust and (opened := self._opened()):
            rank_zero_warn(
                f"{' and '.join(robust)} leaves attackers out of the average alone: {' and '.join(opened)} beside it "
                "takes in what every client sends, so the student is not protected from them."
            )

    def check_cohort(self, num_clients: int) -> None:
        """Check all."""
        for each in self.strategies:
            each.check_cohort(num_clients)

    def default_loss(self) -> DistillationLoss | None:
        """Return that of the first part that has one."""
        return next((loss for each in self.strategies if (loss := each.default_loss()) is not None), None)

    def start(self, state: ServerState, context: RoundContext) -> ServerState:
        """Start all, in their order."""
        for i, each in enumerate(self.strategies):
            part = _part(state, i)
            state = _with_part(state, i, part, each.start(part, context))
        return state

    def broadcast(self, state: ServerState) -> Tensors:
        """Return what all send."""
        extras: Tensors = {}
        for i, each in enumerate(self.strategies):
            extras |= with_prefix(each.broadcast(_part(state, i)), str(i))
        return extras

    def local_rule(self, state: ServerState, client: int) -> LocalRule:
        """Return the rules of all, as one."""
        return ComposedRule(tuple(each.local_rule(_part(state, i), client) for i, each in enumerate(self.strategies)))

    def client_weights(self, updates: Sequence[ClientUpdate]) -> list[float]:
        """Use the part that decides."""
        i, each = self._decider("client_weights")
        return each.client_weights(_own_updates(updates, i))

    def remember(self, state: ServerState, updates: Sequence[ClientUpdate]) -> Tensors:
        """Let each remember its own."""
        memory: Tensors = {}
        for i, each in enumerate(self.strategies):
            memory |= with_prefix(each.remember(_part(state, i), _own_updates(updates, i)), str(i))
        return memory

    def combine(self, state: ServerState, updates: Sequence[ClientUpdate], weights: Sequence[float]) -> Tensors:
        """Use the part that decides."""
        i, each = self._decider("combine")
        return each.combine(_part(state, i), _own_updates(updates, i), weights)

    def combine_buffers(self, state: ServerState, updates: Sequence[ClientUpdate], weights: Sequence[float]) -> Tensors:
        """Use the part that decides."""
        i, each = self._decider("combine_buffers")
        return each.combine_buffers(_part(state, i), _own_updates(updates, i), weights)

    def step(self, state: ServerState, delta: Mapping[str, Tensor]) -> tuple[Tensors, Mapping[str, Tensor]]:
        """Use the part that decides."""
        i, each = self._decider("step")
        parameters, memory = each.step(_part(state, i), delta)
        return parameters, _replace_prefix(state.memory, i, memory)

    def refine(self, state: ServerState, updates: Sequence[ClientUpdate], context: RoundContext) -> ServerState:
        """Let each work on the student, in their order."""
        for i, each in enumerate(self.strategies):
            part = _part(state, i)
            state = _with_part(state, i, part, each.refine(part, _own_updates(updates, i), context))
        return state

    def metrics(self, state: ServerState, updates: Sequence[ClientUpdate], context: RoundContext) -> Metrics:
        """Return the numbers of all."""
        found: Metrics = {}
        for i, each in enumerate(self.strategies):
            found |= each.metrics(_part(state, i), _own_updates(updates, i), context)
        return found

    def _opened(self) -> list[str]:
        """Return the parts through which clients have an influence that no robust rule bounds."""
        return [type(each).__name__ for each in self.strategies if each.reads_updates or each.sends_sums]

    def _decider(self, hook: str) -> tuple[int, Strategy]:
        """Return the part that decides a hook, with its number; the base strategy, FedAvg, where none does."""
        for i, each in enumerate(self.strategies):
            if hook in each.decides:
                return i, each
        return 0, Strategy()


@dataclass(frozen=True)
class ComposedRule(LocalRule):
    """The parts' rules, applied in their order.

    Args:
        rules: One for each part.
    """

    rules: tuple[LocalRule, ...] = ()

    def start(self, task: ClientTask) -> Weights:
        """Let each change the start, in their order."""
        for i, rule in enumerate(self.rules):
            task = replace(task, weights=rule.start(_own_task(task, i)))
        return task.weights

    def callbacks(self, task: ClientTask) -> list[Callback]:
        """Return the callbacks of all."""
        return [callback for i, rule in enumerate(self.rules) for callback in rule.callbacks(_own_task(task, i))]

    def finish(self, update: ClientUpdate, task: ClientTask, trainer: Trainer) -> ClientUpdate:
        """Let each complete the update, in their order."""
        extras: Tensors = {}
        client_state: Tensors = {}
        for i, rule in enumerate(self.rules):
            own = _own_task(task, i)
            update = rule.finish(replace(update, extras={}, client_state=None), own, trainer)
            extras |= with_prefix(update.extras, str(i))
            kept = own.client_state if update.client_state is None else update.client_state
            client_state |= with_prefix(kept, str(i))
        return replace(update, extras=extras, client_state=client_state)


def overrides_beyond_parts(strategy: Strategy) -> str | None:
    """Return a hook that a strategy overrides and that `Compose` would not call on it; None if there is none."""
    if isinstance(strategy, Compose):  # its parts were checked when it was made
        return None
    hooks = (*OF_THE_WHOLE, *(hook for hook in DECIDED if hook not in strategy.decides))
    return next((hook for hook in hooks if getattr(type(strategy), hook) is not getattr(Strategy, hook)), None)


def _part(state: ServerState, i: int) -> ServerState:
    """Return a state as part i sees it."""
    seen = ViewedStates(state.client_states, lambda own: without_prefix(own, str(i)))
    return replace(state, memory=without_prefix(state.memory, str(i)), client_states=ClientStates(seen))


def _with_part(state: ServerState, i: int, part: ServerState, changed: ServerState) -> ServerState:
    """Return a state with what part i made of its view of it, ``part``."""
    states = ClientStates.of(changed.client_states)
    # a strategy that made a mapping of its own may have changed the state of any client
    of_part = isinstance(part.client_states, ClientStates) and states.committed is part.client_states.committed
    clients = states.changes if of_part else {**part.client_states, **states}
    changes = {
        client: _replace_prefix(state.client_states.get(client, {}), i, states.get(client, {})) for client in clients
    }
    client_states = ClientStates.of(state.client_states).changed(changes)
    return replace(changed, memory=_replace_prefix(state.memory, i, changed.memory), client_states=client_states)


def _replace_prefix(tensors: Mapping[str, Tensor], i: int, own: Mapping[str, Tensor]) -> Tensors:
    """Return tensors with those of part i replaced."""
    others = {name: value for name, value in tensors.items() if not name.startswith(f"{i}/")}
    return {**others, **with_prefix(own, str(i))}


def _own_task(task: ClientTask, i: int) -> ClientTask:
    """Return a task as part i sees it."""
    return replace(
        task, extras=without_prefix(task.extras, str(i)), client_state=without_prefix(task.client_state, str(i))
    )


def _own_updates(updates: Sequence[ClientUpdate], i: int) -> list[ClientUpdate]:
    """Return updates as part i sees them."""
    return [
        replace(
            update,
            extras=without_prefix(update.extras, str(i)),
            client_state=None if update.client_state is None else without_prefix(update.client_state, str(i)),
        )
        for update in updates
    ]
