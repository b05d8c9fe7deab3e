"""Accuracy, calibration and entropy, computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedkd.core.metrics import (
    accuracies,
    accuracy,
    confusion_matrix,
    expected_calibration_error,
    mean_entropy,
    per_class_accuracy,
)


def test_confusion_matrix_by_hand() -> None:
    targets = torch.tensor([0, 0, 1, 1, 1])
    logits = torch.tensor([[2.0, 1, 0], [0, 1, 2], [0, 3, 1], [5, 3, 1], [0, 3, 1]])  # predicts 0, 2, 1, 0, 1
    expected = torch.tensor([[1, 0, 1], [1, 2, 0], [0, 0, 0]])
    assert torch.equal(confusion_matrix(logits, targets, 3), expected)
    assert torch.equal(confusion_matrix(torch.tensor([0, 2, 1, 0, 1]), targets, 3), expected)


def test_accuracies_are_float64_by_hand() -> None:
    confusion = torch.tensor([[1, 0, 1], [1, 2, 0], [0, 0, 0]])
    assert accuracy(confusion).item() == 3 / 5
    per_class = per_class_accuracy(confusion)
    assert per_class.dtype == torch.float64
    assert per_class[:2].tolist() == [1 / 2, 2 / 3]
    assert math.isnan(per_class[2])


def test_accuracies_by_hand():
    # 8 of 10 of the first class, 1 of 5 of the second, no image of the third
    confusion = torch.tensor([[8, 2, 0], [4, 1, 0], [0, 0, 0]])
    found = accuracies(confusion, ["a", "b", "c"])
    assert found["accuracy"] == pytest.approx(9 / 15)
    assert found["balanced_accuracy"] == pytest.approx((0.8 + 0.2) / 2)
    assert found["accuracy/a"] == pytest.approx(0.8)
    assert found["accuracy/b"] == pytest.approx(0.2)
    assert math.isnan(found["accuracy/c"])


def logits_of(*probabilities: float) -> Tensor:
    """Return logits of two classes, of which the first has these probabilities."""
    p = torch.tensor(probabilities, dtype=torch.float64)
    return torch.stack([p, 1 - p], 1).log()


def test_calibration_error_by_hand() -> None:
    # Of 15 bins, 0.9 lies in (13/15, 14/15] and 0.65 in (9/15, 10/15]: one of two is right at 0.9, two of two at 0.65.
    logits, targets = logits_of(0.9, 0.9, 0.65, 0.35), torch.tensor([0, 1, 0, 1])
    assert expected_calibration_error(logits, targets) == pytest.approx(2 / 4 * (0.9 - 0.5) + 2 / 4 * (1 - 0.65))
    # One bin for all: mean confidence 0.775, accuracy 3/4.
    assert expected_calibration_error(logits, targets, num_bins=1) == pytest.approx(0.025)
    assert expected_calibration_error(torch.tensor([[1e4, 0.0], [0.0, 1e4]]), torch.tensor([0, 1])) == 0


def test_calibration_error_equals_torchmetrics() -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(500, 7, generator=generator)
    targets = torch.randint(0, 7, (500,), generator=generator)
    expected = float(multiclass_calibration_error(logits.softmax(1), targets, 7, n_bins=15))
    assert expected_calibration_error(logits, targets) == pytest.approx(expected, abs=1e-5)


def test_entropy_by_hand() -> None:
    logits = logits_of(0.8)  # log 4 apart; log 2 apart at T = 2, which is (2/3, 1/3)
    of_08 = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2)) / math.log(2)
    of_23 = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)) / math.log(2)
    assert mean_entropy(logits, normalize=True) == pytest.approx(of_08)
    assert mean_entropy(logits, 2.0, normalize=True) == pytest.approx(of_23)
    assert mean_entropy(logits_of(0.8, 0.5), normalize=True) == pytest.approx((of_08 + 1) / 2)
    assert mean_entropy(logits) == pytest.approx(of_08 * math.log(2))  # in nats
    assert mean_entropy(torch.zeros(3, 10), 4.0, normalize=True) == pytest.approx(1.0)
    assert mean_entropy(torch.zeros(3, 10)) == pytest.approx(math.log(10))
    assert mean_entropy(torch.tensor([[1e5, 0.0, 0.0], [-torch.inf, 0.0, -torch.inf]]), 1.0) == 0.0
