"""A small part of a federation's data, and what the works on all of it and on the part have to do."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedkd.data import FederatedDataModule, ImageSet
from fedkd.data.shared import Unlabeled
from fedkd.training.trainer import with_defaults

ON_POOL = ("predict", "distill_pool")
"""The works of `fedkd.client.works` whose time grows with the pool of unlabeled images."""


@dataclass(frozen=True)
class Size:
    """How large a small run is.

    Args:
        clients: Its clients in a round.
        batches: Training batches in an epoch of a client, at most.
        epochs: Local epochs, at most.
        share: The share of the test set and of the pools, in (0, 1].
        rounds: Its rounds.
    """

    clients: int
    batches: int
    epochs: int
    share: float
    rounds: int


@dataclass(frozen=True)
class Amounts:
    """What works on clients have to do.

    Args:
        batches: Training batches in a round, by client; infinite where only ``max_time`` ends a client's training.
        rows: Training images, by client.
        held_out: Images that are held out, by client.
        pool: Unlabeled images that all may see.
        num_clients: All clients, those without images included.
    """

    batches: Mapping[int, float]
    rows: Mapping[int, int]
    held_out: Mapping[int, int]
    pool: int
    num_clients: int

    @classmethod
    def of(cls, data: FederatedDataModule, trainer: Mapping[str, Any]) -> Amounts:
        """Count.

        Args:
            data: Set up.
            trainer: Arguments of the clients' Trainers.
        """
        rows = {client: len(shard) for client, shard in enumerate(data.shards) if len(shard)}
        shared = 0 if data.shared_images is None else len(data.shared_images)
        return cls(
            batches={client: count_batches(count, data.batch_size, trainer) for client, count in rows.items()},
            rows=rows,
            held_out={client: len(shard) for client, shard in enumerate(data.val_shards) if len(shard)},
            pool=max(len(data.public_indices), shared),
            num_clients=data.num_clients,
        )

    def of_work(self, work: str, clients: Sequence[int]) -> float:
        """Return how much a work has to do at some clients on average, in what its time grows with."""
        if work in ON_POOL:
            return self.pool
        kind = {"train": self.batches, "evaluate_held_out": self.held_out}.get(work, self.rows)
        # clients without images reply to private works
        return sum(kind.get(client, 0) for client in clients) / max(1, len(clients))


def count_batches(count: int, batch_size: int, trainer: Mapping[str, Any]) -> float:
    """Return how many training batches a client's Trainer takes in a round; infinite if only a time ends it.

    Args:
        count: The client's training images.
        batch_size: Images in a batch.
        trainer: Arguments of the Trainer.
    """
    arguments = with_defaults(trainer)
    epoch, limit = -(-count // batch_size), arguments.get("limit_train_batches")
    if isinstance(limit, float):
        epoch = int(epoch * limit)
    elif limit is not None:
        epoch = min(epoch, limit)
    epochs, steps = arguments["max_epochs"], arguments.get("max_steps", -1)
    batches = epoch * epochs if epochs > 0 else math.inf
    if steps not in (None, -1):
        batches = min(batches, steps * arguments.get("accumulate_grad_batches", 1))
    return batches


def short_trainer(trainer: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """Return a Trainer's arguments for a small run. No argument is left out: some decide which loop trains."""
    arguments, epochs = dict(trainer), with_defaults(trainer)["max_epochs"]
    arguments["max_epochs"] = size.epochs if epochs < 0 else min(epochs, size.epochs)
    if isinstance(arguments.get("limit_train_batches"), float):
        arguments["limit_train_batches"] = size.batches  # a share of so few batches may be none
    return arguments


def choose_clients(shards: Sequence[np.ndarray], kinds: int, count: int) -> list[int]:
    """Return clients that stand for all: the largest of each kind, then the smallest, then evenly by size.

    Args:
        shards: The images of each client.
        kinds: Client k has the student k modulo this number.
        count: How many clients to return, if so many have images; at least one of each kind.
    """
    by_size = sorted((client for client, shard in enumerate(shards) if len(shard)), key=lambda c: -len(shards[c]))
    chosen = list({client % kinds: client for client in reversed(by_size)}.values())
    count = max(count, len(chosen))
    evenly = [by_size[position] for position in np.linspace(0, len(by_size) - 1, count).astype(int)]
    rest = [client for client in (by_size[-1], *evenly, *by_size) if client not in chosen]
    return sorted([*chosen, *dict.fromkeys(rest)][:count])


def evenly(rows: np.ndarray, count: int) -> np.ndarray:
    """Return some of the rows, as many of the first as of the last: data sets are often sorted by class."""
    return rows if count >= len(rows) else rows[np.linspace(0, len(rows) - 1, count).astype(int)]


def sample_data(
    data: FederatedDataModule, clients: Sequence[int], size: Size
) -> tuple[FederatedDataModule, dict[int, ImageSet]]:
    """Return a datamodule with a few images of some clients; the others are empty.

    Batches are whole, since a last batch of one image would be an error that the run itself does not have.

    Args:
        data: Set up.
        clients: Those that keep images.
        size: How many they keep.

    Returns:
        The datamodule, which is set up, and for each of its sets of images, by `id`, the set that it was taken from.
    """
    share, most = size.share, size.batches * data.batch_size
    shards = [evenly(shard, most if client in clients else 0) for client, shard in enumerate(data.shards)]
    held = [
        evenly(shard, max(1, round(share * len(shard))) if client in clients else 0)
        for client, shard in enumerate(data.val_shards)
    ]
    public = evenly(data.public_indices, math.ceil(share * len(data.public_indices)))
    kept = np.unique(np.concatenate([*shards, *held, public]))
    small = copy.copy(data)
    small.train = data.train.subset(kept)
    small.test = data.test.subset(evenly(np.arange(len(data.test)), math.ceil(share * len(data.test))))
    small.shards = [np.searchsorted(kept, shard) for shard in shards]
    small.val_shards = [np.searchsorted(kept, shard) for shard in held]
    small.public_indices = np.searchsorted(kept, public)
    whole = {id(small.train): data.train, id(small.test): data.test}
    if (shared := data.shared_images) is not None:
        if shared.data.images is data.train.images:
            small.shared_images = Unlabeled.of(small.train.images, small.train.classes, small.public_indices)
        else:
            some = evenly(shared.indices, math.ceil(share * len(shared)))
            small.shared_images = Unlabeled.of(shared.data.subset(some).images, shared.data.classes)
        whole[id(small.shared_images.data)] = shared.data
    return small, whole
