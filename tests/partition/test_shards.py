"""Shards: the paper's own setting, and what happens where it does not divide."""

from __future__ import annotations

import numpy as np
import pytest

from fedkd.core.errors import FedKDError
from fedkd.partition import Shards


def count(labels: np.ndarray, shards: list[np.ndarray]) -> np.ndarray:
    return np.array([np.bincount(labels[shard], minlength=labels.max() + 1) for shard in shards])  # (J, K)


def test_the_papers_setting() -> None:
    """200 shards of 300 of MNIST's 60,000 images; here with classes that shards divide: every client has 1 or 2."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 6000))
    counts = count(labels, Shards(2)(labels, 100, np.random.default_rng(0)))
    assert np.all(counts.sum(axis=1) == 600)
    assert set(counts.ravel().tolist()) == {0, 300, 600}
    held = np.count_nonzero(counts, axis=1)
    assert held.max() == 2
    # the second shard is of the same class with odds 19 in 199: 9.5 of 100 expected
    assert 2 <= np.sum(held == 1) <= 20


def test_by_hand_where_it_does_not_divide() -> None:
    """Seven images in four shards: images 0-1, 2-3, 4-5 and 6 in the order of labels."""
    labels = np.array([0, 0, 0, 1, 1, 2, 2])
    for seed in range(20):
        shards = Shards(1)(labels, 4, np.random.default_rng(seed))
        parts = sorted(labels[shard].tolist() for shard in shards)
        assert parts == [[0, 0], [0, 1], [1, 2], [2]]


def test_which_images_of_a_class_and_which_client_are_random() -> None:
    labels = np.zeros(100, int)
    firsts = [Shards(1)(labels, 2, np.random.default_rng(seed))[0] for seed in range(50)]
    assert all(len(shard) == 50 for shard in firsts)
    assert all(set(np.diff(shard).tolist()) > {1, 2} for shard in firsts)  # not a run of the data set
    owners = [labels_first[0] == 0 for labels_first in firsts]
    assert 10 < sum(owners) < 40


def test_more_shards_than_images_leave_some_empty() -> None:
    shards = Shards(2)(np.arange(5), 10, np.random.default_rng(0))
    assert sum(map(len, shards)) == 5
    assert max(map(len, shards)) <= 2


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_bad_shards_per_client(value: object) -> None:
    with pytest.raises(FedKDError, match=f"shards_per_client must be an integer >= 1, got {value!r}"):
        Shards(value)  # type: ignore[arg-type]
