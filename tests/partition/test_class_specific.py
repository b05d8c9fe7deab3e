"""ClassSpecific: who holds which class, counted."""

from __future__ import annotations

import numpy as np
import pytest

from fedkd.core.errors import FedKDError
from fedkd.partition import ClassSpecific
from fedkd.partition.class_specific import deal


def count(labels: np.ndarray, shards: list[np.ndarray], num_classes: int) -> np.ndarray:
    return np.array([np.bincount(labels[shard], minlength=num_classes) for shard in shards])  # (J, K)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("num_clients", "per_client"), [(12, 1), (6, 2), (4, 3), (1, 12)])
def test_every_class_on_exactly_one_client(num_clients: int, per_client: int, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(12), np.arange(3, 15)))
    counts = count(labels, ClassSpecific(per_client)(labels, num_clients, np.random.default_rng(seed)), 12)
    assert np.array_equal(np.count_nonzero(counts, axis=0), np.ones(12))
    assert np.array_equal(np.count_nonzero(counts, axis=1), np.full(num_clients, per_client))
    assert np.array_equal(counts.max(axis=0), np.arange(3, 15))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("num_classes", "num_clients", "per_client"),
    [(10, 20, 1), (10, 10, 2), (10, 7, 3), (10, 100, 9), (10, 3, 10), (3, 1000, 2), (1, 5, 1), (100, 34, 3)],
)
def test_shared_classes(num_classes: int, num_clients: int, per_client: int, seed: int) -> None:
    labels = np.repeat(np.arange(num_classes), 1003)
    counts = count(labels, ClassSpecific(per_client)(labels, num_clients, np.random.default_rng(seed)), num_classes)
    assert np.array_equal(np.count_nonzero(counts, axis=1), np.full(num_clients, per_client))
    holders = np.count_nonzero(counts, axis=0)
    assert holders.sum() == num_clients * per_client
    assert np.ptp(holders) <= 1  # no class is dealt two times more than another
    for k in range(num_classes):
        parts = counts[:, k][counts[:, k] > 0]
        assert sorted(parts, reverse=True) == [1003 // len(parts) + (i < 1003 % len(parts)) for i in range(len(parts))]


def test_hands_are_random_beyond_the_first_deck() -> None:
    """Ten clients of two classes out of ten: were one order dealt twice, clients 0 and 5 would hold the same pair."""
    same = 0
    for seed in range(200):
        hands = np.sort(deal(10, 10, 2, np.random.default_rng(seed)), axis=1)
        same += np.array_equal(hands[0], hands[5])
    assert same < 20  # one in 45 expected, some 4


def test_every_class_reaches_every_client_alike() -> None:
    """Also where a hand goes over the end of a deck: client 1 of two classes out of three."""
    held = np.zeros(3)
    for seed in range(3000):
        held[deal(3, 2, 2, np.random.default_rng(seed))[1]] += 1
    assert held / 3000 == pytest.approx([2 / 3] * 3, abs=0.05)


def test_left_over_images_go_to_any_holder() -> None:
    """Three images over two clients: the odd one is not always client 0's."""
    sizes = [len(ClassSpecific(1)(np.zeros(3, int), 2, np.random.default_rng(seed))[0]) for seed in range(200)]
    assert np.mean(sizes) == pytest.approx(1.5, abs=0.15)


def test_which_images_a_holder_gets_is_random() -> None:
    """Dealt out in turn without a shuffle, the two holders' images would alternate."""
    shard, _ = ClassSpecific(1)(np.zeros(100, int), 2, np.random.default_rng(0))
    assert set(np.diff(shard).tolist()) > {1, 2, 3}


def test_more_holders_than_images() -> None:
    shards = ClassSpecific(1)([0, 1, 1], 10, np.random.default_rng(0))
    assert sorted(len(shard) for shard in shards) == [0] * 7 + [1] * 3


def test_too_few_clients() -> None:
    message = (
        r"3 clients x classes_per_client=2 cannot cover 10 classes: use classes_per_client >= 4 or num_clients >= 5\."
    )
    labels = np.arange(10)
    with pytest.raises(FedKDError, match=message):
        ClassSpecific(2)(labels, 3, np.random.default_rng(0))
    # what the message says would work does, and one less does not
    ClassSpecific(4)(labels, 3, np.random.default_rng(0))
    ClassSpecific(2)(labels, 5, np.random.default_rng(0))
    for per_client, num_clients in ((3, 3), (2, 4)):
        with pytest.raises(FedKDError):
            ClassSpecific(per_client)(labels, num_clients, np.random.default_rng(0))


def test_too_many_classes_a_client() -> None:
    with pytest.raises(FedKDError, match=r"classes_per_client must be at most the number of classes, 3, got 4\."):
        ClassSpecific(4)([0, 1, 2], 5, np.random.default_rng(0))


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_bad_classes_per_client(value: object) -> None:
    with pytest.raises(FedKDError, match=f"classes_per_client must be an integer >= 1, got {value!r}"):
        ClassSpecific(value)  # type: ignore[arg-type]
