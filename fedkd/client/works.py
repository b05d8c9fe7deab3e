"""What a client does in a round: load the global student, ``Trainer.fit`` on its shard, return the update."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fedkd.core.messages import ClientTask, ClientUpdate
from fedkd.core.seeding import derive_seed, seeded
from fedkd.core.tensors import load_state, split_state, subtract
from fedkd.data import FederatedDataModule
from fedkd.training.module import DistillationModule
from fedkd.training.trainer import fit, make_trainer, quiet_lightning

if TYPE_CHECKING:  # strategies stand above: they are handed in
    from fedkd.strategies import Strategy


@dataclass(frozen=True)
class ClientContext:
    """What all tasks of a run share; a backend that spans processes sends it once.

    Attributes:
        module: The student with its loss and optimizer. Its weights are overwritten by every task.
        datamodule: Set up, with the shards.
        trainer: Arguments of each client's Lightning Trainer, over `TRAINER_DEFAULTS`.
        strategy: Hooks on the client.
        seed: The run's seed.
        teacher_logits: (N, K) over the training images, or (N, V, K) over their views; None without a teacher.
        feature_file: The teacher's features (N, V, D), where the loss needs them: each client maps the file.
        shared_logits: As ``teacher_logits``, over the ImageSet of the datamodule's shared images; without them no
            client trains on these.
        shared_feature_file: Likewise.
    """

    module: DistillationModule
    datamodule: FederatedDataModule
    trainer: Mapping[str, Any]
    strategy: Strategy
    seed: int = 0
    teacher_logits: Tensor | None = None
    feature_file: Path | None = None
    shared_logits: Tensor | None = None
    shared_feature_file: Path | None = None


def run_client(context: ClientContext, task: ClientTask) -> ClientUpdate:
    """Train the global student on one client's shard.

    All randomness comes from (run seed, round, client), so the result does not depend on who ran before.

    Args:
        context: What the run's tasks share.
        task: This client's task; the client must have data.

    Returns:
        The update, already finalised by the strategy.
    """
    start = time.perf_counter()
    module, strategy = context.module, context.strategy
    assert module.student is not None
    keys = (context.seed, "client", task.round, task.client)
    with seeded(*keys), quiet_lightning():
        start_from = strategy.client_start(task)
        load_state(module.student, start_from.parameters, start_from.buffers)
        module.student.train()
        trainer = make_trainer(context.trainer, strategy.client_callbacks(task))
        loader = context.datamodule.client_loader(
            task.client,
            seed=derive_seed(*keys, "batches"),
            device=trainer.strategy.root_device,
            teacher_logits=context.teacher_logits,
            teacher_features=_mapped(context.feature_file),
            shared_logits=context.shared_logits,
            shared_features=_mapped(context.shared_feature_file),
        )
        fit(trainer, module, loader)
    parameters, buffers = split_state(module.student)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    update = ClientUpdate(
        client=task.client,
        num_examples=loader.num_examples,
        num_steps=trainer.global_step,
        delta=subtract(parameters, task.parameters),
        buffers=buffers,
        metrics={**metrics, "seconds": time.perf_counter() - start},
    )
    return strategy.finalize_update(update, task, trainer)


def _mapped(file: Path | None) -> np.ndarray | None:
    return None if file is None else np.load(file, mmap_mode="r")
