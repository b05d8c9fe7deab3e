"""The loss against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from fedkd.errors import FedKDError
from fedkd.losses import KD, kd_divergence


def test_divergence_of_two_classes_by_hand():
    # teacher (3/4, 1/4), student (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2)
    student = torch.zeros(1, 2)
    teacher = torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert kd_divergence(student, teacher).item() == pytest.approx(expected, abs=1e-6)


def test_temperature_divides_both_sides():
    # at T = 2, logits of twice the size give the divergence of the case above
    student = torch.zeros(1, 2)
    teacher = torch.tensor([[2 * math.log(3.0), 0.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert kd_divergence(student, teacher, 2.0).item() == pytest.approx(expected, abs=1e-6)


def test_divergence_is_the_batch_mean_and_vanishes_for_equals():
    logits = torch.randn(5, 7)
    assert kd_divergence(logits, logits + 3.0).item() == pytest.approx(0.0, abs=1e-6)  # a shift changes no softmax
    other = torch.randn(5, 7)
    rows = [kd_divergence(logits[i : i + 1], other[i : i + 1]).item() for i in range(5)]
    assert kd_divergence(logits, other).item() == pytest.approx(sum(rows) / 5, rel=1e-5)


def test_gradient_at_high_temperature_is_that_of_matching_logits():
    # Hinton et al., equation 4: T^2 times the gradient tends to (z - v) / K for centred logits
    z = torch.tensor([[1.0, -2.0, 1.0]], requires_grad=True)
    v = torch.tensor([[0.5, 0.5, -1.0]])
    temperature = 1e3
    (temperature**2 * kd_divergence(z, v, temperature)).backward()
    torch.testing.assert_close(z.grad, (z.detach() - v) / 3, atol=5e-3, rtol=0)


def test_no_gradient_reaches_the_teacher():
    teacher = torch.randn(2, 3, requires_grad=True)
    kd_divergence(torch.randn(2, 3, requires_grad=True), teacher).backward()
    assert teacher.grad is None


def test_terms_are_named_and_weighted():
    logits, targets, teacher = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.randn(4, 3)
    terms = KD(ce_weight=0.3, kd_weight=0.5, temperature=3.0)(logits, targets, teacher)
    ce = torch.nn.functional.cross_entropy(logits, targets)
    kd = 9 * kd_divergence(logits, teacher, 3.0)
    torch.testing.assert_close(terms, {"loss": 0.3 * ce + 0.5 * kd, "ce": ce, "kd": kd})


def test_zero_weights_mean_what_they_say():
    logits, targets, teacher = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.randn(4, 3)
    terms = KD(ce_weight=0, kd_weight=1)(logits, targets, teacher)
    assert torch.equal(terms["loss"], KD(ce_weight=0, kd_weight=1)(logits, 2 - targets, teacher)["loss"])
    assert torch.equal(KD(ce_weight=1, kd_weight=0)(logits, targets, teacher)["loss"], terms["ce"])


def test_without_a_teacher_it_is_plain_cross_entropy():
    logits, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    terms = KD(ce_weight=0.1, kd_weight=0.9)(logits, targets, None)
    assert terms.keys() == {"loss", "ce"}
    torch.testing.assert_close(terms["loss"], torch.nn.functional.cross_entropy(logits, targets))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0}, "temperature must be > 0, got 0"),
        ({"ce_weight": -1}, "ce_weight must be >= 0, got -1"),
        ({"kd_weight": float("nan")}, "kd_weight must be >= 0, got nan"),
    ],
)
def test_wrong_values_are_named(arguments, message):
    with pytest.raises(FedKDError, match=message):
        KD(**arguments)


def test_shapes_that_differ_are_named():
    with pytest.raises(FedKDError, match=r"\(2, 3\) and \(2, 4\)"):
        kd_divergence(torch.zeros(2, 3), torch.zeros(2, 4))
