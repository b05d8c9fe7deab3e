"""Data on several machines: what a server knows of its clients' data, and what a client has on its own machine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import nn

from fedkd.core.errors import FedKDError
from fedkd.data.datamodule import FederatedDataModule
from fedkd.data.images.folder import ImageFolder
from fedkd.data.images.image_set import ImageSet
from fedkd.data.shared import Unlabeled
from fedkd.data.splits import hold_out
from fedkd.partition import PartitionReport

NOTHING = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class ClientCounts:
    """What a server is told of a client's data: how many images there are, and not which.

    Args:
        num_examples: Training images.
        num_held_out: Images that the client holds out.
        fingerprint: A hash of the images and labels.
    """

    num_examples: int
    num_held_out: int
    fingerprint: str


@dataclass(frozen=True, eq=False)
class RemoteSites:
    """Stands for the sites of clients on other machines, each of which makes its own site: see `fedkd.flower`.

    Args:
        stage: What the clients work on, one of `fedkd.data.datamodule.STAGES`.
        teacher: The server's teacher. Clients are sent what it has learned so far: an adapter, a head.
        modules: The modules that clients train. Clients are sent what their losses took from the teacher.
        recipe: What a client loads the teacher from that is being adapted, as for `fedkd.data.ClientSite`.
    """

    stage: str
    teacher: nn.Module | None
    modules: Sequence[Any] = ()
    recipe: Mapping[str, Any] | None = None

    def __call__(self, client: int) -> Any:
        """Refuse: the server has no client's rows."""
        raise FedKDError(f"The rows of client {client} are on another machine.")


class RemoteData(FederatedDataModule):
    """A federation's data as its server sees them: the public pool and the test set. No client's image is in it.

    Args:
        local: The server's own data, set up. What it has of the clients' images is let go.
        counts: What each client told of its data, in the order of the clients.
        teacher: The run's teacher.
    """

    has_rows: ClassVar[bool] = False

    def __init__(
        self, local: FederatedDataModule, counts: Sequence[ClientCounts], teacher: nn.Module | None = None
    ) -> None:
        super().__init__(**{**local.arguments(), "num_clients": len(counts)})
        self.counts, self.teacher = tuple(counts), teacher
        if local.has_rows:  # the data set that all share, of which each client takes its part
            self._report = local.partition_report()
            self._fingerprints = local.data_fingerprint, local.partition_fingerprint
        else:
            self._report = self._report_of_counts(len(local.public_indices))
            self._fingerprints = self._hashes_of_counts()
        self._numbers = local.public_indices
        self.train, self.test = local.train.subset(local.public_indices), local.test
        self.public_indices = np.arange(len(self.train))
        self.shared_images = self._shared(local)
        # how many, not which
        self.shards = [np.arange(each.num_examples) for each in counts]
        self.val_shards = [np.arange(each.num_held_out) for each in counts]

    @property
    def train_numbers(self) -> np.ndarray:
        """Return the number of each public image in its data set, which decides its augmentation."""
        return self._numbers

    @property
    def data_fingerprint(self) -> str:
        """Return a hash of all clients' images."""
        return self._fingerprints[0]

    @property
    def partition_fingerprint(self) -> str:
        """Return a hash of which client has which images."""
        return self._fingerprints[1]

    def partition_report(self) -> PartitionReport:
        """Return how many images each client holds; of each class, if the data set is one that all share."""
        return self._report

    def sites(self, stage: str = "rounds", **settings: Any) -> Any:
        """Return what stands for the clients' sites in a stage of a run."""
        return RemoteSites(stage, self.teacher, settings.get("modules", ()), settings.get("teacher"))

    def _shared(self, local: FederatedDataModule) -> Unlabeled | None:
        """Return the shared images; those of the public split are the ones that are left in ``train``."""
        shared = local.shared_images
        are_public = shared is not None and shared.data.images is local.train.images
        return Unlabeled.of(self.train.images, self.classes) if are_public else shared

    def _report_of_counts(self, public: int) -> PartitionReport:
        sizes = np.array([[each.num_examples] for each in self.counts], dtype=np.int64)
        held_out = sum(each.num_held_out for each in self.counts)
        return PartitionReport(sizes, ("all classes",), public, held_out)

    def _hashes_of_counts(self) -> tuple[str, str]:
        images = hashlib.sha256("|".join(each.fingerprint for each in self.counts).encode())
        sizes = hashlib.sha256(repr([(each.num_examples, each.num_held_out) for each in self.counts]).encode())
        return images.hexdigest(), sizes.hexdigest()


class PoolAndTest(FederatedDataModule):
    """What the server of clients with images of their own needs: the test set and, if there is one, the public pool.

    Of an `ImageFolder` they are ``test/`` and, where ``public_fraction`` is above 0, all of ``train/``. Of another data
    set they are its test set and its public split; the images that are left are nobody's.

    Args:
        settings: The run's data, not set up.
    """

    has_rows: ClassVar[bool] = False

    def __init__(self, settings: FederatedDataModule) -> None:
        super().__init__(**settings.arguments())

    def setup(self, stage: str | None = None) -> None:
        """Load the images."""
        if hasattr(self, "shards"):
            return
        if isinstance(self.dataset, ImageFolder):
            test = self.dataset.load_part("test")
            pool = self.dataset.load_part("train", test.classes) if self.public_fraction else test.subset([])
            self.train, self.test = self._checked(pool, test)
            self.public_indices = np.arange(len(self.train))
            clients = self.num_clients
            self.shards = self.val_shards = [NOTHING] * clients
            self.shared_images = None if self.shared is None else self.shared.load(self.train, self.public_indices)
        else:
            super().setup()

    def _load(self) -> None:
        if not isinstance(self.dataset, ImageFolder):
            super()._load()


class OwnData(FederatedDataModule):
    """The data of one client that has images of its own, on its own machine.

    Args:
        settings: The run's data, not set up, of which batches and what is held out are taken.
        images: The client's images, with the classes of the whole federation.
        client: The client's index.
    """

    def __init__(self, settings: FederatedDataModule, images: ImageSet, client: int) -> None:
        super().__init__(**settings.arguments())
        everything = [NOTHING] * self.num_clients
        everything[client] = np.arange(len(images))
        self.train = self.test = images
        self.public_indices, self.shared_images = NOTHING, None
        self.val_shards = hold_out(everything, images.targets.numpy(), self.val_fraction, self.seed)
        self.shards = [np.setdiff1d(shard, held) for shard, held in zip(everything, self.val_shards, strict=True)]
