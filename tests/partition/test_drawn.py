"""QuantitySkew, ClassAndQuantity, and min_examples of all that draw from a Dirichlet distribution."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

from fedkd.core.errors import FedKDError
from fedkd.partition import ClassAndQuantity, ClassSpecific, Dirichlet, QuantitySkew
from fedkd.partition.drawn import DRAWS, DrawnPartitioner


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def count(labels: np.ndarray, shards: list[np.ndarray], num_classes: int = 10) -> np.ndarray:
    return np.array([np.bincount(labels[shard], minlength=num_classes) for shard in shards])  # (J, K)


def test_quantity_skew_has_the_sizes_of_its_distribution() -> None:
    """Mean 1/J and variance (1/J)(1 - 1/J) / (J alpha + 1) of the images, and no skew of labels."""
    labels = np.arange(2000) // 200  # sorted: dealt out in order, client 0 would have the first classes
    sizes, mixed = [], []
    for seed in range(1000):
        counts = count(labels, QuantitySkew(0.5)(labels, 5, rng_of(seed)))
        sizes.append(counts.sum(axis=1) / 2000)
        mixed.append(counts[0])
    assert np.mean(sizes, axis=0) == pytest.approx([0.2] * 5, abs=0.03)
    assert np.var(sizes, axis=0) == pytest.approx([0.16 / 3.5] * 5, rel=0.2)
    shares = np.sum(mixed, axis=0) / np.sum(mixed)
    assert shares == pytest.approx([0.1] * 10, abs=0.005)


def test_class_and_quantity_deals_as_class_specific_does() -> None:
    """With a large alpha the two agree on who holds what, from the same seed."""
    labels = np.arange(1000) % 10
    for seed in range(5):
        ours = ClassAndQuantity(1e8, 2)(labels, 10, rng_of(seed))
        theirs = ClassSpecific(2)(labels, 10, rng_of(seed))
        assert np.array_equal(count(labels, ours) > 0, count(labels, theirs) > 0)
        assert np.abs(count(labels, ours) - count(labels, theirs)).max() <= 1


def test_class_and_quantity_splits_a_class_by_its_alpha() -> None:
    """Two holders a class, alpha 1: the share of either is uniform on [0, 1], of variance 1/12."""
    labels = np.zeros(1000, int)
    shares = [len(ClassAndQuantity(1.0, 1)(labels, 2, rng_of(seed))[0]) / 1000 for seed in range(2000)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.02)
    assert np.var(shares) == pytest.approx(1 / 12, rel=0.1)


def test_class_and_quantity_never_exceeds_its_classes() -> None:
    labels = np.arange(5000) % 10
    for alpha in (1e-8, 0.1, 1.0, 1e8):
        counts = count(labels, ClassAndQuantity(alpha, 3)(labels, 20, rng_of(0)))
        assert np.count_nonzero(counts, axis=1).max() <= 3
        assert np.all(counts.sum(axis=0) == 500)


def test_class_and_quantity_names_what_it_cannot_cover() -> None:
    with pytest.raises(FedKDError, match="3 clients x classes_per_client=2 cannot cover 10 classes"):
        ClassAndQuantity(1.0, 2, min_examples=1)(np.arange(10), 3, rng_of(0))
    with pytest.raises(FedKDError, match="classes_per_client must be an integer >= 1, got 0"):
        ClassAndQuantity(1.0, 0)


KINDS = [Dirichlet(1.0), QuantitySkew(1.0), ClassAndQuantity(1.0, 3)]


@pytest.mark.parametrize(("partitioner", "least"), list(zip(KINDS, (100, 20, 70), strict=True)), ids=repr)
def test_a_first_draw_that_has_enough_stays(partitioner: DrawnPartitioner, least: int) -> None:
    """The option changes nothing where it asks for nothing, and is met where it asks for something."""
    labels, changed = np.arange(2000) % 10, 0
    for seed in range(20):
        free = partitioner(labels, 10, rng_of(seed))
        held = replace(partitioner, min_examples=least)(labels, 10, rng_of(seed))
        assert min(map(len, held)) >= least
        same = all(np.array_equal(a, b) for a, b in zip(free, held, strict=True))
        assert same == (min(map(len, free)) >= least)
        changed += not same
    assert 0 < changed < 20


@pytest.mark.parametrize("partitioner", [replace(kind, alpha=0.01) for kind in KINDS], ids=repr)
def test_what_the_error_says_would_work_does(partitioner: DrawnPartitioner) -> None:
    labels, asked = np.arange(2000) % 10, replace(partitioner, min_examples=100)
    with pytest.raises(FedKDError) as caught:
        asked(labels, 15, rng_of(3))
    message = str(caught.value)
    assert message.startswith(f"{type(partitioner).__name__} with alpha=0.01: none of {DRAWS} draws gave each of 15 ")
    alpha, clients, least = re.fullmatch(
        r".*; what works: alpha=([\d.]+), num_clients=(\d+) or min_examples=(\d+)\.", message
    ).groups()  # type: ignore[union-attr]
    assert min(map(len, replace(asked, alpha=float(alpha))(labels, 15, rng_of(3)))) >= 100
    assert min(map(len, asked(labels, int(clients), rng_of(3)))) >= 100
    assert min(map(len, replace(asked, min_examples=int(least))(labels, 15, rng_of(3)))) >= int(least)


def test_more_than_there_is_is_refused_before_anything_is_drawn() -> None:
    message = (
        r"min_examples 30 for each of 50 clients needs 1,500 images, but there are "
        r"1,000; use min_examples <= 20 or num_clients <= 33\."
    )
    with pytest.raises(FedKDError, match=message):
        Dirichlet(0.5, min_examples=30)(np.zeros(1000, int), 50, None)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Stubborn(DrawnPartitioner):
    """All images go to client 0, whatever alpha is; it writes down what it drew."""

    drawn: ClassVar[list[float]] = []

    def draw(self, labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> np.ndarray:
        self.drawn.append(rng.random())
        return np.zeros(len(labels), int)


def test_retries_are_bounded_and_trials_start_where_they_did() -> None:
    """Values are tried from the state that the caller's own rng had, or what is named need not work."""
    Stubborn.drawn.clear()
    rng, expected = rng_of(0), rng_of(0).random(DRAWS + 1).tolist()
    with pytest.raises(FedKDError, match=r"what works: num_clients=1 or min_examples=0\."):
        Stubborn(1.0, min_examples=1)([0, 1, 2], 3, rng)
    # 100 draws, ten for each alpha of 3, 10, 30, 100, 1000, and one for a single client, which has all
    assert Stubborn.drawn == expected[:DRAWS] + 5 * expected[:10] + expected[:1]
    assert rng.random() == expected[DRAWS]  # the trials took none of the caller's numbers


@pytest.mark.parametrize("value", [-1, 1.5, True])
def test_bad_min_examples(value: object) -> None:
    with pytest.raises(FedKDError, match=f"min_examples must be an integer >= 0, got {value!r}"):
        Dirichlet(0.1, min_examples=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("alpha", [0.0, float("nan")])
def test_bad_alpha(alpha: float) -> None:
    for kind in (QuantitySkew, ClassAndQuantity):
        with pytest.raises(FedKDError, match="alpha must be >= 1e-100"):
            kind(alpha)
