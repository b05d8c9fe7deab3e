"""The data of a federation: private shards, a public split, and one global test set."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import RenderableType
from torch import Tensor

from fedkd.core.errors import MAX_CLIENTS, FedKDError, check_range, refuse_classes
from fedkd.core.notebook import Shown
from fedkd.core.seeding import derive_seed
from fedkd.data.images.augmentation import Augmentation
from fedkd.data.images.image_set import ImageSet, with_same_channels
from fedkd.data.images.views import Views
from fedkd.data.loader import BatchLoader
from fedkd.data.pool import Pool
from fedkd.data.rows import Rows
from fedkd.data.shared import SharedImages, Unlabeled
from fedkd.data.shared_stream import SharedStream
from fedkd.data.site import Batching, ClientSite, SimulatedSites
from fedkd.data.sources import Datasets, Digits, ImageSource
from fedkd.data.splits import hold_out, stratified_split
from fedkd.partition import Dirichlet, Partitioner, PartitionReport

CLIENTS = 10
"""Default number of clients."""

STAGES = ("adapt", "head", "loss", "rounds")
"""What clients work on, in this order: the teacher's adapter, its head, what the loss takes from it, and the rounds."""

MAX_VIEWS = 10_000
"""A larger number is a mistake: the teacher's outputs for all views of all images would fill the disk."""


