"""Clients that differ only in size, as in Li et al. 2022 (arXiv 2102.02079, section 4.3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedkd.partition.dirichlet import draw_proportions, round_to_counts
from fedkd.partition.drawn import DrawnPartitioner


@dataclass(frozen=True)
class QuantitySkew(DrawnPartitioner):
    """Gives every client a uniform sample, of a size drawn from a symmetric Dirichlet distribution over the clients.

    Args:
        alpha: The concentration. Toward 0 one client holds all images; toward infinity all sizes are equal.
        min_examples: The minimum number of images per client. Sizes are drawn again until every client has it.

    Raises:
        FedKDError: If ``alpha`` is not between 1e-100 and 1e100 or ``min_examples`` is not an integer of at least 0.
            When called, if no draw gives every client ``min_examples``.
    """

    def draw(self, labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> np.ndarray:
        """Return the client of each image (N,): see `DrawnPartitioner.draw`."""
        counts = round_to_counts(draw_proportions(self.alpha, num_clients, rng), len(labels), rng)  # (J,)
        clients = np.empty(len(labels), dtype=np.int64)
        clients[rng.permutation(len(labels))] = np.repeat(np.arange(num_clients), counts)
        return clients
