"""Teachers and heads with data that are written down: what a federation would do, on given features and shards."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from fedkd.data import ClientSite, FederatedDataModule, ImageSet, Rows
from fedkd.server.backends import Backend, InProcess
from fedkd.server.setup import Connections
from fedkd.teachers import FederatedHead, HeadClients, Teacher, prepare_teacher

NOBODY = np.empty(0, np.int64)
HERE = InProcess(threads=None)


def federation_data(train: ImageSet, test: ImageSet, shards, public=None, shared=None) -> FederatedDataModule:
    """Return a datamodule with these images and these shards."""
    data = FederatedDataModule.from_datasets(train, test, num_clients=len(shards))
    data.train, data.test = train, test
    data.shards, data.val_shards = list(shards), [NOBODY] * len(shards)
    data.public_indices, data.shared_images = NOBODY if public is None else public, shared
    return data


def prepare(teacher: Teacher, train: ImageSet, test: ImageSet, shards, public=None, shared=None, **options):
    """Prepare a teacher; return its outputs, with the bytes that were sent: ``head_bytes`` and ``head_bytes_down``."""
    connect = Connections(InProcess(threads=None))
    outputs = prepare_teacher(teacher, federation_data(train, test, shards, public, shared), connect=connect, **options)
    return SimpleNamespace(**vars(outputs), head_bytes=connect.traffic.up, head_bytes_down=connect.traffic.down)


def adapt(teacher: Teacher, train: ImageSet, shards, backend: Backend = HERE):
    """Adapt a teacher to clients' images; return what was sent for it."""
    connect = Connections(backend)
    teacher.adapt(federation_data(train, train, shards), connect)
    return connect.traffic


def fit_head(
    head: FederatedHead, features: np.ndarray, targets: torch.Tensor, shards, num_classes: int, backend: Backend = HERE
):
    """Fit a head; return what `FederatedHead.fit` does, with ``bytes_up`` and ``bytes_down``.

    Args:
        head: The method.
        features: (N, D).
        targets: (N,).
        shards: For each client its rows of the two.
        num_classes: K.
        backend: Where the clients run.
    """

    def site(client: int) -> ClientSite:
        rows = torch.from_numpy(np.asarray(shards[client]))
        blank = torch.zeros(len(rows), 1, 1, 1, dtype=torch.uint8)
        names = tuple(map(str, range(num_classes)))
        own = Rows(blank, targets[rows], rows, names, teacher_features=np.asarray(features[rows.numpy()]))
        return ClientSite(client, 0, own, held_out=Rows(blank[:0], targets[:0], rows[:0], names))

    connect = Connections(backend)
    with connect(site) as exchange:
        counts = {client: len(shard) for client, shard in enumerate(shards)}
        fitted = head.fit(HeadClients(exchange, counts, num_classes, np.asarray(features).shape[1]))
    return SimpleNamespace(**vars(fitted), bytes_up=connect.traffic.up, bytes_down=connect.traffic.down)
