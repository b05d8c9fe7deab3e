"""`RoundContext`: what a strategy works with on the server."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from fedkd.client.works import evaluate_held_out
from fedkd.core.errors import FedKDError
from fedkd.core.messages import ClientTask, ClientUpdate, Exchange, Metrics, ServerState, Weights
from fedkd.core.seeding import derive_seed, seeded
from fedkd.core.tensors import add_scaled
from fedkd.data.pool import Pool
from fedkd.data.rows import Rows
from fedkd.training.batch_norm import reestimate_batch_norm
from fedkd.training.evaluation import evaluate
from fedkd.training.module import DistillationModule
from fedkd.training.unlabeled import distill, distill_features, predict_logits

Which = Literal["public", "shared"]


@dataclass(eq=False)
class LastTest:
    """The last test of a global student on the test set.

    Attributes:
        weights: Whose test it was; None before the first.
        confusion: Images by true and by predicted class, int64 (K, K), on the device where it was counted.
    """

    weights: Weights | None = None
    confusion: Tensor | None = None


@dataclass(frozen=True, eq=False)
class RoundContext:
    """The exchange with the clients, and tools for the server. The tools work on the server's own copy of the student.

    All that the server draws comes from (run seed, "server", round). It trains and predicts in the clients' precision
    and on their device, with none of their other Trainer arguments: no callbacks, no clipping.

    Attributes:
        exchange: Sends tasks to clients.
        num_clients: How many clients there are, those without images included.
        clients: The clients that have training images, with their number.
        held_out: The number of images that each client holds out, for those that hold any.
        modules: The server's own modules, without a teacher: one, or one for each of the strategy's students.
        classes: Names of the K classes.
        test: The global test set.
        pools: The unlabeled images that all may see: "public" and "shared".
        trainer: Arguments of the clients' Trainers.
        eval_batch_size: Images in a batch that is only predicted; None suits the device.
        seed: The run's seed.
        start: The state that the round started from.
        val_accuracy: The accuracy on what it holds out of each client of the last evaluation.
        last_test: The last test of a global student.
        cohort: The clients of the round, without those that failed in it; None outside of one.
        failed: The clients that failed in the round.
        is_last: Whether the run ends with this round.
        lr_factor: By what clients' learning rates are multiplied in this round.
        min_clients: How many clients must train in a round; None is the whole cohort.
    """

    exchange: Exchange
    num_clients: int
    clients: Mapping[int, int]
    held_out: Mapping[int, int]
    modules: tuple[DistillationModule, ...]
    classes: tuple[str, ...]
    test: Rows
    pools: Mapping[str, Pool]
    trainer: Mapping[str, Any]
    eval_batch_size: int | None
    seed: int
    start: ServerState
    val_accuracy: dict[int, float] = field(default_factory=dict)
    last_test: LastTest = field(default_factory=LastTest)
    cohort: tuple[int, ...] | None = None
    failed: frozenset[int] = frozenset()
    is_last: bool = False
    lr_factor: float = 1.0
    min_clients: int | None = None

    @property
    def evaluated(self) -> list[int]:
        """The clients that evaluate what they hold out: those of the cohort, so that a round costs what it trains."""
        return list(self.held_out) if self.cohort is None else [c for c in self.cohort if c in self.held_out]

    def after_training(self, updates: Sequence[ClientUpdate]) -> RoundContext:
        """Return the context for the rest of a round, which clients that failed no longer take part in."""
        if self.cohort is None or len(updates) == len(self.cohort):
            return self
        return self.without(set(self.cohort) - {update.client for update in updates})

    def without(self, failed: Collection[int]) -> RoundContext:
        """Return the context without clients that failed in the round."""
        cohort = None if self.cohort is None else tuple(client for client in self.cohort if client not in failed)
        return replace(self, cohort=cohort, failed=self.failed | frozenset(failed))

    def module(self, client: int | None = None) -> DistillationModule:
        """Return the server's module with the student of a client's kind; of the global one if not given."""
        return self.modules[0 if client is None else client % len(self.modules)]

    def pool(self, which: Which) -> Pool:
        """Return the public or the shared pool; `fedkd.strategies.check_pool` made sure that there is one."""
        return self.pools[which]

    def client_models(self, updates: Sequence[ClientUpdate]) -> list[Weights]:
        """Return each client's own model at the end of its training, in the dtypes of the global one."""
        return [client_model(self.start.weights, update) for update in updates]

    def ensemble_logits(self, updates: Sequence[ClientUpdate], pool: Pool) -> Tensor:
        """Return the mean of the logits of the clients' models, (P, K), or (P, V, K) of the pool's views."""
        return predict_logits(self.module().student, self.client_models(updates), pool, self.trainer)

    def distill(
        self,
        state: ServerState,
        pool: Pool,
        logits: Tensor,
        *,
        epochs: int,
        lr: float,
        temperature: float,
        weight: float = 1.0,
    ) -> ServerState:
        """Distill logits for a pool into the global student; see `fedkd.training.unlabeled.distill`."""
        keys = (self.seed, "server", self.start.round)
        with seeded(*keys):
            weights = distill(
                self.module().student,
                state.weights,
                pool,
                logits,
                epochs=epochs,
                lr=lr,
                temperature=temperature,
                weight=weight,
                trainer=self.trainer,
                seed=derive_seed(*keys, "batches"),
            )
        return self._distilled(state, weights)

    def distill_features(
        self, state: ServerState, pool: Pool, targets: Tensor, *, epochs: int, lr: float
    ) -> ServerState:
        """Distill features for a pool into the global student; see `fedkd.training.unlabeled.distill_features`."""
        keys, module = (self.seed, "server features", self.start.round), self.module()
        with seeded(*keys):
            weights = distill_features(
                module.student,
                state.weights,
                module.find_feature_layer(),
                pool,
                targets,
                epochs=epochs,
                lr=lr,
                trainer=self.trainer,
                seed=derive_seed(*keys, "batches"),
            )
        return self._distilled(state, weights)

    def _distilled(self, state: ServerState, weights: Weights) -> ServerState:
        if not weights.is_finite:
            raise FedKDError(
                f"Round {self.start.round}: the student became infinite or NaN in distillation on the server. Lower "
                "the strategy's lr."
            )
        return replace(state, weights=weights)

    def reestimate_batch_norm(self, state: ServerState, pool: Pool) -> ServerState:
        """Measure the global student's BatchNorm statistics on a pool."""
        weights = reestimate_batch_norm(self.module().student, state.weights, pool, self.trainer)
        return replace(state, weights=weights)

    def evaluate(self, weights: Weights) -> Metrics:
        """Evaluate a global student on the global test set and, through the clients, on what they hold out.

        Returns:
            As `fedkd.strategies.Strategy.evaluate`.
        """
        metrics = self.evaluate_on_test(weights)
        tasks = [ClientTask(self.start.round, client, weights) for client in self.evaluated]
        return metrics | self.evaluate_held_out(tasks)

    def evaluate_on_test(self, weights: Weights) -> Metrics:
        """Evaluate a global student on the global test set alone, and note its confusion matrix in `last_test`."""
        module = self.module()
        metrics = evaluate(module, weights, self.test, self.trainer, self.eval_batch_size)
        self.last_test.weights, self.last_test.confusion = weights, module.confusion
        return metrics

    def confusion(self, weights: Weights) -> Tensor:
        """Return the test images by true and by predicted class, int64 (K, K), on the CPU.

        Args:
            weights: The global student's. It is evaluated only if it is not the one that was evaluated last.
        """
        if self.last_test.weights is not weights or self.last_test.confusion is None:
            self.evaluate_on_test(weights)
        counts = self.last_test.confusion
        assert counts is not None
        return counts.cpu()

    def evaluate_held_out(self, tasks: Sequence[ClientTask]) -> Metrics:
        """Evaluate models on what their clients hold out, and note each client's accuracy in `val_accuracy`.

        The accuracies of an earlier evaluation are dropped: they are of another student.

        Args:
            tasks: One for each client that holds images out, with the model to evaluate.

        Returns:
            ``val_accuracy``, on all images that these clients hold out; nothing without any. If the run has
            ``min_clients``, clients that fail are left out.
        """
        self.val_accuracy.clear()
        if not tasks:
            return {}
        updates = self.exchange(evaluate_held_out, tasks, None if self.min_clients is None else 1)
        correct = {update.client: int(update.metrics["num_correct"]) for update in updates}
        self.val_accuracy.update({client: share(right, self.held_out[client]) for client, right in correct.items()})
        return {"val_accuracy": share(sum(correct.values()), sum(self.held_out[client] for client in correct))}


def share(part: int, whole: int) -> float:
    """Return part / whole in float32, as Lightning's metrics are."""
    return float(torch.tensor(float(part)) / whole)


def client_model(start: Weights, update: ClientUpdate) -> Weights:
    """Return a client's model after its training, in the dtypes of what the update's delta is counted from."""
    buffers = {name: value.to(start.buffers[name].dtype) for name, value in update.buffers.items()}
    return Weights(add_scaled(start.parameters, update.delta), buffers)
