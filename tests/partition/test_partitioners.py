"""What holds for every partitioner, for every size and seed."""

from __future__ import annotations

import ast
import hashlib
import pickle
import sys
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path

import numpy as np
import pytest

import fedkd.partition
from fedkd.core.errors import FedKDError
from fedkd.partition import IID, ClassSpecific, Dirichlet, Partitioner
from fedkd.partition.partitioner import positions_by_value

PARTITIONERS = [
    IID(),
    Dirichlet(1e-8),
    Dirichlet(1e-6),
    Dirichlet(0.1),
    Dirichlet(1.0),
    Dirichlet(1e8),
    ClassSpecific(1),
    ClassSpecific(2),
    ClassSpecific(4),
]


def make_labels(size: int, num_classes: int, seed: int = 0) -> np.ndarray:
    """Unequal classes in random order, every one of them present."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), (num_classes * rng.random(size - num_classes) ** 2).astype(int)])
    return rng.permutation(labels)


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("partitioner", PARTITIONERS, ids=repr)
@pytest.mark.parametrize("num_clients", [4, 7, 100, 3000])
@pytest.mark.parametrize("size", [4, 1001])
def test_shards_are_a_partition(partitioner: Partitioner, num_clients: int, size: int) -> None:
    labels = make_labels(size, 4)
    for seed in range(3):
        shards = partitioner(labels, num_clients, rng_of(seed))
        assert len(shards) == num_clients
        assert np.array_equal(np.sort(np.concatenate(shards)), np.arange(size))
        for shard in shards:
            assert shard.dtype == np.int64
            assert np.all(np.diff(shard) > 0)


@pytest.mark.parametrize("partitioner", PARTITIONERS, ids=repr)
def test_the_rng_and_nothing_else_decides(partitioner: Partitioner) -> None:
    labels = make_labels(1001, 4)
    before = labels.copy()
    np.random.seed(1)
    first = partitioner(labels, 7, rng_of(5))
    np.random.seed(2)
    again = partitioner(labels.tolist(), 7, rng_of(5))
    other = partitioner(labels, 7, rng_of(6))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert np.array_equal(labels, before)


@pytest.mark.parametrize("partitioner", PARTITIONERS, ids=repr)
def test_one_client_gets_everything(partitioner: Partitioner) -> None:
    labels = make_labels(50, 4)
    if partitioner in (ClassSpecific(1), ClassSpecific(2)):
        with pytest.raises(FedKDError, match="cannot cover 4 classes"):
            partitioner(labels, 1, rng_of(0))
        return
    (shard,) = partitioner(labels, 1, rng_of(0))
    assert np.array_equal(shard, np.arange(50))


@pytest.mark.parametrize("partitioner", PARTITIONERS, ids=repr)
def test_the_values_of_the_labels_do_not_matter(partitioner: Partitioner) -> None:
    labels = make_labels(200, 4)
    plain = partitioner(labels, 8, rng_of(0))
    renamed = partitioner(np.array([-7, 3, 40, 10**6])[labels], 8, rng_of(0))
    assert all(np.array_equal(a, b) for a, b in zip(plain, renamed, strict=True))


@pytest.mark.parametrize("partitioner", PARTITIONERS, ids=repr)
def test_frozen_and_picklable(partitioner: Partitioner) -> None:
    assert pickle.loads(pickle.dumps(partitioner)) == partitioner
    with pytest.raises((FrozenInstanceError, TypeError)):
        partitioner.alpha = 3.0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("partitioner", "digest"),
    [
        (IID(), "45c621036d4027b6"),
        (Dirichlet(1e-6), "dd1a22465a426611"),
        (Dirichlet(0.1), "34fa5cc2831c5bdc"),
        (Dirichlet(100.0), "1889fa0d98b11696"),
        (ClassSpecific(3), "8087a27f46e80ea6"),
    ],
    ids=repr,
)
def test_pinned(partitioner: Partitioner, digest: str) -> None:
    """A published run is split the same next year: this fails if fedkd or numpy changes a stream of numbers."""
    shards = partitioner(np.arange(5000) % 10, 20, np.random.Generator(np.random.PCG64(2024)))
    clients = np.empty(5000, dtype="<i8")
    for client, shard in enumerate(shards):
        clients[shard] = client
    assert hashlib.sha256(clients.tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize(("size", "num_clients"), [(10, 3), (1000, 7), (5, 9), (60, 60)])
def test_iid_sizes_differ_by_at_most_one(size: int, num_clients: int) -> None:
    sizes = [len(shard) for shard in IID()(np.zeros(size, int), num_clients, rng_of(0))]
    assert sorted(sizes, reverse=True) == [size // num_clients + (i < size % num_clients) for i in range(num_clients)]


def test_iid_mixes_labels_that_come_sorted() -> None:
    labels = np.repeat(np.arange(10), 1000)
    for shard in IID()(labels, 5, rng_of(0)):
        # 200 of each class expected; the hypergeometric deviation is 12, so that 75 is beyond six of them.
        assert np.abs(np.bincount(labels[shard], minlength=10) - 200).max() < 75


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.5, 1.0], r"labels must be a non-empty 1-D array of integers, got float64 of shape \(2,\)\."),
        ([[0, 1]], r"labels must be a non-empty 1-D array of integers, got int64 of shape \(1, 2\)\."),
        (np.zeros(0, int), r"labels must be a non-empty 1-D array of integers, got int64 of shape \(0,\)\."),
        (["cat", "dog"], "labels must be a non-empty 1-D array of integers, got <U3"),
    ],
)
@pytest.mark.parametrize("partitioner", [IID(), Dirichlet(1.0), ClassSpecific(1)], ids=repr)
def test_bad_labels(partitioner: Partitioner, labels: object, message: str) -> None:
    with pytest.raises(FedKDError, match=message):
        partitioner(labels, 2, rng_of(0))  # type: ignore[arg-type]


@pytest.mark.parametrize("num_clients", [0, -3, 2.5, True, "4"])
@pytest.mark.parametrize("partitioner", [IID(), Dirichlet(1.0), ClassSpecific(1)], ids=repr)
def test_bad_num_clients(partitioner: Partitioner, num_clients: object) -> None:
    with pytest.raises(FedKDError, match=f"num_clients must be an integer >= 1, got {num_clients!r}"):
        partitioner([0, 1], num_clients, rng_of(0))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Everything(Partitioner):
    """A user's own partitioner: all images go to one client."""

    client: int | list[int] | list[float] = 0

    def assign(self, labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> np.ndarray:
        return np.full(len(labels), self.client) if isinstance(self.client, int) else np.array(self.client)


def test_ones_own_partitioner_is_one_method() -> None:
    shards = Everything(2)([3, 3, 3], 4, rng_of(0))
    assert [shard.tolist() for shard in shards] == [[], [], [0, 1, 2], []]


@pytest.mark.parametrize(
    ("client", "message"),
    [
        (4, r"Everything\.assign must return clients from 0 to 3, got 4 to 4\."),
        (-1, r"Everything\.assign must return clients from 0 to 3, got -1 to -1\."),
        ([0, 1], r"Everything\.assign must return integers of shape \(3,\), got int64 of shape \(2,\)\."),
        ([0.0, 1.0, 2.0], r"Everything\.assign must return integers of shape \(3,\), got float64 of shape \(3,\)\."),
    ],
)
def test_ones_own_partitioner_is_checked(client: int, message: str) -> None:
    with pytest.raises(FedKDError, match=message):
        Everything(client)([3, 3, 3], 4, rng_of(0))


def test_positions_by_value() -> None:
    groups = positions_by_value(np.array([2, 0, 2, 2, 0]), 4)
    assert [group.tolist() for group in groups] == [[1, 4], [], [0, 2, 3], []]


def test_a_shard_does_not_hold_on_to_the_others() -> None:
    assert all(shard.base is None for shard in IID()(np.zeros(100, int), 10, rng_of(0)))


def test_jsonargparse_takes_a_partitioner_by_class_path() -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--partitioner", type=Partitioner)
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # renamed in 4.49
    arguments = ["--partitioner=fedkd.partition.Dirichlet", "--partitioner.alpha=0.01"]
    assert instantiate(parser.parse_args(arguments)).partitioner == Dirichlet(0.01)
    arguments = ["--partitioner=fedkd.partition.ClassSpecific"]
    assert instantiate(parser.parse_args(arguments)).partitioner == ClassSpecific(1)


def test_numpy_is_all_that_loading_the_package_takes() -> None:
    """The modules' own top-level imports; those for type checkers stand under an `if` and do not count."""
    for path in Path(fedkd.partition.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                known = name.split(".")[0] in {"numpy", *sys.stdlib_module_names}
                assert (
                    known or name in ("fedkd.core.errors", "fedkd.core.sealed") or name.startswith("fedkd.partition.")
                ), f"{path.name}: {name}"
