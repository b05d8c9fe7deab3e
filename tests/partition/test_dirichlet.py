"""Dirichlet: the distribution at every alpha, against its closed forms."""

from __future__ import annotations

import time

import numpy as np
import pytest

from fedkd.core.errors import FedKDError
from fedkd.partition import Dirichlet
from fedkd.partition.dirichlet import draw_proportions, round_to_counts

ALPHAS = [1e-100, 1e-8, 1e-6, 1e-3, 0.1, 1.0, 100.0, 1e8, 1e100]


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("size", [1, 2, 10, 10_000])
def test_proportions_are_proportions(alpha: float, size: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        shares = draw_proportions(alpha, size, rng)
        assert shares.shape == (size,)
        assert np.all(shares >= 0)  # false for NaN too
        assert shares.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 1.0, 10.0])
def test_moments(alpha: float) -> None:
    """Mean 1/J, variance (1/J)(1 - 1/J) / (J alpha + 1), covariance -(1/J^2) / (J alpha + 1)."""
    size, draws = 5, 20_000
    rng = np.random.default_rng(0)
    shares = np.array([draw_proportions(alpha, size, rng) for _ in range(draws)])
    variance = (1 / size) * (1 - 1 / size) / (size * alpha + 1)
    covariance = np.cov(shares.T)
    assert shares.mean(axis=0) == pytest.approx(1 / size, abs=5 * np.sqrt(variance / draws))
    assert np.diag(covariance) == pytest.approx(variance, rel=0.05)
    off_diagonal = covariance[~np.eye(size, dtype=bool)]
    assert off_diagonal == pytest.approx(-1 / size**2 / (size * alpha + 1), rel=0.15)


def test_alpha_one_is_uniform_on_the_simplex() -> None:
    """For J = 2 and alpha = 1 a share is uniform on [0, 1]; for alpha = 1/2 it follows the arcsine law."""
    rng = np.random.default_rng(0)
    levels = np.array([0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99])
    for alpha, cdf in ((1.0, levels), (0.5, 2 / np.pi * np.arcsin(np.sqrt(levels)))):
        first = np.array([draw_proportions(alpha, 2, rng)[0] for _ in range(20_000)])
        assert (first[:, None] <= levels).mean(axis=0) == pytest.approx(cdf, abs=0.015)


def test_small_alpha_is_mixed_as_rarely_as_it_should_be() -> None:
    """E sum p^2 = (1 + alpha) / (J alpha + 1): at alpha = 1e-3, J = 10 one draw in some hundred is really mixed."""
    rng = np.random.default_rng(0)
    squares = [np.square(draw_proportions(1e-3, 10, rng)).sum() for _ in range(40_000)]
    assert 1 - np.mean(squares) == pytest.approx(1 - 1.001 / 1.01, rel=0.1)


@pytest.mark.parametrize("num_clients", [1, 10, 10_000])
@pytest.mark.parametrize("alpha", [1e-100, 1e-8])
def test_towards_zero_a_class_lands_whole_on_one_client(alpha: float, num_clients: int) -> None:
    labels = np.repeat(np.arange(100), 50)
    shards = Dirichlet(alpha)(labels, num_clients, np.random.default_rng(0))
    owners = np.array([np.bincount(labels[s], minlength=100) for s in shards])  # (J, 100)
    assert np.array_equal(np.count_nonzero(owners, axis=0), np.ones(100))
    assert np.array_equal(owners.max(axis=0), np.full(100, 50))
    if num_clients == 10:  # ... and on any of them alike: 10 classes expected of each, deviation 3
        held = np.count_nonzero(owners, axis=1)
        assert held.min() >= 1
        assert held.max() <= 22


@pytest.mark.parametrize("alpha", [1e8, 1e100])
def test_towards_infinity_every_client_gets_an_equal_part(alpha: float) -> None:
    labels = np.repeat(np.arange(10), 1003)
    for shard in Dirichlet(alpha)(labels, 20, np.random.default_rng(0)):
        assert set(np.bincount(labels[shard]).tolist()) <= {49, 50, 51}  # 50.15 expected, deviation 0.005


@pytest.mark.parametrize("alpha", [1e-8, 1e-6, 0.1, 1.0, 1e8])
@pytest.mark.parametrize("num_clients", [1, 2, 100, 10_000])
def test_every_range_is_quick_and_exact(alpha: float, num_clients: int) -> None:
    labels = np.arange(20_000) % 100
    start = time.process_time()
    shards = Dirichlet(alpha)(labels, num_clients, np.random.default_rng(3))
    assert time.process_time() - start < 5
    assert len(shards) == num_clients
    assert np.array_equal(np.sort(np.concatenate(shards)), np.arange(20_000))


def test_which_images_of_a_class_a_client_gets_is_random() -> None:
    """Were they handed out in order, client 0 would always hold the first images of the class."""
    first = [min(Dirichlet(1e8)(np.zeros(100, int), 2, np.random.default_rng(s))[1]) for s in range(20)]
    assert np.mean(first) < 5  # handed out in order: 50


def test_rounding_by_hand() -> None:
    class Half:
        def random(self) -> float:
            return 0.5

    # running sums 1.5, 4.0, 10 plus 1/2 -> 2, 4, 10
    assert round_to_counts(np.array([0.15, 0.25, 0.6]), 10, Half()).tolist() == [2, 2, 6]  # type: ignore[arg-type]
    assert round_to_counts(np.array([1.0, 0.0, 0.0]), 7, Half()).tolist() == [7, 0, 0]  # type: ignore[arg-type]
    assert round_to_counts(np.array([0.0, 0.0, 1.0]), 7, Half()).tolist() == [0, 0, 7]  # type: ignore[arg-type]


def test_rounding_never_hands_out_more_than_there_is() -> None:
    class AlmostOne:
        def random(self) -> float:
            return 1 - 2**-53  # the largest that there is: 10 + 1 - 2**-53 is 11 in floating point

    assert round_to_counts(np.array([1.0, 0.0]), 10, AlmostOne()).tolist() == [10, 0]  # type: ignore[arg-type]


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("total", [1, 17, 5000])
def test_rounding_is_exact_and_off_by_less_than_one(alpha: float, total: int) -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 10, 2000):
        shares = draw_proportions(alpha, size, rng)
        counts = round_to_counts(shares, total, rng)
        assert counts.dtype == np.int64
        assert counts.sum() == total
        assert counts.min() >= 0
        assert np.abs(counts - total * shares).max() < 1 + 1e-9


def test_rounding_is_unbiased() -> None:
    """Largest remainder would give [0, 0, 10] every time, and the small clients nothing for ever."""
    rng = np.random.default_rng(0)
    mean = np.mean([round_to_counts(np.array([0.01, 0.03, 0.96]), 10, rng) for _ in range(20_000)], axis=0)
    assert mean == pytest.approx([0.1, 0.3, 9.6], abs=0.015)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf"), 1e-200])
def test_bad_alpha(alpha: float) -> None:
    with pytest.raises(FedKDError, match=f"alpha must be >= 1e-100 and <= 1e\\+100, got {alpha!r}"):
        Dirichlet(alpha)
