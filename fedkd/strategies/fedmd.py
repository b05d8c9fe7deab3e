"""FedMD: Li and Wang, "FedMD: Heterogenous Federated Learning via Model Distillation", arXiv 1910.03581, algorithm 1.

Clients send their class scores for public images, the server averages them to a consensus, and each client distills the
consensus into its own student. No weights travel, so clients need not hold the same student.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import Tensor

from fedkd.client.works import distill_pool, model_of, model_state, predict, train
from fedkd.core.errors import FedKDError, check_range
from fedkd.core.messages import ClientTask, ClientUpdate, LocalRule, Metrics, ServerState, Weights
from fedkd.core.metrics import accuracies, confusion_matrix
from fedkd.core.seeding import seeded
from fedkd.data import FederatedDataModule, Pool
from fedkd.strategies.base import Strategy, next_client_states
from fedkd.strategies.context import RoundContext, Which, client_model
from fedkd.strategies.refinement.pools import check_pool
from fedkd.strategies.refinement.server_distillation import mixed_logits
from fedkd.students import find as find_student
from fedkd.training.module import DistillationModule
from fedkd.training.unlabeled import predict_logits

MEASURES = ("accuracy", "balanced_accuracy")
"""What is reported of each client's student."""


class FedMD(Strategy):
    r"""Each client trains a student of its own kind; they learn from each other's logits.

    In every round each client of the cohort trains on its own images and sends its logits for common images, 4 K bytes
    each (for every view, if predictions are for views). The server answers with a consensus of the same size, which
    each client distills into its student without a label:

    .. math:: T^2 \, KL(p \| \sigma(s / T)), \quad
              p = \frac{w_e \sigma(\bar z / T) + w_t \sigma(t / T)}{w_e + w_t}

    for the mean :math:`\bar z` of the cohort's logits and the foundation model's t. The paper's round has the same
    three parts, but ends after the training on own images; a client is better on all classes after distillation. Its
    first training on labeled public images is left out. Clients outside of the cohort keep their students.

    ``state.weights`` is empty: there is no global student, and the caller's module keeps its own. ``client_states``
    holds each client's student, which stays on the client; the run keeps it in ``clients/K``.

    Args:
        students: Names out of ``fedkd.students``: client k trains ``students[k % len(students)]``.
        ensemble_weight: w_e, of the clients' mean logits, >= 0.
        teacher_weight: w_t, of the foundation model's logits, >= 0. It teaches on the clients' own images in any case.
        distill_epochs: Passes over the common images in a round; with 0 every client learns alone.
        distill_lr: The first learning rate of Adam, which follows a cosine down in every round.
        temperature: T > 0.
        images: The common images: "public" is the public split, "shared" what ``data.shared`` gives to all clients.

    Raises:
        FedKDError: For values out of range, or an unknown student.
    """

    has_own_round = True
    reads_updates = True
    columns = ("ensemble/*", "client_*")

    def __init__(
        self,
        students: list[str],
        ensemble_weight: float = 1.0,
        teacher_weight: float = 0.0,
        distill_epochs: int = 1,
        distill_lr: float = 1e-3,
        temperature: float = 2.0,
        images: Which = "public",
    ) -> None:
        if not students:
            raise FedKDError("students is empty: name at least one, such as ['resnet8', 'resnet20'].")
        for name in students:
            find_student(name)
        check_range("ensemble_weight", ensemble_weight, low=0)
        check_range("teacher_weight", teacher_weight, low=0)
        if not ensemble_weight + teacher_weight:
            raise FedKDError("ensemble_weight and teacher_weight are both 0: give one of them a number above.")
        check_range("distill_epochs", distill_epochs, low=0, whole=True)
        check_range("distill_lr", distill_lr, low=0, low_open=True)
        check_range("temperature", temperature, low=0, low_open=True)
        self.student_names = list(students)
        self.ensemble_weight, self.teacher_weight, self.temperature = ensemble_weight, teacher_weight, temperature
        self.distill_epochs, self.distill_lr, self.images = distill_epochs, distill_lr, images

    def students(self) -> tuple[str, ...]:
        """Return the names of the students."""
        return tuple(self.student_names)

    def check(self, module: DistillationModule, datamodule: FederatedDataModule) -> None:
        """Raise unless there are common images, and a foundation model where it has a weight."""
        check_pool(self.images, datamodule)
        if self.teacher_weight and module.teacher is None:
            raise FedKDError(f"teacher_weight {self.teacher_weight:g} needs a teacher: set model.teacher.")

    def start(self, state: ServerState, context: RoundContext) -> ServerState:
        """Draw each client's first weights, which follow from (run seed, client)."""
        states = {}
        for client in context.clients:
            with seeded(context.seed, "student", client):
                states[client] = model_state(Weights.of(context.module(client).fresh_student()))
        return replace(state, weights=Weights(), client_states=states)

    def round(
        self, state: ServerState, cohort: Sequence[int], context: RoundContext
    ) -> tuple[ServerState, list[ClientUpdate]]:
        """Run one round: train, exchange logits, distill the consensus."""
        pool = context.pool(self.images)
        updates = context.exchange(train, self.tasks(state, cohort, context.lr_factor), context.min_clients)
        cohort = [update.client for update in updates]
        state = replace(state, client_states=next_client_states(state, updates))
        tasks = [replace(task, settings={"pool": self.images}) for task in self.tasks(state, cohort)]
        answers = context.exchange(predict, tasks, context.min_clients)
        logits, cohort = [update.extras["logits"] for update in answers], [update.client for update in answers]
        settings = {
            "pool": self.images,
            "epochs": self.distill_epochs,
            "lr": self.distill_lr,
            "temperature": self.temperature,
        }
        extras = {"logits": self._consensus(torch.stack(logits).mean(0), pool)}
        tasks = [replace(task, settings=settings, extras=extras) for task in self.tasks(state, cohort)]
        distilled = context.exchange(distill_pool, tasks, context.min_clients)
        return (
            replace(state, round=state.round + 1, client_states=next_client_states(state, distilled)),
            updates,
        )

    def local_rule(self, state: ServerState, client: int) -> LocalRule:
        """Return the rule that keeps the client's student on the client."""
        return OwnStudent()

    def evaluate(self, state: ServerState, context: RoundContext) -> Metrics:
        """Return the means over the clients' students, each client's own accuracies, and those of the mean logits."""
        test = Pool(context.test, batch_size=context.eval_batch_size, eval_batch_size=context.eval_batch_size)
        logits = {
            client: predict_logits(context.module(client).student, [model], test, context.trainer)
            for client, model in self.models(state).items()
        }
        targets = context.test.targets
        scores = {client: score(each, targets, context.classes) for client, each in logits.items()}
        together = score(torch.stack(list(logits.values())).mean(0), targets, context.classes)
        first = next(iter(scores.values()))
        metrics = {name: sum(one[name] for one in scores.values()) / len(scores) for name in first}
        metrics |= context.evaluate_held_out(self.tasks(state, context.evaluated))
        return (
            metrics
            | {f"ensemble/{name}": together[name] for name in MEASURES}
            | {f"client_{client}/{name}": one[name] for client, one in scores.items() for name in MEASURES}
        )

    def models(self, state: ServerState) -> dict[int | None, Weights]:
        """Return each client's own student."""
        return {client: model_of(own) for client, own in state.client_states.items()}

    def summary(self, state: ServerState, row: Metrics, context: RoundContext) -> Metrics:
        """Return what each client has and how good it is, and the accuracy of the mean logits."""
        clients = [
            {
                "client": client,
                "student": self.student_names[client % len(self.student_names)],
                "parameters": sum(value.numel() for value in model.parameters.values()),
                "num_examples": context.clients[client],
                **{name: row[f"client_{client}/{name}"] for name in MEASURES},
            }
            for client, model in self.models(state).items()
            if client is not None
        ]
        ensemble = {name: row[f"ensemble/{name}"] for name in MEASURES}
        return {"ensemble": ensemble, "clients": clients}

    def _consensus(self, ensemble: Tensor, pool: Pool) -> Tensor:
        """Return the consensus of the clients' mean logits and the foundation model's."""
        sources = [(self.ensemble_weight, ensemble), (self.teacher_weight, pool.teacher_logits)]
        return mixed_logits([(w, logits) for w, logits in sources if w and logits is not None], self.temperature)


@dataclass(frozen=True)
class OwnStudent(LocalRule):
    """Starts from the client's own student and keeps it on the client: nothing of it is sent."""

    def start(self, task: ClientTask) -> Weights:
        """Return the client's student."""
        return model_of(task.client_state)

    def finish(self, update: ClientUpdate, task: ClientTask, trainer: Trainer) -> ClientUpdate:
        """Keep the trained student, in the dtypes of the one before."""
        trained = client_model(self.start(task), update)
        return replace(update, delta={}, buffers={}, client_state=model_state(trained))


def score(logits: Tensor, targets: Tensor, classes: Sequence[str]) -> Metrics:
    """Return ``loss``, ``accuracy``, ``balanced_accuracy`` and ``accuracy/<class>`` of logits (N, K), as floats."""
    confusion = confusion_matrix(logits, targets, len(classes))
    values = {"loss": F.cross_entropy(logits, targets), **accuracies(confusion, classes)}
    return {name: float(value) for name, value in values.items()}
