"""The automatic temperature: entropies by hand, and what it makes the same."""

from __future__ import annotations

import math

import pytest
import torch

from fedkd.core.errors import FedKDError
from fedkd.core.metrics import mean_entropy
from fedkd.losses import DKD, KD, Outputs, StandardizedKD, entropy_sums, local_facts
from fedkd.losses.temperature import HIGH, LOW, STEPS
from fedkd.losses.temperature import solve_temperature as solve


def solve_temperature(logits, target):
    """Solve for one client that has all the logits, by the bisection that the exchange shares out."""
    return local_facts(KD(temperature="auto", target_entropy=target), logits).temperature


def test_entropy_by_hand():
    rows = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])  # (3/4, 1/4) and (1/2, 1/2)
    expected = (-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) + math.log(2)) / 2
    assert mean_entropy(rows) == pytest.approx(expected, abs=1e-6)
    assert mean_entropy(rows * 5, 5.0) == pytest.approx(expected, abs=1e-6)
    assert mean_entropy(torch.tensor([[1e4, 0.0]])) == 0
    assert entropy_sums(rows, [1.0]).item() == pytest.approx(2 * expected, abs=1e-6)
    assert entropy_sums(rows.reshape(1, 2, 2), [1.0, 2.0]).shape == (2,)


@pytest.mark.parametrize("target", [0.1, 0.3, 0.7])
def test_shared_exchanges_give_the_bits_of_plain_bisection(target):
    logits = 5 * torch.randn(60, 7, generator=torch.Generator().manual_seed(1))
    asked = []

    def mean_entropies(temperatures):
        asked.append(len(temperatures))
        return (entropy_sums(logits, temperatures) / 60).tolist()

    low, high = LOW, HIGH
    for _ in range(STEPS):
        middle = (low * high) ** 0.5
        below = mean_entropies([middle])[0] < target * math.log(7)
        low, high = (middle, high) if below else (low, middle)
    asked.clear()
    assert solve(mean_entropies, 7, target) == (low * high) ** 0.5
    assert asked == [2] + [31] * 8  # the ends, then 40 steps in eight exchanges


def test_the_temperature_of_two_classes_by_hand():
    # p = sigmoid(x / T): the entropy of (0.9, 0.1) needs x / T = log 9
    share = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1)) / math.log(2)
    assert solve_temperature(torch.tensor([[6.0, 0.0]]), share) == pytest.approx(6 / math.log(9), rel=1e-4)


@pytest.mark.parametrize("target", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_the_target_is_met(target, classes):
    logits = 4 * torch.randn(500, classes)
    temperature = solve_temperature(logits, target)
    assert mean_entropy(logits, temperature) == pytest.approx(target * math.log(classes), rel=1e-3)


def test_it_follows_the_teachers_scale_and_takes_views():
    logits = torch.randn(200, 10)
    temperature = solve_temperature(logits, 0.3)
    assert solve_temperature(100 * logits + 3, 0.3) == pytest.approx(100 * temperature, rel=1e-3)
    assert solve_temperature(logits.reshape(50, 4, 10), 0.3) == temperature


def test_a_teacher_that_tells_nothing_apart_is_named():
    with pytest.raises(FedKDError, match=r"No temperature gives the teacher a mean entropy of 0\.3 log K"):
        solve_temperature(torch.ones(5, 3), 0.3)


@pytest.mark.parametrize("make", [KD, DKD])
def test_auto_equals_the_number_it_finds(make):
    student, teacher, targets = torch.randn(6, 4), 30 * torch.randn(6, 4), torch.arange(6) % 4
    loss = make(temperature="auto", target_entropy=0.4)
    assert not loss.is_fitted
    assert loss.resolved() == {}
    with pytest.raises(FedKDError, match="temperature 'auto' is computed from the teacher's logits"):
        loss(Outputs(student), targets, Outputs(teacher))
    before = repr(loss)
    loss.fit_to_teacher(local_facts(loss, teacher))
    assert loss.is_fitted
    found = loss.resolved()["temperature"]
    assert found == solve_temperature(teacher, 0.4)
    expected = make(temperature=found)(Outputs(student), targets, Outputs(teacher))
    torch.testing.assert_close(loss(Outputs(student), targets, Outputs(teacher)), expected)
    assert repr(loss) == before  # what was asked for: it tells runs apart


def test_a_number_stays():
    loss = KD(temperature=2.0)
    loss.fit_to_teacher(local_facts(loss, torch.randn(5, 3)))
    assert loss.T == 2.0
    assert loss.resolved() == {}


def test_standardized_logits_are_standardized_first():
    teacher = torch.randn(50, 10)
    loss = StandardizedKD(temperature="auto")
    loss.fit_to_teacher(local_facts(loss, teacher))
    first = loss.T
    loss.fit_to_teacher(local_facts(loss, 40 * teacher - 2))
    assert first == pytest.approx(loss.T, rel=1e-4)
