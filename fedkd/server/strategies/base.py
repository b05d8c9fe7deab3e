"""The base of all strategies. Its behaviour is FedAvg; a new algorithm overrides only where it differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lightning.pytorch import Callback, Trainer
from torch import Tensor

from fedkd.tensors import add_scaled, merge_buffers, weighted_mean
from fedkd.types import ClientTask, ClientUpdate, ServerState


class Strategy:
    """Where algorithms differ from FedAvg: what is broadcast, what runs on the client, how updates are joined.

    The hooks run in this order each round: `broadcast` (server), `client_callbacks` and `finalize_update` (client),
    `aggregate` (server). Client-side corrections are Lightning callbacks that act on gradients in
    ``on_before_optimizer_step``, so they compose with every loss and precision.
    """

    def broadcast(self, state: ServerState) -> Mapping[str, Tensor]:
        """Return tensors to send to every client beside the student; none by default."""
        return {}

    def client_callbacks(self, task: ClientTask) -> list[Callback]:
        """Return fresh callbacks for the client's Trainer; none by default."""
        return []

    def finalize_update(self, update: ClientUpdate, task: ClientTask, trainer: Trainer) -> ClientUpdate:
        """Complete the update on the client, with extras or the client's new state; unchanged by default."""
        return update

    def weights(self, updates: Sequence[ClientUpdate]) -> list[float]:
        """Return each update's weight in the averages: its number of examples by default."""
        return [float(update.num_examples) for update in updates]

    def aggregate(self, state: ServerState, updates: Sequence[ClientUpdate]) -> ServerState:
        """Join the updates of a round into the next global state.

        Args:
            state: The state that the updates started from.
            updates: At least one, in the order of the clients' indices.

        Returns:
            The next state, with ``round`` one higher.
        """
        weights = self.weights(updates)
        delta = weighted_mean([update.delta for update in updates], weights)
        return replace(
            state,
            round=state.round + 1,
            parameters=add_scaled(state.parameters, delta),
            buffers=merge_buffers(state.buffers, [update.buffers for update in updates], weights),
            client_states={**state.client_states, **{u.client: u.client_state for u in updates if u.client_state}},
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what the strategy itself must remember between rounds; nothing by default."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
