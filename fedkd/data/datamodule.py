"""The data of a federation: private shards, a public split, and one global test set."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from fedkd.data.augmentation import Augmentation
from fedkd.data.images import ImageSet
from fedkd.data.loader import BatchLoader
from fedkd.data.sources import Datasets, Digits, ImageSource
from fedkd.data.splits import stratified_split
from fedkd.data.views import Views
from fedkd.errors import FedKDError, check_range
from fedkd.partition import Dirichlet, Partitioner, PartitionReport
from fedkd.seeding import derive_seed


class FederatedDataModule(LightningDataModule):
    """Deals a data set out to clients, and serves a plain Trainer with all of it (the centralised bound).

    Args:
        dataset: Where the images come from.
        num_clients: How many clients there are.
        partitioner: How the training images are dealt out to them.
        batch_size: Images in a training batch.
        eval_batch_size: Images in a batch that is only looked at.
        augmentation: What is done to training images; None leaves them as they are.
        views: None draws augmentations anew in every epoch. A number V draws V versions of each image once and for all,
            of which every epoch shows one: then a teacher's answers to what the student sees can be kept
            (``federation.teaching: consistent``).
        public_fraction: How much of every class belongs to no client, in [0, 1). It is a property of the data set: no
            seed changes it, so what is trained on it has never seen a client's image in any run.
        seed: Decides the partition, and the order of ``train_dataloader``.

    Attributes:
        train: The training images, public ones included.
        test: The global test set.
        shards: For each client its sorted positions in ``train``, int64.
        public_indices: Sorted positions in ``train`` of the public split, int64.

    Raises:
        FedKDError: If a value is outside its range.
    """

    train: ImageSet
    test: ImageSet
    shards: list[np.ndarray]
    public_indices: np.ndarray

    def __init__(
        self,
        dataset: ImageSource = Digits(),  # noqa: B008 (frozen)
        num_clients: int = 10,
        partitioner: Partitioner = Dirichlet(0.1),  # noqa: B008 (frozen)
        batch_size: int = 32,
        eval_batch_size: int = 512,
        augmentation: Augmentation | None = None,
        views: int | None = None,
        public_fraction: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_range("num_clients", num_clients, low=1)
        check_range("batch_size", batch_size, low=1)
        check_range("eval_batch_size", eval_batch_size, low=1)
        if views is not None:
            check_range("views", views, low=1)
        check_range("public_fraction", public_fraction, low=0, high=1, high_open=True)
        self.dataset = dataset
        self.num_clients = num_clients
        self.partitioner = partitioner
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.augmentation = augmentation
        self.views = views
        self.public_fraction = public_fraction
        self.seed = seed

    @classmethod
    def from_datasets(  # type: ignore[override]
        cls, train: Any, test: Any, **kwargs: Any
    ) -> FederatedDataModule:
        """Build from two map-style datasets of (image, label); other arguments as for the class."""
        return cls(Datasets(train, test), **kwargs)

    def prepare_data(self) -> None:
        """Download or decode what is not there yet."""
        self._load()

    def setup(self, stage: str | None = None) -> None:
        """Load the images and deal them out; a second call changes nothing."""
        self._load()
        if hasattr(self, "shards"):
            return
        targets = self.train.targets.numpy()
        self.public_indices = stratified_split(targets, self.public_fraction, "public")
        private = np.setdiff1d(np.arange(len(targets)), self.public_indices)
        if not len(private):
            raise FedKDError(
                f"public_fraction {self.public_fraction} leaves the clients none of the {len(targets)} training images."
            )
        rng = np.random.default_rng(derive_seed(self.seed, "partition"))
        self.shards = [private[shard] for shard in self.partitioner(targets[private], self.num_clients, rng)]

    def _load(self) -> None:
        if hasattr(self, "train"):
            return
        train, test = self.dataset.load()
        if test.classes != train.classes or test.image_shape != train.image_shape:
            raise FedKDError(
                "The training and the test set must have the same classes and image shape (C, H, W), got "
                f"{train.num_classes} classes of {train.image_shape} and {test.num_classes} of {test.image_shape}."
            )
        self.train, self.test = train, test

    @property
    def num_classes(self) -> int:
        """Return the number of classes, K."""
        return self.train.num_classes

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the K class names."""
        return self.train.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (C, H, W)."""
        return self.train.image_shape

    @property
    def image_views(self) -> Views | None:
        """Return the fixed views of training images; None where they are drawn anew, or nothing is done to images."""
        return None if self.views is None or self.augmentation is None else Views(self.views, self.augmentation)

    def client_loader(
        self,
        client: int,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        teacher_logits: Tensor | None = None,
        teacher_features: np.ndarray | None = None,
    ) -> BatchLoader:
        """Return shuffled, augmented batches of one client's shard.

        Args:
            client: The client, in ``[0, num_clients)``.
            seed: Decides order and augmentation.
            device: Where batches are made.
            teacher_logits: (N, K) over ``train``, or (N, V, K) over its views; the batches then carry their rows.
            teacher_features: (N, D) or (N, V, D), likewise; it may be mapped from a file.

        Raises:
            FedKDError: If there is no such client.
        """
        if client not in range(self.num_clients):
            raise FedKDError(f"There is no client {client!r}: choose one of 0..{self.num_clients - 1}.")
        self.setup()
        teacher = {"teacher_logits": teacher_logits, "teacher_features": teacher_features}
        return self._train_loader(self.shards[client], seed, device, **teacher)

    def train_dataloader(self) -> BatchLoader:
        """Return shuffled, augmented batches of all clients' images; with several devices, this one's part of them."""
        self.setup()
        indices = np.sort(np.concatenate(self.shards))
        trainer = self.trainer
        if trainer is not None and trainer.world_size > 1:
            # Lightning shards a DataLoader by itself, but not this. All parts are equally long, or ranks would wait.
            share = -(-len(indices) // trainer.world_size)
            indices = np.resize(indices, share * trainer.world_size)[trainer.global_rank :: trainer.world_size]
        loader = self._train_loader(indices, derive_seed(self.seed, "train"), self._device())
        loader.epoch = trainer.current_epoch if trainer is not None else 0  # a resumed fit goes on
        return loader

    def val_dataloader(self) -> BatchLoader:
        """Return the global test set, in order."""
        self.setup()
        return self._eval_loader(self.test, np.arange(len(self.test)))

    def test_dataloader(self) -> BatchLoader:
        """Return the global test set, in order."""
        return self.val_dataloader()

    def predict_dataloader(self) -> BatchLoader:
        """Return the global test set, in order."""
        return self.val_dataloader()

    def public_dataloader(self) -> BatchLoader:
        """Return the public split in order, not augmented; its ``index`` counts in ``train``."""
        self.setup()
        return self._eval_loader(self.train, self.public_indices)

    def partition_report(self) -> PartitionReport:
        """Return how many images of each class every client holds."""
        self.setup()
        return PartitionReport.from_shards(
            self.shards, self.train.targets.numpy(), self.classes, public=len(self.public_indices)
        )

    def _device(self) -> torch.device:
        """Return the attached Trainer's device, else the CPU."""
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def _train_loader(self, indices: np.ndarray, seed: int, device: torch.device | str, **teacher: Any) -> BatchLoader:
        return BatchLoader(
            self.train,
            indices,
            batch_size=self.batch_size,
            shuffle=True,
            seed=seed,
            augmentation=self.image_views or self.augmentation,
            device=device,
            **teacher,
        )

    def _eval_loader(self, data: ImageSet, indices: np.ndarray) -> BatchLoader:
        return BatchLoader(data, indices, batch_size=self.eval_batch_size, device=self._device())
