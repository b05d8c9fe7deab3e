"""A teacher's measures, by hand."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedkd.data import FederatedDataModule, ImageSet
from fedkd.partition import IID
from fedkd.teachers import Teacher, measure_teacher
from fedkd.teachers.measure import expected_calibration_error, images_per_second, mean_entropy


def logits_of(*probabilities: float) -> Tensor:
    """Logits of two classes, the first of them of these probabilities."""
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
    assert mean_entropy(logits, 1.0) == pytest.approx(of_08)
    assert mean_entropy(logits, 2.0) == pytest.approx(of_23)
    assert mean_entropy(logits_of(0.8, 0.5), 1.0) == pytest.approx((of_08 + 1) / 2)
    assert mean_entropy(torch.zeros(3, 10), 4.0) == pytest.approx(1.0)
    assert mean_entropy(torch.tensor([[1e5, 0.0, 0.0], [-torch.inf, 0.0, -torch.inf]]), 1.0) == 0.0


class Colours(Teacher):
    """Tells the fixture's images apart by their colour."""

    def features(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


class Slow(Colours):
    """Takes half a second for a batch, by a clock of its own."""

    now = 0.0

    def forward(self, images: Tensor) -> Tensor:
        Slow.now += 0.5
        return self.features(images)


def test_images_per_second_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: Slow.now)
    images = torch.zeros(25, 3, 2, 2, dtype=torch.uint8)  # batches of 10, 10 and 5; then from the front again
    assert images_per_second(Slow(), images, batch_size=10, seconds=2.0) == (10 + 10 + 5 + 10) / 2.0
    assert images_per_second(Slow(), images, batch_size=10, seconds=0.0) == 10 / 0.5


def test_a_teacher_is_measured_as_a_run_would_use_it(images: ImageSet, tmp_path: Path) -> None:
    data = FederatedDataModule.from_datasets(images, images, num_clients=2, partitioner=IID())
    report = measure_teacher(Colours(), data, cache=tmp_path)
    assert report.accuracy == report.balanced_accuracy == 1.0
    assert report.per_class_accuracy == {"cat": 1.0, "dog": 1.0, "bird": 1.0}
    assert list(report.target_entropy) == [1, 2, 4, 8]
    entropies = list(report.target_entropy.values())
    assert 0 <= entropies[0] < entropies[1] < entropies[2] < entropies[3] < 1
    assert 0 <= report.calibration_error < 1
    assert report.images_per_second > 0
    assert report.head_bytes > 0
    assert (report.num_images, report.device) == (40, "cpu")
