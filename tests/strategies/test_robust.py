"""Robust aggregation: what an outlier can move, and numbers by hand."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import datamodule, images, module
from rounds import cohort, joined, state, update

import fedkd
from fedkd.core.errors import FedKDError
from fedkd.server.setup import plan_run
from fedkd.strategies import (
    SCAFFOLD,
    ClosedFormHead,
    Compose,
    CoordinateMedian,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedDF,
    FedDyn,
    FedProx,
    GeometricMedian,
    Krum,
    MultiKrum,
    NormClipping,
    TrimmedMean,
)

ROBUST = [CoordinateMedian(), TrimmedMean(0.2), Krum(1), MultiKrum(1), MultiKrum(1, 2), GeometricMedian()]
HONEST = [[0.9, -1.1], [1.0, -1.0], [1.1, -0.9], [0.95, -1.0], [1.05, -1.0]]


@pytest.mark.parametrize("strategy", ROBUST, ids=repr)
@pytest.mark.parametrize("place", [0, 3, 5])
def test_an_outlier_moves_the_mean_alone(strategy, place):
    attacked = [*HONEST[:place], [1e6, 1e6], *HONEST[place:]]
    assert min(joined(FedAvg(), attacked)) > 1e5
    first, second = joined(strategy, attacked)
    assert 0.9 <= first <= 1.1
    assert -1.1 <= second <= -0.9


@pytest.mark.parametrize("strategy", [*ROBUST, NormClipping(0.5)], ids=repr)
def test_clients_that_agree_are_followed_and_their_order_does_not_matter(strategy):
    assert joined(strategy, [[0.3, 0.4]] * 6) == pytest.approx([0.3, 0.4])
    forwards = joined(strategy, HONEST)
    assert joined(strategy, HONEST[::-1]) == pytest.approx(forwards, abs=1e-6)


def test_an_outliers_buffers_follow_the_rule():
    def run(strategy):
        batch_norm = {"mean": torch.zeros(1), "count": torch.tensor(0)}
        updates = [
            update(i, 1.0 + 0.01 * i, mean=torch.tensor([1.0 + 0.01 * i]), count=torch.tensor(i)) for i in range(5)
        ]
        updates.append(update(5, 1e6, mean=torch.tensor([1e6]), count=torch.tensor(3)))
        return strategy.aggregate(state(0.0, **batch_norm), updates).weights.buffers

    assert run(FedAvg())["mean"] > 1e5
    for strategy in ROBUST:
        buffers = run(strategy)
        assert 1.0 <= buffers["mean"].item() <= 1.1
        assert buffers["mean"].dtype == torch.float32
        assert buffers["count"].item() == 4
    assert run(NormClipping(1.0))["mean"] > 1e5  # it bounds parameters alone, and says so


def test_median_by_hand():
    assert joined(CoordinateMedian(), [3.0, 1.0, 100.0]) == [3.0]
    assert joined(CoordinateMedian(), [3.0, 1.0, 100.0, 4.0]) == [3.5]
    assert joined(CoordinateMedian(), [[0.0, 9.0], [1.0, 8.0], [2.0, 1.0]]) == [1.0, 8.0]  # no client's delta
    assert joined(CoordinateMedian(), [7.0]) == [7.0]


def test_trimmed_mean_by_hand():
    values = [100.0, 1.0, 2.0, 6.0, -50.0]
    assert joined(TrimmedMean(0.2), values) == [3.0]  # of 1, 2, 6
    assert joined(TrimmedMean(0.21), values) == [2.0]  # two at either end: no attacker slips in by rounding
    squares = [float(i * i) for i in range(100)]
    assert joined(TrimmedMean(0.07), squares) == pytest.approx([sum(squares[7:93]) / 86])  # 7, not 8, at either end
    with pytest.raises(FedKDError, match=r"TrimmedMean\(0\.4\) leaves none of 2 clients"):
        joined(TrimmedMean(0.4), [1.0, 2.0])


def test_trimmed_mean_of_zero_is_the_mean():
    torch.manual_seed(0)
    deltas = torch.randn(6, 50).tolist()
    plain = torch.tensor(deltas).mean(0).tolist()
    assert joined(TrimmedMean(0.0), deltas) == pytest.approx(plain, abs=1e-6)
    assert joined(TrimmedMean(0.0), deltas) == pytest.approx(joined(FedAvg(), deltas), abs=1e-6)


def test_krum_by_hand():
    values = [0.0, 1.0, 2.5, 3.0, 100.0]
    # n - f - 2 = 2 nearest: 0 -> 1 + 6.25; 1 -> 1 + 2.25; 2.5 -> 0.25 + 2.25; 3 -> 0.25 + 4; 100 -> far
    assert joined(Krum(1), values) == [2.5]
    assert joined(MultiKrum(1, 2), values) == [1.75]  # 2.5 and 1
    assert joined(MultiKrum(1, 3), values) == pytest.approx([6.5 / 3])  # and 3
    assert joined(MultiKrum(1), values) == [1.625]  # all but f
    assert joined(MultiKrum(0, 5), values) == pytest.approx([21.3])  # all: the mean
    weighted = [update(i, v, num_examples=10**i) for i, v in enumerate(values)]
    assert MultiKrum(1, 2).aggregate(state(0.0), weighted).weights.parameters["w"].item() == 1.75


def test_krum_needs_a_cohort():
    with pytest.raises(FedKDError, match="num_byzantine 1 needs a cohort of more than 4 clients, got 4"):
        joined(Krum(1), [1.0, 2.0, 3.0, 4.0])
    with pytest.raises(FedKDError, match="num_selected must be <= 5, the cohort's size, got 6"):
        joined(MultiKrum(1, 6), [1.0, 2.0, 3.0, 4.0, 5.0])


@pytest.mark.parametrize("strategy", [Krum(1), TrimmedMean(0.4), Compose([Krum(1), FedAvgM()])])
def test_a_cohort_that_is_too_small_is_refused_before_any_work(tmp_path, strategy):
    federation = fedkd.Federation(strategy=strategy, clients_per_round=2, run_dir=tmp_path / "run")
    with pytest.raises(FedKDError, match=r"cohort of more than 4 clients, got 2|leaves none of 2 clients"):
        federation.fit(module(), datamodule())
    assert not (tmp_path / "run").exists()


def test_geometric_median_by_hand():
    # an equilateral triangle's is its center
    corners = [[math.cos(a), math.sin(a)] for a in (0, 2 * math.pi / 3, 4 * math.pi / 3)]
    assert joined(GeometricMedian(), corners) == pytest.approx([0.0, 0.0], abs=1e-3)
    assert joined(GeometricMedian(), [0.0, 1.0, 100.0]) == pytest.approx([1.0], abs=1e-2)  # on a line: the median
    # the Fermat point of a right triangle with legs 1 sees all sides at 120 degrees: x = y = (3 - sqrt 3) / 6
    found = joined(GeometricMedian(), [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert found == pytest.approx([(3 - 3**0.5) / 6] * 2, abs=1e-3)


def test_geometric_median_weighs_by_examples():
    updates = [update(0, 0.0, num_examples=30), update(1, 1.0, num_examples=10), update(2, 5.0, num_examples=10)]
    assert GeometricMedian().aggregate(state(0.0), updates).weights.parameters["w"].item() == pytest.approx(
        0.0, abs=1e-2
    )
    once = GeometricMedian(max_iterations=1).aggregate(state(0.0), updates).weights.parameters["w"].item()
    # one step from the mean, 1.2: betas 30 / 1.2, 10 / 0.2, 10 / 3.8
    assert once == pytest.approx((50 + 50 / 3.8) / (25 + 50 + 10 / 3.8), rel=1e-5)


def test_norm_clipping_by_hand():
    assert joined(NormClipping(1.0), [[3.0, 4.0], [0.0, 0.5]]) == pytest.approx([0.3, 0.65])  # (0.6, 0.8) and itself
    assert joined(NormClipping(10.0), HONEST) == joined(FedAvg(), HONEST)
    far = joined(NormClipping(2.0), [*HONEST, [1e6, 1e6]])
    assert math.dist(far, joined(FedAvg(), HONEST)) < 2 * 2.0 / 6 + 0.5
    updates = [update(0, 3.0, num_examples=10), update(1, 0.5, num_examples=30)]
    assert NormClipping(1.0).aggregate(state(0.0), updates).weights.parameters["w"].item() == pytest.approx(0.625)


def test_the_norm_is_that_of_all_parameters():
    start = state(0.0)
    start.weights.parameters["b"] = torch.zeros(1)
    one = cohort([3.0])[0]
    one.delta["b"] = torch.tensor([4.0])
    after = NormClipping(1.0).aggregate(start, [one]).weights.parameters
    assert [after["w"].item(), after["b"].item()] == pytest.approx([0.6, 0.8])


def test_two_rules_cannot_be_combined():
    for pair in ([Krum(), CoordinateMedian()], [GeometricMedian(), NormClipping()], [MultiKrum(), TrimmedMean()]):
        with pytest.raises(FedKDError, match="cannot be composed"):
            Compose(pair)


def test_a_combination_inside_decides_what_its_parts_decide():
    inner = Compose([SCAFFOLD(), FedProx()])
    Compose([inner, FedAdam()])
    with pytest.raises(FedKDError, match="Compose and FedAdam cannot be composed: each decides step"):
        Compose([Compose([inner, FedAvgM()]), FedAdam()])


class Halves(fedkd.Strategy):
    """Halves the delta, and does not declare it."""

    def combine(self, state, updates, weights):
        return {name: value / 2 for name, value in super().combine(state, updates, weights).items()}


class Counts(fedkd.Strategy):
    """Evaluates in its own way."""

    def evaluate(self, state, context):
        return {**super().evaluate(state, context), "count": 1.0}


def test_what_a_combination_would_not_call_is_refused():
    with pytest.raises(
        FedKDError, match=r"Halves cannot be composed: it overrides combine, .* decides = \{'combine'\}"
    ):
        Compose([FedProx(), Halves()])
    with pytest.raises(
        FedKDError, match="Counts cannot be composed: it overrides evaluate, which Compose does not call"
    ):
        Compose([Counts(), FedProx()])


@pytest.mark.parametrize("beside", [FedDyn(0.1), SCAFFOLD(), FedDF(), ClosedFormHead()], ids=repr)
def test_another_way_for_attackers_is_a_warning(tmp_path, beside, recwarn):
    robust = Compose([CoordinateMedian(), FedProx()])
    assert robust.is_robust
    strategy = Compose([robust, beside])
    assert not strategy.is_robust
    data = fedkd.FederatedDataModule.from_datasets(images(60), images(30, seed=1), num_clients=3, public_fraction=0.2)

    def check(strategy):
        plan_run(fedkd.Federation(1, strategy=strategy, trainer={"accelerator": "cpu"}), module("resnet8"), data)
        return [str(each.message) for each in recwarn if "protected" in str(each.message)]

    assert not check(robust)
    assert f"{type(beside).__name__} beside it takes in what every client sends" in check(strategy)[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrimmedMean(0.5), r"trim must be >= 0 and < 0\.5, got 0\.5"),
        (lambda: Krum(-1), "num_byzantine must be >= 0, got -1"),
        (lambda: MultiKrum(1, 0), "num_selected must be >= 1, got 0"),
        (lambda: NormClipping(0.0), r"max_norm must be > 0, got 0\.0"),
        (lambda: GeometricMedian(smoothing=0), "smoothing must be > 0, got 0"),
    ],
)
def test_values_out_of_range_are_named(make, message):
    with pytest.raises(FedKDError, match=message):
        make()
