"""Splits of a data set: the public split, which belongs to the data, and each client's held-out images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedkd.core.seeding import derive_seed


def stratified_split(targets: np.ndarray, fraction: float, purpose: str) -> np.ndarray:
    """Choose the same fraction of every class. The choice does not depend on the run's seed.

    A smaller fraction gives a subset of a larger fraction.

    Args:
        targets: The label of each image, (N,).
        fraction: The fraction of each class, in [0, 1]. The number of images is rounded to the nearest integer.
        purpose: The name of the split. Splits with different names are independent.

    Returns:
        Sorted int64 positions in ``targets``.
    """
    chosen = [np.empty(0, np.int64)]
    for label in np.unique(targets):
        members = np.flatnonzero(targets == label)
        rng = np.random.default_rng(derive_seed("split", purpose, int(label)))
        chosen.append(rng.permutation(members)[: int(len(members) * fraction + 0.5)])
    return np.sort(np.concatenate(chosen))


def hold_out(shards: Sequence[np.ndarray], targets: np.ndarray, fraction: float, seed: int) -> list[np.ndarray]:
    """Choose a fraction of each client's shard. Each class contributes its share, up to one image.

    The shard is sorted by class, and images are taken at equal distances from a random start (systematic sampling).
    With a fraction of 0.1 and ten classes of two images each, this takes two images; a tenth of each class would round
    to none.

    Args:
        shards: Each client's positions in ``targets``.
        targets: The label of each image, (N,).
        fraction: The fraction of each shard, in [0, 1). The number of images is rounded to the nearest integer, and at
            least one image stays.
        seed: The run's seed. Clients draw independently.

    Returns:
        The chosen positions of each shard, sorted int64.
    """
    if fraction == 0:  # skip the generators: 10,000 of them take a quarter of a second
        return [np.empty(0, np.int64) for _ in shards]
    taken = []
    for client, shard in enumerate(shards):
        rng = np.random.default_rng(derive_seed(seed, "validation", client))
        total = max(min(int(len(shard) * fraction + 0.5), len(shard) - 1), 0)
        mixed = rng.permutation(shard)
        by_class = mixed[np.argsort(targets[mixed], kind="stable")]
        steps = (np.arange(total) + rng.random()) * (len(shard) / max(total, 1))
        taken.append(np.sort(by_class[steps.astype(np.int64)]))
    return taken
