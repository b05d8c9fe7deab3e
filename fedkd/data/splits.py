"""Fixed splits of a data set: properties of the data, the same for every run."""

from __future__ import annotations

import numpy as np

from fedkd.seeding import derive_seed


def stratified_split(targets: np.ndarray, fraction: float, purpose: str) -> np.ndarray:
    """Choose the same fraction of every class, by a fixed permutation that no run's seed changes.

    A smaller fraction's choice is a subset of a larger one's.

    Args:
        targets: The label of each image, (N,).
        fraction: How much to choose of each class, rounded to the nearest whole image.
        purpose: What it is for: different purposes choose independently.

    Returns:
        Sorted int64 positions in ``targets``.
    """
    chosen = [np.empty(0, np.int64)]
    for label in np.unique(targets):
        members = np.flatnonzero(targets == label)
        rng = np.random.default_rng(derive_seed("split", purpose, int(label)))
        chosen.append(rng.permutation(members)[: int(len(members) * fraction + 0.5)])
    return np.sort(np.concatenate(chosen))
