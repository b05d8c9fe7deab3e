"""`ClientSite`: what one client has. `SimulatedSites` makes the sites of a simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from fedkd.core.seeding import derive_seed
from fedkd.data.images.augmentation import Augmentation
from fedkd.data.images.image_set import ImageSet
from fedkd.data.images.views import Views
from fedkd.data.loader import BatchLoader
from fedkd.data.pool import Pool
from fedkd.data.rows import Rows
from fedkd.data.shared import SharedImages
from fedkd.data.shared_stream import SharedStream


@dataclass(frozen=True)
class Batching:
    """How batches are made.

    Args:
        batch_size: Images in a training batch.
        eval_batch_size: Images in a batch that is only predicted; None suits the device.
        augmentation: What is done to training images.
        shared: How the pool of shared images joins the client's batches; None leaves it out.
    """

    batch_size: int = 32
    eval_batch_size: int | None = None
    augmentation: Augmentation | Views | None = None
    shared: SharedImages | None = None


@dataclass(frozen=True, eq=False)
class ClientSite:
    """What one client has: its own images and the pools that all may see, and how it trains. It pickles.

    It never holds another client's images, nor the teacher. A work that needs the teacher loads it by `teacher`.

    Args:
        client: The client's index.
        seed: The run's seed.
        rows: Its n training images, with the teacher's outputs for them where they are needed.
        held_out: The images that it holds out of training.
        pools: Unlabeled images that all may see, by name: "public" and "shared".
        batching: How its batches are made.
        module: The `fedkd.DistillationModule` that it trains, without a teacher; None where nothing trains. Its weights
            are scratch: each task brings the weights to start from.
        trainer: Arguments of its Lightning Trainer.
        teacher: What a worker loads the teacher from (`fedkd.teachers.LoRATeacher`).
        scratch: A folder for what the client keeps between two tasks; None where nothing needs one.
    """

    client: int
    seed: int
    rows: Rows
    held_out: Rows
    pools: Mapping[str, Pool] = field(default_factory=dict)
    batching: Batching = field(default_factory=Batching)
    module: LightningModule | None = None
    trainer: Mapping[str, Any] = field(default_factory=dict)
    teacher: Mapping[str, Any] | None = None
    scratch: Path | None = None

    def train_loader(self, seed: int, device: torch.device | str = "cpu") -> BatchLoader:
        """Return shuffled, augmented batches of the training images; shared images join them if there is a teacher.

        Args:
            seed: Decides order and augmentation.
            device: Where batches are made.
        """
        batching, pool, shared = self.batching, self.pools.get("shared"), None
        if batching.shared is not None and pool is not None and pool.teacher_logits is not None:
            shared = SharedStream(
                pool.rows,
                batching.shared,
                seed=derive_seed(seed, "shared"),
                augmentation=batching.augmentation,
                device=device,
            )
        return BatchLoader(
            self.rows,
            batch_size=batching.batch_size,
            shuffle=True,
            seed=seed,
            augmentation=batching.augmentation,
            device=device,
            shared=shared,
        )

    def val_loader(self, device: torch.device | str = "cpu") -> BatchLoader:
        """Return what the client holds out, in order, not augmented."""
        return BatchLoader(self.held_out, batch_size=self.batching.eval_batch_size, device=device)


@dataclass(frozen=True, eq=False)
class SimulatedSites:
    """Makes the site of each client out of a data set that this machine has in full: ``sites(client)``.

    Args:
        data: All training images.
        shards: For each client its positions in ``data``.
        val_shards: For each client the positions that it holds out.
        seed: The run's seed.
        teacher_logits: The teacher's, for all of ``data``, (N, K) or (N, V, K).
        feature_file: The teacher's features for all of ``data``, a ``.npy`` file (N, V, D).
        pools: As for `ClientSite`, also for what follows.
        batching: How batches are made.
        modules: Client k trains ``modules[k % len(modules)]``.
        trainer: Arguments of a client's Trainer.
        teacher: What a worker loads the teacher from.
        scratch: A folder; each client has a folder of its own in it.
    """

    data: ImageSet
    shards: Sequence[np.ndarray]
    val_shards: Sequence[np.ndarray]
    seed: int = 0
    teacher_logits: Tensor | None = None
    feature_file: Path | None = None
    pools: Mapping[str, Pool] = field(default_factory=dict)
    batching: Batching = field(default_factory=Batching)
    modules: tuple[LightningModule, ...] = ()
    trainer: Mapping[str, Any] = field(default_factory=dict)
    teacher: Mapping[str, Any] | None = None
    scratch: Path | None = None

    def __call__(self, client: int) -> ClientSite:
        """Return a client's site: a copy of its own rows, and nothing of another client's."""
        return ClientSite(
            client=client,
            seed=self.seed,
            rows=Rows.of(
                self.data,
                self.shards[client],
                teacher_logits=self.teacher_logits,
                teacher_features=self.feature_file,
            ),
            held_out=Rows.of(self.data, self.val_shards[client]),
            pools=self.pools,
            batching=self.batching,
            module=self.modules[client % len(self.modules)] if self.modules else None,
            trainer=self.trainer,
            teacher=self.teacher,
            scratch=None if self.scratch is None else self.scratch / str(client),
        )
