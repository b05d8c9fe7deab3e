"""A teacher's measures, by hand."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedkd.data import FederatedDataModule, ImageSet
from fedkd.partition import IID
from fedkd.server.backends import InProcess
from fedkd.server.setup import Connections
from fedkd.teachers import Teacher, measure_teacher
from fedkd.teachers.measure import images_per_second


class Colors(Teacher):
    """Tells the fixture's images apart by their color."""

    def features(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


class Slow(Colors):
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
    connect = Connections(InProcess())
    report = measure_teacher(Colors(), data, connect=connect, cache=tmp_path)
    assert report.accuracy == report.balanced_accuracy == 1.0
    assert report.per_class_accuracy == {"cat": 1.0, "dog": 1.0, "bird": 1.0}
    assert list(report.target_entropy) == [1, 2, 4, 8]
    entropies = list(report.target_entropy.values())
    assert 0 <= entropies[0] < entropies[1] < entropies[2] < entropies[3] < 1
    assert 0 <= report.calibration_error < 1
    assert report.images_per_second > 0
    assert min(connect.traffic.up, connect.traffic.down) > 0
    assert (report.num_images, report.device) == (40, "cpu")
