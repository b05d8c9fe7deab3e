"""Splits of a data set: the public one, a property of the data, and what each client holds out of its shard."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedkd.core.seeding import derive_seed


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


def hold_out(shards: Sequence[np.ndarray], targets: np.ndarray, fraction: float, seed: int) -> list[np.ndarray]:
    """Choose a part of each client's shard, of every class as much as of all to within one image.

    With a shard sorted by class it takes images at equal distances from a random start (systematic sampling): of ten
    classes of two images each and a tenth to take it takes two images, where a tenth of each class would round to none.

    Args:
        shards: Each client's positions in ``targets``.
        targets: The label of each image, (N,).
        fraction: How much to take of each shard, in [0, 1), rounded to the nearest whole image; one is always left.
        seed: What decides which, for each client independently of the others.

    Returns:
        What was taken of each shard, sorted int64.
    """
    if fraction == 0:  # 10,000 generators would take a quarter of a second to choose nothing
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
