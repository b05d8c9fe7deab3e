"""Few classes per client and unequal sizes: both skews at once, each with its own parameter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedkd.partition.class_specific import images_and_holders
from fedkd.partition.dirichlet import draw_proportions, round_to_counts
from fedkd.partition.drawn import DrawnPartitioner
from fedkd.partition.partitioner import check_count


@dataclass(frozen=True)
class ClassAndQuantity(DrawnPartitioner):
    """Gives every client a few classes, and splits each class over its clients by a Dirichlet distribution.

    Classes are assigned as in `ClassSpecific`, which is the limit of a large ``alpha``. A client whose share of a class
    is less than one image may hold fewer classes than it was assigned. A class that one client holds is not split, so
    ``alpha`` has no effect if clients x classes_per_client = classes.

    Args:
        alpha: The concentration. Toward 0 each class goes entirely to one of the clients that hold it. Toward infinity
            these clients get equal parts.
        classes_per_client: How many different classes each client is assigned.
        min_examples: The minimum number of images per client. The partition is drawn again until every client has it.

    Raises:
        FedKDError: If ``alpha`` is not between 1e-100 and 1e100, ``classes_per_client`` is not an integer of at least 1
            or ``min_examples`` is not an integer of at least 0. When called, if there are fewer classes than
            ``classes_per_client``, the clients cannot cover all classes, or no draw gives every client
            ``min_examples``.
    """

    classes_per_client: int = 2

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_count("classes_per_client", self.classes_per_client)

    def draw(self, labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> np.ndarray:
        """Return the client of each image (N,): see `DrawnPartitioner.draw`."""
        clients = np.empty(len(labels), dtype=np.int64)
        for members, holders in images_and_holders(labels, num_clients, self.classes_per_client, rng):
            shares = draw_proportions(self.alpha, len(holders), rng)
            clients[rng.permutation(members)] = np.repeat(holders, round_to_counts(shares, len(members), rng))
        return clients
