"""KD against numbers worked out by hand, and what every loss must do."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

from fedkd import losses
from fedkd.core.config import init_args
from fedkd.core.errors import FedKDError
from fedkd.losses import KD, DistillationLoss, Outputs, WeightedLoss, kd_divergence

LOSSES = [value for name in losses.__all__ if isinstance(value := getattr(losses, name), type)]
LOSSES = [loss for loss in LOSSES if issubclass(loss, WeightedLoss) and not loss.__abstractmethods__]


def a_batch(size=4):
    """Return the student's outputs, targets and the teacher's outputs for three classes."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        Outputs(*(torch.randn(size, n, generator=generator) for n in (3, 5))) for _ in ("student", "teacher")
    )
    return student, torch.arange(size) % 3, teacher


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
    # Hinton et al., equation 4: T^2 times the gradient tends to (z - v) / K for centered logits
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
    student, targets, teacher = a_batch()
    terms = KD(ce_weight=0.3, kd_weight=0.5, temperature=3.0)(student, targets, teacher)
    ce = torch.nn.functional.cross_entropy(student.logits, targets)
    kd = 9 * kd_divergence(student.logits, teacher.logits, 3.0)
    torch.testing.assert_close(terms, {"loss": 0.3 * ce + 0.5 * kd, "ce": ce, "kd": kd})


def test_zero_weights_mean_what_they_say():
    student, targets, teacher = a_batch()
    terms = KD(ce_weight=0, kd_weight=1)(student, targets, teacher)
    assert torch.equal(terms["loss"], KD(ce_weight=0, kd_weight=1)(student, 2 - targets, teacher)["loss"])
    assert torch.equal(KD(ce_weight=1, kd_weight=0)(student, targets, teacher)["loss"], terms["ce"])


def test_every_loss_is_here():
    assert len(LOSSES) == 12


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_its_weighted_terms(loss):
    student, targets, teacher = a_batch()
    names = [name.removesuffix("_weight") for name in init_args(loss()) if name.endswith("_weight")]
    weights = {f"{name}_weight": 0.5 + i for i, name in enumerate(names)}
    terms = loss(**weights)(student, targets, teacher)
    assert terms.keys() == {"loss", *names}
    expected = sum(weights[f"{name}_weight"] * terms[name] for name in names)
    torch.testing.assert_close(terms["loss"].detach(), expected)
    for name in names:  # a term is the same whatever the weights
        alone = loss(**{**dict.fromkeys(weights, 0.0), f"{name}_weight": 1.0})(student, targets, teacher)
        torch.testing.assert_close(alone["loss"].detach(), terms[name])


@pytest.mark.parametrize("loss", LOSSES)
def test_without_a_teacher_every_loss_is_plain_cross_entropy(loss):
    student, targets, _ = a_batch()
    terms = loss(ce_weight=0.1)(student, targets, None)
    assert terms.keys() == {"loss", "ce"}
    torch.testing.assert_close(terms["loss"], torch.nn.functional.cross_entropy(student.logits, targets))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("size", [1, 2, 7])
def test_every_loss_trains_batches_of_any_size_and_leaves_the_teacher_alone(loss, size):
    student, targets, teacher = a_batch(size)
    for tensor in (*student, *teacher):
        tensor.requires_grad_()
    loss(ce_weight=1.0)(student, targets, teacher)["loss"].backward()
    assert student.logits.grad.isfinite().all()
    assert student.features.grad is None or student.features.grad.isfinite().all()
    assert teacher.logits.grad is None
    assert teacher.features.grad is None


@pytest.mark.parametrize("loss", LOSSES)
def test_a_student_like_its_teacher_has_nothing_to_learn(loss):
    _, targets, teacher = a_batch()
    terms = loss()(Outputs(*(tensor.clone() for tensor in teacher)), targets, teacher)
    for name in terms.keys() - {"loss", "ce"}:
        assert float(terms[name]) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_computed_in_full(loss):
    student, targets, teacher = a_batch()
    half = Outputs(*(tensor.bfloat16() for tensor in student))
    rounded = Outputs(*(tensor.float() for tensor in half))
    torch.testing.assert_close(loss()(half, targets, teacher), loss()(rounded, targets, teacher))


@pytest.mark.parametrize("loss", LOSSES)
def test_settings_are_what_was_given(loss):
    made = loss(ce_weight=0.25)
    assert init_args(type(made)(**init_args(made))) == init_args(made)
    assert "ce_weight=0.25" in repr(made)
    assert repr(pickle.loads(pickle.dumps(made))) == repr(copy.deepcopy(made)) == repr(made)


def test_a_loss_of_ones_own_needs_terms_alone():
    class Everywhere(WeightedLoss):
        def __init__(self, square_weight: float = 1.0):
            super().__init__(0.0, square_weight=square_weight)

        def terms(self, student, targets, teacher):
            return {"square": student.logits.square().mean()}

    student, targets, teacher = a_batch()
    terms = Everywhere(2.0)(student, targets, teacher)
    torch.testing.assert_close(terms["loss"], 2 * student.logits.square().mean())
    assert isinstance(Everywhere(), DistillationLoss)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0}, "temperature must be > 0, got 0"),
        ({"ce_weight": -1}, "ce_weight must be >= 0, got -1"),
        ({"kd_weight": float("nan")}, "kd_weight must be >= 0, got nan"),
        ({"temperature": "auto", "target_entropy": 1.0}, "target_entropy must be > 0 and < 1, got 1.0"),
        ({"temperature": "automatic"}, "temperature must be a number > 0 or 'auto', got 'automatic'"),
    ],
)
def test_wrong_values_are_named(arguments, message):
    with pytest.raises(FedKDError, match=message):
        KD(**arguments)


def test_shapes_that_differ_are_named():
    with pytest.raises(FedKDError, match=r"\(2, 3\) and \(2, 4\)"):
        kd_divergence(torch.zeros(2, 3), torch.zeros(2, 4))
