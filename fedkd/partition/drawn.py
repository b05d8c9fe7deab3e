"""The base of partitioners that use a Dirichlet distribution: its alpha, and a minimum size of shards.

Li et al. 2022, "Federated Learning on Non-IID Data Silos: An Experimental Study" (arXiv 2102.02079), also draw again
until every client has enough images. Their loop never ends if no draw is accepted; here the number of draws is limited.
The accepted draws do not follow the Dirichlet distribution exactly, so the minimum is off by default.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import dataclass, field, replace

import numpy as np

from fedkd.core.errors import FedKDError, check_range
from fedkd.partition.partitioner import Partitioner

DRAWS = 100  # before giving up
TRIAL_DRAWS = 10  # for each value that the error may name
ALPHAS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)


@dataclass(frozen=True)
class DrawnPartitioner(Partitioner):
    """A partitioner with one method, `draw`, which is repeated until every client has ``min_examples``.

    Args:
        alpha: The concentration of the Dirichlet distribution.
        min_examples: The minimum number of images per client; 0 accepts every first draw.

    Raises:
        FedKDError: If ``alpha`` is not between 1e-100 and 1e100 or ``min_examples`` is not an integer of at least 0.
            When called, if 100 draws do not give every client ``min_examples``. The error names values that would.
    """

    alpha: float
    min_examples: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        """Check the values. The bounds of ``alpha`` are far outside any use; between them nothing overflows."""
        check_range("alpha", self.alpha, low=1e-100, high=1e100)
        least = self.min_examples
        if isinstance(least, bool) or not isinstance(least, int | np.integer) or least < 0:
            raise FedKDError(f"min_examples must be an integer >= 0, got {least!r}.")

    @abstractmethod
    def draw(self, labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> np.ndarray:
        """Return the client, in ``[0, num_clients)``, of each image; arguments as for `Partitioner.assign`."""

    def assign(self, labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> np.ndarray:
        """Return the client of each image (N,): see `Partitioner.assign`."""
        if self.min_examples == 0:
            return self.draw(labels, num_clients, rng)
        most = len(labels) // self.min_examples
        if num_clients > most:
            raise FedKDError(
                f"min_examples {self.min_examples} for each of {num_clients:,} clients needs "
                f"{self.min_examples * num_clients:,} images, but there are {len(labels):,}; use min_examples <= "
                f"{len(labels) // num_clients}{f' or num_clients <= {most}' if most else ''}."
            )
        start = copy.deepcopy(rng)
        clients, smallest = self._draw_again(labels, num_clients, rng, DRAWS)
        if smallest >= self.min_examples:
            return clients
        raise FedKDError(
            f"{self._name}: none of {DRAWS} draws gave each of {num_clients:,} clients min_examples="
            f"{self.min_examples} of {len(labels):,} images; {self._remedies(labels, num_clients, start, smallest)}"
        )

    def _draw_again(
        self, labels: np.ndarray, num_clients: int, rng: np.random.Generator, draws: int
    ) -> tuple[np.ndarray, int]:
        """Return the first draw with ``min_examples`` per client, else the best one, and its smallest shard's size."""
        best, most = None, -1
        for _ in range(draws):
            clients = self.draw(labels, num_clients, rng)
            smallest = int(np.bincount(clients, minlength=num_clients).min())
            if smallest > most:
                best, most = clients, smallest
            if most >= self.min_examples:
                break
        assert best is not None
        return best, most

    def _remedies(self, labels: np.ndarray, num_clients: int, start: np.random.Generator, smallest: int) -> str:
        """Try other values from the same state of ``rng``, so that the values in the error work with that seed."""

        def works(partitioner: DrawnPartitioner, clients: int) -> bool:
            try:
                return partitioner._draw_again(labels, clients, copy.deepcopy(start), TRIAL_DRAWS)[1] >= least
            except FedKDError:  # too few clients to hold all classes
                return False

        least = self.min_examples
        alphas = (alpha for alpha in ALPHAS if alpha > self.alpha and works(replace(self, alpha=alpha), num_clients))
        halves = (num_clients >> k for k in range(1, num_clients.bit_length()))
        remedies = {
            "alpha": next(alphas, None),
            "num_clients": next((fewer for fewer in halves if works(self, fewer)), None),
            "min_examples": smallest,
        }
        found = [f"{name}={value:g}" for name, value in remedies.items() if value is not None]
        return f"what works: {', '.join(found[:-1])} or {found[-1]}." if found[1:] else f"what works: {found[0]}."

    @property
    def _name(self) -> str:
        return f"{type(self).__name__} with alpha={self.alpha:g}"
