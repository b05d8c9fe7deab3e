"""Which clients take part in a round."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedkd.core.errors import FedKDError
from fedkd.core.seeding import derive_seed


def sample_cohort(clients: Sequence[int], clients_per_round: int | None, *, seed: int, round: int) -> list[int]:
    """Draw a round's cohort, uniformly and without replacement.

    The draw depends on (seed, round) only, so a resumed run draws the cohorts that it would have drawn.

    Args:
        clients: Indices of the clients that have data.
        clients_per_round: Size of the cohort; None, or more than there are clients with data, takes them all.
        seed: The run's seed.
        round: The round, 0-based.

    Returns:
        Sorted client indices.

    Raises:
        FedKDError: If no client has data.
    """
    if not clients:
        raise FedKDError("No client has any data: lower data.public_fraction or give the data set more images.")
    if clients_per_round is None or clients_per_round >= len(clients):
        return sorted(clients)
    rng = np.random.default_rng(derive_seed(seed, "cohort", round))
    return sorted(clients[position] for position in rng.choice(len(clients), clients_per_round, replace=False))
