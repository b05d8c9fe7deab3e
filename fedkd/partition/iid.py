"""The partition without skew: every client's shard is a uniform sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedkd.partition.partitioner import Partitioner


@dataclass(frozen=True)
class IID(Partitioner):
    """Shuffles the images and assigns them to the clients in turn. Sizes differ by at most one."""

    def assign(self, labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> np.ndarray:
        """Return the client of each image (N,): see `Partitioner.assign`."""
        clients = np.empty(len(labels), dtype=np.int64)
        clients[rng.permutation(len(labels))] = np.arange(len(labels)) % num_clients
        return clients
