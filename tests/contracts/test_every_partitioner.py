"""What holds for every partitioner that fedkd exports: whoever adds one adds it to `EXAMPLES` or a test fails."""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

import fedkd.partition
from fedkd.core.errors import FedKDError
from fedkd.partition import (
    IID,
    ByAttribute,
    ClassAndQuantity,
    ClassSpecific,
    Dirichlet,
    Given,
    Partitioner,
    QuantitySkew,
    Shards,
)

NUM_CLASSES = 10
SECONDS = 10  # a bound for what takes a quarter of a second at most where nothing else runs


def per_client(num_clients: int) -> int:
    """Enough classes a client for all to be covered."""
    return max(2, -(-NUM_CLASSES // num_clients))


# what makes one of each class for so many images and clients; the last two know the client of each image beforehand
EXAMPLES: dict[type[Partitioner], Callable[[int, int], Partitioner]] = {
    IID: lambda n, clients: IID(),
    Dirichlet: lambda n, clients: Dirichlet(0.1),
    ClassSpecific: lambda n, clients: ClassSpecific(per_client(clients)),
    Shards: lambda n, clients: Shards(2),
    QuantitySkew: lambda n, clients: QuantitySkew(0.1),
    ClassAndQuantity: lambda n, clients: ClassAndQuantity(0.1, per_client(clients)),
    Given: lambda n, clients: Given([list(range(client, n, clients)) for client in range(clients)]),
    ByAttribute: lambda n, clients: ByAttribute((np.arange(n) * 7 % (clients + n // 3)).tolist(), merge=True),
}
FIXED = (Given, ByAttribute)
DRAWN = [kind for kind in EXAMPLES if "alpha" in inspect.signature(kind).parameters]


def concrete(kind: type) -> Iterator[type]:
    for child in kind.__subclasses__():
        yield from concrete(child)
        if not inspect.isabstract(child) and child.__module__.startswith("fedkd."):
            yield child


def labels_of(size: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.arange(size) % NUM_CLASSES)


def counts_of(labels: np.ndarray, shards: list[np.ndarray]) -> np.ndarray:
    return np.array([np.bincount(labels[shard], minlength=NUM_CLASSES) for shard in shards])  # (J, K)


def timed(partitioner: Partitioner, labels: np.ndarray, num_clients: int) -> list[np.ndarray]:
    start = time.process_time()
    shards = partitioner(labels, num_clients, np.random.default_rng(1))
    assert time.process_time() - start < SECONDS
    return shards


def check_partition(shards: list[np.ndarray], positions: np.ndarray, num_clients: int) -> None:
    assert len(shards) == num_clients
    assert np.array_equal(np.sort(np.concatenate(shards)), positions)  # covering, and disjoint
    assert all(shard.dtype == np.int64 and np.all(np.diff(shard) > 0) for shard in shards)


def test_every_partitioner_is_exported_and_tested() -> None:
    found = set(concrete(Partitioner))
    assert found == set(EXAMPLES)
    assert {kind.__name__ for kind in found} <= set(fedkd.partition.__all__)


@pytest.mark.parametrize("kind", EXAMPLES)
@pytest.mark.parametrize("num_clients", [1, 2, 10, 137, 10_000])
def test_disjoint_covering_and_quick(kind: type[Partitioner], num_clients: int) -> None:
    labels = labels_of(20_000)
    check_partition(timed(EXAMPLES[kind](20_000, num_clients), labels, num_clients), np.arange(20_000), num_clients)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_the_seed_decides(kind: type[Partitioner]) -> None:
    partitioner = EXAMPLES[kind](1000, 10)
    one, again, other = (partitioner(labels_of(1000), 10, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True)) == (kind in FIXED)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_only_some_of_the_images(kind: type[Partitioner]) -> None:
    """Public images are dealt to nobody; to all but those that know each image the others might not be there."""
    labels, among = labels_of(1000), np.flatnonzero(np.arange(1000) % 5)
    partitioner = EXAMPLES[kind](1000, 10)
    shards = partitioner(labels, 10, np.random.default_rng(2), among=among)
    check_partition(shards, among, 10)
    if kind not in FIXED:
        alone = partitioner(labels[among], 10, np.random.default_rng(2))
        assert all(np.array_equal(shard, among[part]) for shard, part in zip(shards, alone, strict=True))


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_partitioner_that_fixes_the_number_of_clients_accepts_it(kind: type[Partitioner]) -> None:
    partitioner = EXAMPLES[kind](1000, 10)
    assert kind.fixes_clients == (kind in FIXED)
    if kind.fixes_clients:
        count = partitioner.count_clients(1000)
        check_partition(timed(partitioner, labels_of(1000), count), np.arange(1000), count)
    else:
        with pytest.raises(NotImplementedError):
            partitioner.count_clients(1000)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_only_a_partitioner_that_reads_an_attribute_depends_on_it(kind: type[Partitioner]) -> None:
    partitioner = EXAMPLES[kind](1000, 10)
    assert partitioner.for_data({"writer": np.arange(1000)}) is partitioner


@pytest.mark.parametrize("kind", EXAMPLES)
def test_no_image_at_all(kind: type[Partitioner]) -> None:
    with pytest.raises(FedKDError, match="at least one image to partition, got none"):
        EXAMPLES[kind](10, 1)(labels_of(10), 1, np.random.default_rng(0), among=np.empty(0, int))


@pytest.mark.parametrize("kind", DRAWN)
@pytest.mark.parametrize("alpha", [1e-8, 1e-4, 0.01, 1.0, 100.0, 1e8])
@pytest.mark.parametrize("num_clients", [1, 10, 10_000])
def test_every_alpha_is_a_partition_and_quick(kind: type[Partitioner], alpha: float, num_clients: int) -> None:
    partitioner = replace(EXAMPLES[kind](20_000, num_clients), alpha=alpha)  # type: ignore[call-arg]
    check_partition(timed(partitioner, labels_of(20_000), num_clients), np.arange(20_000), num_clients)


@pytest.mark.parametrize("kind", DRAWN)
@pytest.mark.parametrize("alpha", [1e-8, 1e8])
@pytest.mark.parametrize("num_clients", [1, 10, 1000])
def test_a_least_size_never_hangs(kind: type[Partitioner], alpha: float, num_clients: int) -> None:
    """Where no draw will do that is an error, soon."""
    partitioner = replace(EXAMPLES[kind](5000, num_clients), alpha=alpha, min_examples=2)  # type: ignore[call-arg]
    if alpha == 1e8 or num_clients == 1:
        assert min(map(len, timed(partitioner, labels_of(5000), num_clients))) >= 2
        return
    start = time.process_time()
    with pytest.raises(FedKDError, match=f"alpha=1e-08: none of 100 draws gave each of {num_clients:,} clients"):
        partitioner(labels_of(5000), num_clients, np.random.default_rng(1))
    assert time.process_time() - start < SECONDS


@pytest.mark.parametrize("kind", DRAWN)
@pytest.mark.parametrize("num_clients", [1, 10, 100])
def test_uniform_as_alpha_grows(kind: type[Partitioner], num_clients: int) -> None:
    labels = labels_of(20_000)
    partitioner = replace(EXAMPLES[kind](20_000, num_clients), alpha=1e8)  # type: ignore[call-arg]
    counts = counts_of(labels, timed(partitioner, labels, num_clients))
    if kind is QuantitySkew:
        assert np.ptp(counts.sum(axis=1)) <= 2
        assert np.abs(counts - 2000 / num_clients).max() <= 6 * np.sqrt(2000 / num_clients)  # a uniform sample
    else:  # equal parts of a class for all that hold it
        assert all(np.ptp(column[column > 0]) <= 2 for column in counts.T)
        assert (counts > 0).sum() == num_clients * (10 if kind is Dirichlet else per_client(num_clients))


@pytest.mark.parametrize("kind", DRAWN)
def test_single_class_as_alpha_falls(kind: type[Partitioner]) -> None:
    labels = labels_of(20_000)
    partitioner = replace(EXAMPLES[kind](20_000, 10_000), alpha=1e-8)  # type: ignore[call-arg]
    counts = counts_of(labels, timed(partitioner, labels, 10_000))
    assert (counts > 0).sum() == 10  # every class lies whole on one client
    if kind is QuantitySkew:
        assert np.count_nonzero(counts.sum(axis=1)) == 1
    else:
        assert (counts > 0).sum(axis=1).max() == 1  # no two on the same, of 10,000


@pytest.mark.parametrize(
    ("partitioner", "digest"),
    [
        (Dirichlet(0.1, min_examples=20), "3f333e75fbb0f818"),
        (Shards(2), "334c40675498abaa"),
        (QuantitySkew(1e-8), "2aad580dbe8a56cd"),
        (QuantitySkew(0.5), "f7d1e0e0882370da"),
        (ClassAndQuantity(0.5), "f97499c599b7cf74"),
        (ClassAndQuantity(1e8, 3, min_examples=1), "77760372199c9abf"),
        (ByAttribute((np.arange(1001) ** 2 % 97).tolist(), merge=True), "ff6afea6486aa42f"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Partitioner) else "",
)
def test_pinned(partitioner: Partitioner, digest: str) -> None:
    """The same next year and on every machine: these were numpy 1.26's, 2.0's and 2.4's, with and without AVX.

    The older partitioners stand in test_partitioners.py.
    """
    shards = partitioner(np.arange(1001) % NUM_CLASSES, 7, np.random.default_rng(2024))
    assert hashlib.sha256(b"|".join(shard.astype("<i8").tobytes() for shard in shards)).hexdigest()[:16] == digest
