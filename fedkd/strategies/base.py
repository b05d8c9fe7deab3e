"""The base of all strategies. Its behaviour is FedAvg; a new algorithm overrides only where it differs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from lightning.pytorch import Callback, Trainer
from torch import Tensor

from fedkd.core.messages import ClientTask, ClientUpdate, ServerState
from fedkd.core.tensors import Tensors, add_scaled, merge_buffers, weighted_mean

if TYPE_CHECKING:  # it stands above: it is handed in
    from fedkd.data import FederatedDataModule
    from fedkd.server.context import ServerContext
    from fedkd.training.module import DistillationModule


class Strategy:
    """Where algorithms differ from FedAvg: what is broadcast, what runs on the client, how updates are joined.

    `check` comes before a run. The hooks of a round, in their order: `broadcast` (server); `client_start`,
    `client_callbacks`, `finalize_update` (client); `weights`, `absorb`, `combine`, `step`, `combine_buffers`, `refine`,
    `metrics` (server). Client-side corrections are Lightning callbacks that act on gradients in
    ``on_before_optimizer_step``, or add a term to the loss (`fedkd.training.objective.Objective`), so they
    compose with every loss and precision.

    What a strategy is told is a constructor's argument, kept under its name: so it is printed, and a resumed run is
    checked for it. What it remembers between rounds goes through `state_dict`, and `start` clears it; what it
    remembers of a client is the client's state and travels nowhere.
    """

    private: ClassVar[bool] = False
    """Whether the strategy protects single updates, so that nothing beside it may read them."""

    def check(self, module: DistillationModule, datamodule: FederatedDataModule, cohort_size: int) -> None:
        """Raise a `fedkd.FedKDError` if a run lacks what the strategy needs; it is asked before any work.

        Args:
            module: Built.
            datamodule: Set up.
            cohort_size: How many clients every round has.
        """

    def start(self, state: ServerState) -> None:
        """Forget an earlier run and prepare for one that starts from ``state``; nothing by default."""

    def broadcast(self, state: ServerState) -> Mapping[str, Tensor]:
        """Return tensors to send to every client beside the student; none by default."""
        return {}

    def client_start(self, task: ClientTask) -> ClientTask:
        """Return the task with the weights that the client's training starts from; the global ones by default.

        The update's delta is counted from the global weights all the same.
        """
        return task

    def client_callbacks(self, task: ClientTask) -> list[Callback]:
        """Return fresh callbacks for the client's Trainer; none by default."""
        return []

    def finalize_update(self, update: ClientUpdate, task: ClientTask, trainer: Trainer) -> ClientUpdate:
        """Complete the update on the client, with extras or the client's new state; unchanged by default."""
        return update

    def weights(self, updates: Sequence[ClientUpdate]) -> list[float]:
        """Return each update's weight in the averages: its number of examples by default."""
        return [float(update.num_examples) for update in updates]

    def combine(self, state: ServerState, updates: Sequence[ClientUpdate], weights: Sequence[float]) -> Tensors:
        """Make one delta of all: their weighted mean by default, float32."""
        return weighted_mean([update.delta for update in updates], weights)

    def combine_buffers(self, state: ServerState, updates: Sequence[ClientUpdate], weights: Sequence[float]) -> Tensors:
        """Make the global buffers: floats are averaged, counters take the maximum by default."""
        return merge_buffers(state.buffers, [update.buffers for update in updates], weights)

    def step(self, state: ServerState, delta: Mapping[str, Tensor]) -> Tensors:
        """Return the next global parameters: the old ones plus the delta by default."""
        return add_scaled(state.parameters, delta)

    def absorb(self, state: ServerState, updates: Sequence[ClientUpdate]) -> None:
        """Take into the strategy's own memory what the updates brought; nothing by default. It comes before `step`.

        Args:
            state: The state that the updates started from.
            updates: Those of the round.
        """

    def refine(self, state: ServerState, updates: Sequence[ClientUpdate], context: ServerContext) -> ServerState:
        """Work on the aggregated student, such as by training it on public images; unchanged by default.

        Args:
            state: The next state, after aggregation.
            updates: Those of the round.
            context: What the run's clients share (module, data, Trainer arguments, the teacher's logits), and means to
                ask and to teach students.
        """
        return state

    def metrics(
        self, state: ServerState, updates: Sequence[ClientUpdate], context: ServerContext
    ) -> Mapping[str, float]:
        """Return numbers of the strategy's own for the round's row; none by default.

        Args:
            state: The next state, after `refine`.
            updates: Those of the round.
            context: As for `refine`.
        """
        return {}

    def reads_updates(self) -> bool:
        """Whether `absorb` or `refine` use the clients' own updates; a `private` strategy stands beside none that do.

        True by default where one of the two is overridden.
        """
        return type(self).absorb is not Strategy.absorb or type(self).refine is not Strategy.refine

    def aggregate(self, state: ServerState, updates: Sequence[ClientUpdate]) -> ServerState:
        """Join the updates of a round into the next global state.

        Args:
            state: The state that the updates started from.
            updates: At least one, in the order of the clients' indices.

        Returns:
            The next state, with ``round`` one higher.
        """
        weights = self.weights(updates)
        self.absorb(state, updates)
        parameters = self.step(state, self.combine(state, updates, weights))
        buffers = self.combine_buffers(state, updates, weights)
        client_states = {**state.client_states, **{u.client: u.client_state for u in updates if u.client_state}}
        return replace(
            state, round=state.round + 1, parameters=parameters, buffers=buffers, client_states=client_states
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what the strategy itself must remember between rounds; nothing by default."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""

    def __repr__(self) -> str:
        """Show the constructor's arguments."""
        names = [name for name in inspect.signature(type(self)).parameters if hasattr(self, name)]
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"
