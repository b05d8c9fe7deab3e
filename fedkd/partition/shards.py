"""Shards of sorted data.

McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data", arXiv 1602.05629,
section 3: "we first sort the data by digit label, divide it into 200 shards of size 300, and assign
each of 100 clients 2 shards".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedkd.core.errors import FedKDError
from fedkd.partition.partitioner import Partitioner, check_count


@dataclass(frozen=True)
class Shards(Partitioner):
    """Sorts the images by label, cuts them into equal shards and assigns each client the same number of shards.

    Sizes differ by at most ``shards_per_client``. A shard across the border between two classes has images of both, so
    a client may have more classes than shards. Two shards of a client may also have the same class. The order of images
    within a class is random, because the order in the data set may depend on another property and would skew clients
    by it.

    With more shards than images some shards are empty.

    Args:
        shards_per_client: How many shards each client gets; 2 in the paper.

    Raises:
        FedKDError: If ``shards_per_client`` is not an integer of at least 1. When called, if it exceeds the number of
            images.
    """

    shards_per_client: int = 2

    def __post_init__(self) -> None:
        """Check ``shards_per_client``."""
        check_count("shards_per_client", self.shards_per_client)

    def assign(self, labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> np.ndarray:
        """Return the client of each image (N,): see `Partitioner.assign`."""
        if self.shards_per_client > len(labels):
            raise FedKDError(
                f"shards_per_client must be at most the number of images, {len(labels)}, got {self.shards_per_client}."
            )
        num_shards = num_clients * self.shards_per_client
        mixed = rng.permutation(len(labels))
        by_label = mixed[np.argsort(labels[mixed], kind="stable")]  # (N,)
        owners = rng.permutation(num_shards) // self.shards_per_client  # (num_shards,)
        clients = np.empty(len(labels), dtype=np.int64)
        clients[by_label] = owners[np.arange(len(labels)) * num_shards // len(labels)]
        return clients
