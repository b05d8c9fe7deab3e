"""Server optimizers against numbers by hand."""

from __future__ import annotations

import pytest
import torch
from rounds import cohort, state, update

from fedkd.core.errors import FedKDError
from fedkd.core.messages import ServerState, from_bytes, to_bytes
from fedkd.strategies import (
    Compose,
    CoordinateMedian,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
)

# The steps of two rounds with mean deltas 0.4 and 0.2. Adaptive: beta1 0.5, beta2 0.75, tau 0.1, so v starts at 0.01;
# m is 0.5 * 0.4 = 0.2, then 0.5 * 0.2 + 0.5 * 0.2 = 0.2; with a server_lr of 2 the numerator is 0.4 twice.
STEPS = [
    (FedAvg(), 0.4, 0.2),
    (FedAvgM(0.0), 0.4, 0.2),
    (FedAvgM(0.5), 0.4, 0.4),  # velocities 0.4 and 0.5 * 0.4 + 0.2
    (FedAvgM(0.5, server_lr=0.5), 0.2, 0.2),
    (FedAdagrad(2.0, 0.5, 0.1), 0.4 / (0.17**0.5 + 0.1), 0.4 / (0.21**0.5 + 0.1)),  # v = 0.01 + 0.16, then + 0.04
    # v = 0.75 * 0.01 + 0.25 * 0.16, then 0.75 * 0.0475 + 0.25 * 0.04
    (FedAdam(2.0, 0.5, 0.75, 0.1), 0.4 / (0.0475**0.5 + 0.1), 0.4 / (0.045625**0.5 + 0.1)),
    # v = 0.01 + 0.25 * 0.16, for 0.01 < 0.16; then 0.05 - 0.25 * 0.04, for 0.05 > 0.04
    (FedYogi(2.0, 0.5, 0.75, 0.1), 0.4 / (0.05**0.5 + 0.1), 0.4 / (0.04**0.5 + 0.1)),
]
IDS = [repr(strategy) for strategy, _, _ in STEPS]
OPTIMIZERS = [strategy for strategy, _, _ in STEPS[1:]]


def two_clients(mean: float) -> list:
    """Return updates of 1 and 3 examples whose weighted mean is ``mean``."""
    return [update(0, mean + 0.3, num_examples=1), update(1, mean - 0.1, num_examples=3)]


@pytest.mark.parametrize(("strategy", "first", "second"), STEPS, ids=IDS)
def test_two_rounds_by_hand(strategy, first, second):
    for _ in range(2):  # the same object serves another run
        after_one = strategy.aggregate(state(1.0), two_clients(0.4))
        after_two = strategy.aggregate(after_one, two_clients(0.2))
        assert after_one.weights.parameters["w"].item() == pytest.approx(1 + first, abs=1e-6)
        assert after_two.weights.parameters["w"].item() == pytest.approx(1 + first + second, abs=1e-6)
        assert after_two.round == 2


def test_defaults_are_the_papers_and_there_is_no_bias_correction():
    delta = 0.5
    adam = FedAdam()
    # m = 0.1 * 0.5, v = 0.99 * 1e-6 + 0.01 * 0.25: torch's Adam would divide both by 1 - beta and step by 0.01
    expected = 0.01 * 0.05 / ((0.99e-6 + 0.0025) ** 0.5 + 1e-3)
    assert adam.aggregate(state(0.0), cohort([delta])).weights.parameters["w"].item() == pytest.approx(
        expected, rel=1e-5
    )
    adagrad = FedAdagrad()
    expected = 0.1 * 0.5 / ((1e-6 + 0.25) ** 0.5 + 1e-3)
    assert adagrad.aggregate(state(0.0), cohort([delta])).weights.parameters["w"].item() == pytest.approx(
        expected, rel=1e-5
    )


def test_fedavgm_without_momentum_is_fedavg_to_the_bit():
    torch.manual_seed(0)
    start = state(*torch.randn(100).tolist())
    updates = [update(i, *torch.randn(100).tolist(), num_examples=i + 1) for i in range(5)]
    for _ in range(2):
        plain = FedAvg().aggregate(start, updates)
        assert torch.equal(
            FedAvgM(0.0).aggregate(start, updates).weights.parameters["w"], plain.weights.parameters["w"]
        )
        start = plain


@pytest.mark.parametrize("strategy", OPTIMIZERS, ids=IDS[1:])
def test_the_memory_survives_a_checkpoint(strategy):
    after_one = strategy.aggregate(state(1.0), two_clients(0.4))
    whole = strategy.aggregate(after_one, two_clients(0.2)).weights.parameters["w"]
    reloaded = from_bytes(ServerState, to_bytes(after_one))
    assert torch.equal(strategy.aggregate(reloaded, two_clients(0.2)).weights.parameters["w"], whole)


def test_a_true_half_precision_model_stays_one_and_its_memory_is_float32():
    strategy = FedAdam()
    start = state(1.0)
    start.weights.parameters["w"] = start.weights.parameters["w"].bfloat16()
    after = strategy.aggregate(start, two_clients(0.4))
    assert after.weights.parameters["w"].dtype == torch.bfloat16
    assert {value.dtype for value in after.memory.values()} == {torch.float32}


def test_it_steps_along_whatever_rule_joined_the_clients():
    both = Compose([CoordinateMedian(), FedAvgM(0.5)])
    after_one = both.aggregate(state(0.0), cohort([1.0, 2.0, 900.0]))
    after_two = both.aggregate(after_one, cohort([1.0, 2.0, 900.0]))
    assert [after_one.weights.parameters["w"].item(), after_two.weights.parameters["w"].item()] == [2.0, 5.0]
    with pytest.raises(FedKDError, match="FedAvgM and FedAdam cannot be composed"):
        Compose([FedAvgM(), FedAdam()])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FedAvgM(1.0), r"momentum must be >= 0 and < 1, got 1\.0"),
        (lambda: FedAvgM(server_lr=0), "server_lr must be > 0, got 0"),
        (lambda: FedAdam(beta2=-0.1), r"beta2 must be >= 0 and < 1, got -0\.1"),
        (lambda: FedYogi(tau=0), "tau must be > 0, got 0"),
        (lambda: FedAdagrad(beta1=1), "beta1 must be >= 0 and < 1, got 1"),
    ],
)
def test_values_out_of_range_are_named(make, message):
    with pytest.raises(FedKDError, match=message):
        make()
