"""The clients of a mutual federation: each with a student of its own kind, asked and taught through logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedkd.core.errors import FedKDError
from fedkd.core.messages import Metrics
from fedkd.core.metrics import accuracies
from fedkd.core.seeding import derive_seed, seeded
from fedkd.core.tensors import split_state
from fedkd.data import FederatedDataModule
from fedkd.data.shared import Unlabelled
from fedkd.server.context import ServerContext
from fedkd.training.common_images import CommonImages
from fedkd.training.module import DistillationModule
from fedkd.training.unlabelled import Model, distill, logits_of

Models = dict[int, Model]  # by client
MEASURES = ("accuracy", "balanced_accuracy")
"""What is reported of each client."""


@dataclass(frozen=True)
class MutualClients:
    """Which client holds which kind of student.

    Args:
        names: The name of each client's student, by client; clients without images are left out.
        contexts: What clients with one kind of student share, by its name.
    """

    names: Mapping[int, str]
    contexts: Mapping[str, ServerContext]

    def module(self, client: int) -> DistillationModule:
        """Return the module whose student is of the client's kind; clients take turns with it."""
        return self.contexts[self.names[client]].module

    def model(self, client: int, tensors: Mapping[str, Tensor]) -> Model:
        """Sort a client's tensors into parameters and buffers; what its student does not have is left out."""
        student = self.module(client).student
        assert student is not None
        parameters, buffers = split_state(student)
        return {name: tensors[name] for name in parameters}, {name: tensors[name] for name in buffers}

    def first_model(self, client: int, fresh: DistillationModule) -> Model:
        """Build a fresh module like the client's and return its student's weights."""
        built = self.module(client)
        fresh.build(built.classes, built.image_shape)
        assert fresh.student is not None
        parameters, buffers = split_state(fresh.student)
        return self.model(client, {**parameters, **buffers})

    def ask(self, models: Mapping[int, Model], images: CommonImages) -> dict[int, Tensor]:
        """Return each client's logits, (P, K), or (P, V, K) over the images' views."""
        said = {}
        for client, model in models.items():
            context = self.contexts[self.names[client]]
            assert context.module.student is not None
            said[client] = logits_of(context.module.student, [model], images, context.trainer)
        return said

    def digest(
        self,
        round: int,
        models: Mapping[int, Model],
        images: CommonImages,
        consensus: Tensor,
        *,
        epochs: int,
        lr: float,
        temperature: float,
    ) -> Models:
        """Teach each client the consensus; what it draws comes from (run seed, "digest", round, client).

        Raises:
            FedKDError: If a client's weights become infinite or NaN.
        """
        learnt: Models = {}
        for client, model in models.items():
            context = self.contexts[self.names[client]]
            keys = (context.seed, "digest", round, client)
            assert context.module.student is not None
            with seeded(*keys):
                learnt[client] = distill(
                    context.module.student,
                    model,
                    images,
                    consensus,
                    epochs=epochs,
                    lr=lr,
                    temperature=temperature,
                    trainer=context.trainer,
                    seed=derive_seed(*keys, "batches"),
                )
            if not all(bool(value.isfinite().all()) for value in learnt[client][0].values()):
                raise FedKDError(
                    f"Round {round}: client {client} became infinite or NaN while it digested. Lower digest_lr."
                )
        return learnt

    def test(self, models: Mapping[int, Model], data: FederatedDataModule) -> tuple[dict[int, Metrics], Metrics]:
        """Return what each client's student, and the mean of their logits, is worth on the global test set."""
        images = CommonImages(Unlabelled.of(data.test.images, data.classes), data.batch_size, data.eval_batch_size)
        said = self.ask(models, images)
        together = score(torch.stack(list(said.values())).mean(0), data.test.targets, data.classes)
        return {client: score(logits, data.test.targets, data.classes) for client, logits in said.items()}, together


def score(logits: Tensor, targets: Tensor, classes: Sequence[str]) -> Metrics:
    """Return ``loss``, ``accuracy``, ``balanced_accuracy`` and ``accuracy/<class>`` of logits (N, K), as floats."""
    pairs = targets * len(classes) + logits.argmax(1)
    confusion = torch.bincount(pairs, minlength=len(classes) ** 2).view(len(classes), -1)  # (K, K), rows are true
    values = {"loss": F.cross_entropy(logits, targets), **accuracies(confusion, classes)}
    return {name: float(value) for name, value in values.items()}


def mean(scores: Mapping[int, Metrics]) -> Metrics:
    """Average clients' metrics by name."""
    each = list(scores.values())
    return {name: sum(one[name] for one in each) / len(each) for name in each[0]}


def table(
    clients: MutualClients, models: Mapping[int, Model], data: FederatedDataModule, row: Metrics
) -> list[dict[str, Any]]:
    """Return what each client holds and what it came to, given the last row of metrics."""
    return [
        {
            "client": client,
            "student": name,
            "parameters": sum(value.numel() for value in models[client][0].values()),
            "num_examples": len(data.shards[client]),
            **{measure: row[f"client_{client}/{measure}"] for measure in MEASURES},
        }
        for client, name in clients.names.items()
    ]
