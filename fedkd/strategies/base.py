"""The base of all strategies. Its behavior is FedAvg; an algorithm overrides only where it differs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, NoReturn

from torch import Tensor, nn

from fedkd.client.works import train
from fedkd.core.client_states import ClientStates
from fedkd.core.config import Configured
from fedkd.core.errors import FedKDError
from fedkd.core.messages import ClientTask, ClientUpdate, LocalRule, Metrics, ServerState, Weights
from fedkd.core.tensors import RunningBuffers, RunningMean, Tensors, add_scaled, merge_buffers, weighted_mean
from fedkd.data import FederatedDataModule
from fedkd.losses import DistillationLoss
from fedkd.strategies.context import RoundContext
from fedkd.training.module import DistillationModule

READERS = ("aggregate", "client_weights", "remember", "combine", "combine_buffers")
"""What is handed all updates of a round with their tensors."""


class Strategy(Configured):
    """Where an algorithm differs from FedAvg: what is sent, what a client does, how updates become the next state.

    A strategy is configuration: its constructor's arguments, and nothing else. It keeps nothing in itself between
    calls. What it remembers of a run is ``ServerState.memory``, tensors by name, which the step that changes it
    returns. What it remembers of one client is ``ServerState.client_states[client]``. What it does on a client is a
    `LocalRule`.

    A run calls `default_loss`, `wrap`, `check`, `check_cohort` and `start` first, then for each round `round`, whose
    parts are `broadcast`, `local_rule`, `aggregate` and `refine`; then `evaluate` and `metrics`. `aggregate` calls
    `client_weights`, `remember`, `combine`, `step` and `combine_buffers`. Where the strategy `streams`,
    `aggregate_stream` stands in its place.
    """

    decides: ClassVar[frozenset[str]] = frozenset()
    """Which of "client_weights", "combine", "combine_buffers" and "step" the strategy decides in its own way. In a
    `Compose` one strategy alone may decide each."""

    has_own_round: ClassVar[bool] = False
    """Whether `round` is another one than broadcast, train, aggregate, refine."""

    needs_teacher_features: ClassVar[bool] = False
    """Whether the teacher's features are needed beside its logits: of the clients' images and of the pools."""

    protects_updates: ClassVar[bool] = False
    """Whether the strategy protects single updates, so that none beside it may read them."""

    columns: ClassVar[tuple[str, ...]] = ()
    """The names of the numbers that `evaluate` and `metrics` add to a round's row. A name that ends in ``*`` stands for
    all that begin so. A callback that monitors another column is refused before any work."""

    sends_sums: ClassVar[bool] = False
    """Whether clients send sums over their images beside updates: not beside a strategy that `protects_updates`."""

    is_robust: ClassVar[bool] = False
    """Whether the student withstands clients that send anything they like."""

    changes_student: ClassVar[bool] = False
    """Whether the strategy changes the student on the server by itself, in `start` or `refine`."""

    needs_final_student: ClassVar[bool] = False
    """Whether what `refine` computes holds for the student as it is then. In a `Compose` none behind it may be one that
    `changes_student`."""

    @property
    def reads_updates(self) -> bool:
        """Whether `remember`, `refine` or `metrics` use clients' tensors: not beside one that `protects_updates`."""
        return False

    @property
    def streams(self) -> bool:
        """Whether updates are averaged as they come, so that memory does not grow with the cohort.

        It is so for a strategy that reads no single update: it leaves the hooks that are handed all of them to this
        class, and `reads_updates` is False. The result has the same bits.
        """
        return not self.reads_updates and all(getattr(type(self), hook) is getattr(Strategy, hook) for hook in READERS)

    @property
    def needs_last_round(self) -> bool:
        """Whether a run that stops early leaves out what the strategy does in the last round (``context.is_last``)."""
        return False

    def students(self) -> tuple[str, ...]:
        """Return names of students: client k trains number k modulo their count. None by default: the module's."""
        return ()

    def wrap(self, student: nn.Module, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        """Return a built student with what the strategy adds to it, before any work; as it is by default.

        Args:
            student: Images (B, C, H, W) in [0, 1] -> logits (B, K).
            num_classes: K.
            image_shape: (C, H, W).
        """
        return student

    def default_loss(self) -> DistillationLoss | None:
        """Return the loss that suits the strategy, for a module whose loss is "auto"; None leaves it at `DKD`."""
        return None

    def check(self, module: DistillationModule, datamodule: FederatedDataModule) -> None:
        """Raise a `fedkd.FedKDError` if the run lacks what the strategy needs. It is called before any work.

        Args:
            module: Built.
            datamodule: Set up.
        """

    def check_cohort(self, num_clients: int) -> None:
        """Raise a `fedkd.FedKDError` if updates of so many clients cannot be aggregated. It is called before any work.

        Args:
            num_clients: How many clients may end a round: the cohort, or fewer down to ``min_clients``.
        """

    def start(self, state: ServerState, context: RoundContext) -> ServerState:
        """Return the state before the first round, from one that holds the fresh student alone; as it is by default."""
        return state

    def round(
        self, state: ServerState, cohort: Sequence[int], context: RoundContext
    ) -> tuple[ServerState, list[ClientUpdate]]:
        """Run one round: broadcast, train, aggregate, refine.

        Args:
            state: The state that the round starts from.
            cohort: The clients that take part, sorted.
            context: The exchange with the clients, and tools for the server.

        Returns:
            The next state, with ``round`` one higher, and the updates of the clients that did not fail; without their
            deltas and buffers if the strategy `streams`.
        """
        tasks = self.tasks(state, cohort, context.lr_factor)
        state = replace(state, cohort_size=len(cohort))
        if self.streams:
            num_examples = sum(context.clients[client] for client in cohort)
            coming = context.exchange.stream(train, tasks, context.min_clients)
            after, updates = self.aggregate_stream(state, coming, num_examples)
        else:
            updates = context.exchange(train, tasks, context.min_clients)
            after = self.aggregate(state, updates)
        return self.refine(after, updates, context.after_training(updates)), updates

    def tasks(self, state: ServerState, cohort: Sequence[int], lr_factor: float = 1.0) -> list[ClientTask]:
        """Return what each client of the cohort is told to train from.

        Args:
            state: The state that the round starts from.
            cohort: The clients.
            lr_factor: By what the clients' learning rates are multiplied.
        """
        extras = self.broadcast(state)
        settings = {} if lr_factor == 1 else {"lr_factor": lr_factor}
        return [
            ClientTask(
                state.round,
                client,
                state.weights,
                extras,
                state.client_states.get(client, {}),
                settings,
                rule=self.local_rule(state, client),
            )
            for client in cohort
        ]

    def broadcast(self, state: ServerState) -> Mapping[str, Tensor]:
        """Return tensors to send to every client beside the student; none by default."""
        return {}

    def local_rule(self, state: ServerState, client: int) -> LocalRule:
        """Return what the strategy does on a client in this round; nothing by default."""
        return LocalRule()

    def aggregate(self, state: ServerState, updates: Sequence[ClientUpdate]) -> ServerState:
        """Make the next state out of a round's updates.

        Args:
            state: The state that the updates started from.
            updates: At least one, ordered by client.

        Returns:
            The next state, with ``round`` one higher.
        """
        weights = self.client_weights(updates)
        memory = self.remember(state, updates)
        remembering = replace(state, memory=memory)
        parameters, memory = self.step(remembering, self.combine(state, updates, weights))
        buffers = self.combine_buffers(state, updates, weights)
        return replace(
            state,
            round=state.round + 1,
            weights=Weights(parameters, buffers),
            memory=memory,
            client_states=next_client_states(state, updates),
        )

    def aggregate_stream(
        self, state: ServerState, updates: Iterable[ClientUpdate], num_examples: int
    ) -> tuple[ServerState, list[ClientUpdate]]:
        """Do what `aggregate` does, for a strategy that `streams`: average updates as they come, and let them go.

        Args:
            state: The state that the updates started from.
            updates: At least one, in the order of the clients.
            num_examples: The expected sum of their numbers of examples.

        Returns:
            The next state, and the updates without deltas and buffers.
        """
        mean, buffers = RunningMean(num_examples), RunningBuffers(state.weights.buffers, num_examples)
        without_tensors = []
        for update in updates:
            mean.add(update.delta, update.num_examples)
            buffers.add(update.buffers, update.num_examples)
            without_tensors.append(replace(update, delta=Released(update.client), buffers=Released(update.client)))
            del update  # else it would stay in memory while the next client trains
        parameters, memory = self.step(state, mean.value())
        after = replace(
            state,
            round=state.round + 1,
            weights=Weights(parameters, buffers.value()),
            memory=memory,
            client_states=next_client_states(state, without_tensors),
        )
        return after, without_tensors

    def client_weights(self, updates: Sequence[ClientUpdate]) -> list[float]:
        """Return each update's weight in the averages: its number of examples by default."""
        return [float(update.num_examples) for update in updates]

    def remember(self, state: ServerState, updates: Sequence[ClientUpdate]) -> Mapping[str, Tensor]:
        """Return the memory after the updates came in, before `step`; ``state.memory`` by default.

        Args:
            state: The state that the updates started from.
            updates: Those of the round.
        """
        return state.memory

    def combine(self, state: ServerState, updates: Sequence[ClientUpdate], weights: Sequence[float]) -> Tensors:
        """Return one delta made of all, float32: their weighted mean by default."""
        return weighted_mean([update.delta for update in updates], weights)

    def combine_buffers(self, state: ServerState, updates: Sequence[ClientUpdate], weights: Sequence[float]) -> Tensors:
        """Return the global buffers: by default floats are averaged and integers take the maximum."""
        return merge_buffers(state.weights.buffers, [update.buffers for update in updates], weights)

    def step(self, state: ServerState, delta: Mapping[str, Tensor]) -> tuple[Tensors, Mapping[str, Tensor]]:
        """Return the next global parameters and the memory after it: by default parameters plus delta.

        Args:
            state: The state that the updates started from, with the memory that `remember` returned.
            delta: What `combine` returned.
        """
        return add_scaled(state.weights.parameters, delta), state.memory

    def refine(self, state: ServerState, updates: Sequence[ClientUpdate], context: RoundContext) -> ServerState:
        """Return the state after work on the aggregated student, such as training on public images; as is by default.

        Args:
            state: The next state, after aggregation.
            updates: Those of the round.
            context: The server's tools, which work on a copy of the student.
        """
        return state

    def evaluate(self, state: ServerState, context: RoundContext) -> Metrics:
        """Return the round's results on the global test set and on what clients hold out.

        Returns:
            ``loss``, ``accuracy``, ``balanced_accuracy``, ``accuracy/<class>`` and, where clients hold images out,
            ``val_accuracy``: the accuracy on those of the cohort, or of all clients outside of a round.
        """
        return context.evaluate(state.weights)

    def metrics(self, state: ServerState, updates: Sequence[ClientUpdate], context: RoundContext) -> Metrics:
        """Return further numbers for the round's row; none by default.

        Args:
            state: The next state, after `refine`.
            updates: Those of the round.
            context: As for `refine`.
        """
        return {}

    def models(self, state: ServerState) -> dict[int | None, Weights]:
        """Return the students that the run leaves: by default the global one, under None; else each client's own."""
        return {None: state.weights}

    def summary(self, state: ServerState, row: Metrics, context: RoundContext) -> Metrics:
        """Return further entries of ``summary.json``; none by default.

        Args:
            state: The last state.
            row: The last row of metrics.
            context: As for `refine`.
        """
        return {}


class Released(Mapping[str, Tensor]):
    """Stands for tensors of an update that was averaged when it came. To read it is an error.

    Args:
        client: Whose update it was.
    """

    def __init__(self, client: int) -> None:
        self.client = client

    def _refuse(self) -> NoReturn:
        raise FedKDError(
            f"The update of client {self.client} was averaged when it came and is gone. A strategy that reads single "
            "updates says so: reads_updates = True."
        )

    def __getitem__(self, name: str) -> Tensor:
        """Raise."""
        self._refuse()

    def __iter__(self) -> Iterator[str]:
        """Raise."""
        self._refuse()

    def __len__(self) -> int:
        """Raise."""
        self._refuse()

    def __bool__(self) -> bool:
        """Raise."""
        self._refuse()


def next_client_states(state: ServerState, updates: Sequence[ClientUpdate]) -> ClientStates:
    """Return what is remembered for each client: None in an update leaves it, an empty mapping clears it."""
    changes = {update.client: update.client_state for update in updates if update.client_state is not None}
    return ClientStates.of(state.client_states).changed(changes)
