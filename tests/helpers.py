"""Small federations for tests: random images, a linear student, a teacher that knows the answer."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fedkd
from fedkd.core.messages import ClientUpdate, from_bytes, to_bytes
from fedkd.data import Augmentation, FederatedDataModule, PublicImages
from fedkd.partition import IID, Partitioner
from fedkd.server.backends.base import run_work

OWN_LOOPS = {"limit_train_batches": 1.0}
"""A Trainer's argument that a lean fit does not take, set to what it is anyway: all batches."""


def images(count: int, num_classes: int = 3, seed: int = 0) -> list[tuple[Tensor, int]]:
    """Return (image, label) pairs: noise, with a bright row that tells the class."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 120, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = [i % num_classes for i in range(count)]
    for image, label in zip(pixels, labels, strict=True):
        image[0, label] += 120
    return list(zip(pixels, labels, strict=True))


def datamodule(
    num_clients: int = 3,
    partitioner: Partitioner = IID(),  # noqa: B008
    count: int = 60,
    batch_size: int = 10,
    augmentation: Augmentation | None = None,
    seed: int = 0,
) -> FederatedDataModule:
    """Return a datamodule of three classes."""
    return FederatedDataModule.from_datasets(
        images(count),
        images(30, seed=1),
        num_clients=num_clients,
        partitioner=partitioner,
        batch_size=batch_size,
        augmentation=augmentation,
        seed=seed,
    )


def one_client_with_everything(count: int, batch_size: int, mix: Any = None) -> FederatedDataModule:
    """Return the data of one client: views of augmented images, perhaps mixed, and public images that it shares."""
    data = FederatedDataModule.from_datasets(
        images(count),
        images(30, seed=1),
        num_clients=1,
        batch_size=batch_size,
        augmentation=Augmentation(1, True, mix=mix),
        views=2,
        public_fraction=0.4,
        shared=PublicImages(),
    )
    data.setup()
    return data


class LinearStudent(nn.Module):
    """Softmax regression on 8x8 images."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


class BrightRowTeacher(fedkd.Teacher):
    """Reads the class off the bright row: right on every image."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Identity()

    def features(self, images: Tensor) -> Tensor:
        return 20 * images[:, 0, :3].mean(dim=-1)


class Remote(fedkd.Backend):
    """Runs clients as another machine would: site, task and update are made of bytes, and the last client is first."""

    def open(self, sites):
        return RemoteWorkers(sites)


class RemoteWorkers(fedkd.Workers):
    """As `Remote` says."""

    def __init__(self, sites):
        self.sites = sites

    def map(self, work, tasks):
        for task in reversed(list(tasks)):
            site = pickle.loads(pickle.dumps(self.sites(task.client)))
            update = run_work(pickle.loads(pickle.dumps(work)), lambda client, own=site: own, as_bytes(task))
            yield as_bytes(update) if isinstance(update, ClientUpdate) else update


def as_bytes(message):
    """Return a message that went through its bytes."""
    return from_bytes(type(message), to_bytes(message))


class Reversed(fedkd.Backend):
    """Runs the clients from last to first."""

    def open(self, sites):
        return ReversedWorkers(sites)


class ReversedWorkers(fedkd.Workers):
    """As `Reversed` says."""

    def __init__(self, sites):
        self.sites = sites

    def map(self, work, tasks):
        for task in reversed(list(tasks)):
            yield run_work(work, self.sites, task)


def sgd(lr: float = 0.1):
    """Return a factory of plain SGD."""
    return partial(torch.optim.SGD, lr=lr)


def module(student: nn.Module | str | None = None, seed: int = 0, **arguments) -> fedkd.DistillationModule:
    """Return a module with a linear student whose weights depend on the seed alone."""
    torch.manual_seed(seed)
    return fedkd.DistillationModule(
        LinearStudent() if student is None else student, **{"optimizer": sgd(), **arguments}
    )


def train_client(trained, data, strategy=None, trainer=None, client=0, extras=None, client_state=None, **settings):
    """Train one client by hand; return its task and its update. ``settings`` go to the site."""
    data.setup()
    trained.build(data.classes, data.image_shape)
    start = fedkd.Weights.of(trained.student)
    site = data.site(client, modules=(trained,), trainer={"accelerator": "cpu", **(trainer or {})}, **settings)
    rule = (strategy or fedkd.FedAvg()).local_rule(fedkd.ServerState(0, start), client)
    task = fedkd.ClientTask(0, client, start, extras or {}, client_state or {}, rule=rule)
    return task, fedkd.train(site, task)


def weights(module: fedkd.DistillationModule) -> dict[str, Tensor]:
    """Copy the student's state."""
    return {name: value.clone() for name, value in module.student.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether two states are equal, bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