class FederatedDataModule(Shown, LightningDataModule):
    """Partitions a data set over clients, and serves all of it to a plain Trainer (the central baseline).

    Args:
        dataset: Where the images come from.
        num_clients: How many clients there are. None is as many as the partitioner fixes (`ByAttribute`, `Given`), or
            else 10.
        partitioner: How the training images are distributed over them.
        batch_size: Images in a training batch.
        eval_batch_size: Images in a batch that is only predicted; None suits the device: 64 on a CPU, where larger
            batches leave its caches and take twice as long, else 512.
        augmentation: What is done to training images; None leaves them as they are.
        views: None draws augmentations anew in every epoch. A number V draws V fixed versions of each image, of which
            every epoch shows one, so a teacher's outputs for what the student sees can be cached
            (``federation.teaching: consistent``). A view is what crop, flip and transforms make of the image.
        public_fraction: The share of every class that belongs to no client, in [0, 1). The split belongs to the data
            set and follows no seed, so a model trained on it has seen no client's image in any run.
        val_fraction: The share of its images that each client holds out of training, in [0, 1).
        shared: Unlabeled images that every client also trains on, with the teacher's outputs as targets; without a
            teacher they are left out.
        seed: Decides the partition, what is held out, and the order of ``train_dataloader``.

    Attributes:
        train: The training images, public ones included.
        test: The global test set.
        shards: For each client its sorted positions in ``train``, int64, those held out excluded.
        val_shards: For each client the positions that it holds out, likewise.
        public_indices: Sorted positions in ``train`` of the public split, int64.
        shared_images: The shared images, if there are any.

    Raises:
        FedKDError: If a value is outside its range.
    """

    has_rows: ClassVar[bool] = True
    """Whether ``shards`` are positions in ``train``; where clients' images are on other machines, only their number
    counts: see `fedkd.data.remote.RemoteData`."""

    train: ImageSet
    test: ImageSet
    shards: list[np.ndarray]
    val_shards: list[np.ndarray]
    public_indices: np.ndarray
    shared_images: Unlabeled | None

    def __init__(
        self,
        dataset: ImageSource = Digits(),  # noqa: B008 (frozen)
        num_clients: int | None = None,
        partitioner: Partitioner = Dirichlet(0.1),  # noqa: B008 (frozen)
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        augmentation: Augmentation | None = None,
        views: int | None = None,
        public_fraction: float = 0.0,
        val_fraction: float = 0.0,
        shared: SharedImages | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        refuse_classes(dataset=dataset, partitioner=partitioner, augmentation=augmentation, shared=shared)
        if num_clients is not None:
            check_range("num_clients", num_clients, low=1, high=MAX_CLIENTS, whole=True)
        check_range("batch_size", batch_size, low=1, whole=True)
        if eval_batch_size is not None:
            check_range("eval_batch_size", eval_batch_size, low=1, whole=True)
        if views is not None:
            check_range("views", views, low=1, high=MAX_VIEWS, whole=True)
        if augmentation is not None and augmentation.mix is not None and batch_size < 2:
            raise FedKDError("augmentation.mix mixes the images of a batch, so set batch_size to 2 or more, got 1.")
        check_range("public_fraction", public_fraction, low=0, high=1, high_open=True)
        check_range("val_fraction", val_fraction, low=0, high=1, high_open=True)
        self.dataset = dataset
        self._num_clients = num_clients
        if num_clients is None and not partitioner.fixes_clients:
            self._num_clients = CLIENTS
        self.partitioner = partitioner
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.augmentation = augmentation
        self.views = views
        self.public_fraction = public_fraction
        self.val_fraction = val_fraction
        self.shared = shared
        self.seed = seed

    def _tables(self) -> list[RenderableType]:
        """Return, once the data is there, which client has which images."""
        if not hasattr(self, "shards"):
            return []
        report = self.partition_report()
        return [report.table(), report.skew_table()]

    @classmethod
    def from_datasets(  # type: ignore[override]
        cls, train: Any, test: Any, **kwargs: Any
    ) -> FederatedDataModule:
        """Build from two map-style datasets; other arguments as for the class.

        Args:
            train: Its items are (image, label), or rows with these as columns, as those of a HuggingFace
                ``datasets.Dataset``: see `fedkd.data.ImageSet.from_dataset`.
            test: Likewise.
            kwargs: Arguments of the class.
        """
        return cls(Datasets(train, test), **kwargs)

    def prepare_data(self) -> None:
        """Download or decode what is not there yet."""
        self._load()

    def setup(self, stage: str | None = None) -> None:
        """Load the images and partition them; a second call changes nothing."""
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
        partitioner = self.partitioner.for_data(self.train.attributes)
        if self._num_clients is None:
            self._num_clients = partitioner.count_clients(len(targets))
        self.shared_images = None if self.shared is None else self.shared.load(self.train, self.public_indices)
        rng = np.random.default_rng(derive_seed(self.seed, "partition"))
        shards = partitioner(targets, self._num_clients, rng, among=private)
        self.val_shards = hold_out(shards, targets, self.val_fraction, self.seed)
        self.shards = [np.setdiff1d(shard, held) for shard, held in zip(shards, self.val_shards, strict=True)]

    def _load(self) -> None:
        if hasattr(self, "train"):
            return
        self.train, self.test = self._checked(*self.dataset.load())

    def _checked(self, train: ImageSet, test: ImageSet) -> tuple[ImageSet, ImageSet]:
        """Return the training and the test set with the same channels, if they go together.

        Raises:
            FedKDError: If they do not.
        """
        train, test = with_same_channels(train, test)
        if test.classes != train.classes or test.image_shape != train.image_shape:
            raise FedKDError(
                "The training and the test set must have the same classes and image shape (C, H, W), got "
                f"{train.num_classes} classes of {train.image_shape} and {test.num_classes} of {test.image_shape}."
            )
        check_classes(train, test)
        if self.augmentation is not None:
            self.augmentation.check(train.image_shape)
        return train, test

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that it was made with; ``num_clients`` as far as it is known."""
        names = ("batch_size", "eval_batch_size", "augmentation", "views", "public_fraction", "val_fraction", "shared")
        given = {name: getattr(self, name) for name in ("dataset", "partitioner", *names, "seed")}
        return {**given, "num_clients": self._num_clients}

    @property
    def train_numbers(self) -> np.ndarray | None:
        """Return the number of each image of ``train`` in its data set, int64; None if ``train`` is all of it."""
        return None

    @property
    def data_fingerprint(self) -> str:
        """Return a hash of the training images."""
        return self.train.fingerprint

    @property
    def partition_fingerprint(self) -> str:
        """Return a hash of which client trains on which images."""
        positions = (np.asarray(shard, np.int64).tobytes() for shard in self.shards)
        return hashlib.sha256(b"|".join(positions)).hexdigest()

    @property
    def num_clients(self) -> int:
        """Return the number of clients. Where the data decide it, they are loaded first."""
        if self._num_clients is None:
            self.setup()
        assert self._num_clients is not None  # set by `setup`
        return self._num_clients

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

    @property
    def batching(self) -> Batching:
        """Return how a client's batches are made."""
        augmentation = self.image_views or self.augmentation
        return Batching(self.batch_size, self.eval_batch_size, augmentation, self.shared)

    def pools(
        self,
        public_logits: Tensor | None = None,
        shared_logits: Tensor | None = None,
        shared_features: Path | None = None,
        public_features: Path | None = None,
    ) -> dict[str, Pool]:
        """Return the unlabeled images that all may see, by name: "public" and "shared", as far as there are any.

        Args:
            public_logits: The teacher's, for all of ``train``: (N, K), or (N, V, K) of the fixed views.
            shared_logits: The teacher's, for all of ``shared_images.data``, likewise.
            shared_features: A ``.npy`` file of its features for these, (M, V, D).
            public_features: A file of its features for all of ``train``, (N, V, D).
        """
        self.setup()
        found: dict[str, Pool] = {}
        if len(self.public_indices):
            public = Unlabeled.of(self.train.images, self.classes, self.public_indices)
            found["public"] = self._pool(public, public_logits, public_features)
        if self.shared_images is not None:
            found["shared"] = self._pool(self.shared_images, shared_logits, shared_features)
        return found

    def _pool(self, images: Unlabeled, logits: Tensor | None, features: Path | None) -> Pool:
        rows, numbers = images.rows(logits, features), self.train_numbers
        if numbers is not None and images.data.images is self.train.images:
            rows = replace(rows, index=torch.from_numpy(numbers[images.indices]))
        views = self.image_views
        return Pool(
            rows,
            batch_size=self.batch_size,
            eval_batch_size=self.eval_batch_size,
            augmentation=views or self.augmentation,
            views=views if logits is None or logits.ndim == 3 else None,
        )

    def sites(self, stage: str = "rounds", **settings: Any) -> SimulatedSites:
        """Return what makes each client's site.

        Args:
            stage: What the clients work on, one of `STAGES`. Where this machine has all clients' rows it makes no
                difference.
            settings: Further arguments of `SimulatedSites`.
        """
        self.setup()
        return SimulatedSites(
            self.train, self.shards, self.val_shards, **{"seed": self.seed, "batching": self.batching, **settings}
        )

    def site(self, client: int, **settings: Any) -> ClientSite:
        """Return one client's site, such as to run the client by hand.

        Args:
            client: The client, in ``[0, num_clients)``.
            settings: Further arguments of `SimulatedSites`, such as ``modules``.

        Raises:
            FedKDError: If there is no such client.
        """
        if client not in range(self.num_clients):
            raise FedKDError(f"There is no client {client!r}: choose one of 0..{self.num_clients - 1}.")
        return self.sites(**settings)(client)

    def train_dataloader(self) -> BatchLoader:
        """Return shuffled, augmented batches of all clients' images; with several devices, this one's part of them.

        Shared images join them; a teacher then runs on the batch itself.
        """
        self.setup()
        indices = np.sort(np.concatenate(self.shards))
        trainer, rank = self.trainer, 0
        if trainer is not None and trainer.world_size > 1:
            # Lightning shards a DataLoader by itself, but not this. All parts are equally long, or ranks would wait.
            rank = trainer.global_rank
            share = -(-len(indices) // trainer.world_size)
            indices = np.resize(indices, share * trainer.world_size)[rank :: trainer.world_size]
        seed = derive_seed(self.seed, "train")
        loader = BatchLoader(
            Rows.of(self.train, indices),
            batch_size=self.batch_size,
            shuffle=True,
            seed=seed,
            augmentation=self.image_views or self.augmentation,
            device=self._device(),
            shared=self._shared_stream(derive_seed(seed, rank)),
        )
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
            self.shards,
            self.train.targets.numpy(),
            self.classes,
            len(self.public_indices),
            sum(map(len, self.val_shards)),
        )

    def _device(self) -> torch.device:
        """Return the attached Trainer's device, else the CPU."""
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def _shared_stream(self, seed: int) -> SharedStream | None:
        if self.shared_images is None or self.shared is None:
            return None
        return SharedStream(
            self.shared_images.rows(),
            self.shared,
            seed=derive_seed(seed, "shared"),
            augmentation=self.image_views or self.augmentation,
            device=self._device(),
        )

    def _eval_loader(self, data: ImageSet, indices: np.ndarray) -> BatchLoader:
        return BatchLoader(Rows.of(data, indices), batch_size=self.eval_batch_size, device=self._device())


NAMED_CLASSES = 5
"""So many classes without images are named."""


def check_classes(train: ImageSet, test: ImageSet) -> None:
    """Refuse data of a single class, and warn of classes without an image.

    Raises:
        FedKDError: If there are fewer than two classes.
    """
    if train.num_classes < 2:
        raise FedKDError(
            f"The data has {train.num_classes} class{'' if train.classes else 'es'}"
            f"{f', {train.classes[0]!r}' if train.classes else ''}: there is nothing to tell apart. Give the labels of "
            "two or more classes; in a folder of images, one folder per class in train/ and test/."
        )
    for part, data, consequence in (
        ("training", train, "no client learns it from labels"),
        ("test", test, "its accuracy is NaN, and balanced accuracy is over the other classes"),
    ):
        counts = torch.bincount(data.targets, minlength=data.num_classes)
        missing = [name for name, count in zip(data.classes, counts.tolist(), strict=True) if not count]
        if missing and len(data):
            more = "" if len(missing) <= NAMED_CLASSES else ", ..."
            rank_zero_warn(
                f"{len(missing)} of {data.num_classes} classes have no {part} image "
                f"({', '.join(missing[:NAMED_CLASSES])}{more}): for such a class {consequence}."
            )
