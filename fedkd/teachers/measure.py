"""Measure a teacher alone: accuracy, calibration, entropy of its softened targets, and speed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor

from fedkd.core.local import Connect, connect_locally
from fedkd.core.metrics import expected_calibration_error, mean_entropy
from fedkd.data import FederatedDataModule
from fedkd.teachers.outputs.prepare import prepare_teacher
from fedkd.teachers.teacher import Teacher

TEMPERATURES = (1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class TeacherReport:
    """What `measure_teacher` found on the test images.

    Args:
        num_images: M, the number of test images.
        accuracy: In [0, 1], as all accuracies.
        balanced_accuracy: Mean of the per-class accuracies.
        per_class_accuracy: By class name; NaN for a class without test images.
        calibration_error: See `fedkd.core.metrics.expected_calibration_error`, in [0, 1].
        target_entropy: Mean entropy of the softened targets as a share of log K, in [0, 1], by temperature.
        images_per_second: Speed of the teacher, from pixels to logits.
        device: The device on which the speed was measured.
        sends: A description of what a client sends; "" for a head that needs no fit.
        chosen: Values that the fit chose, by name, such as the regularization.
    """

    num_images: int
    accuracy: float
    balanced_accuracy: float
    per_class_accuracy: dict[str, float]
    calibration_error: float
    target_entropy: dict[float, float]
    images_per_second: float
    device: str
    sends: str = ""
    chosen: Mapping[str, float] = field(default_factory=dict)


def measure_teacher(
    teacher: Teacher,
    data: FederatedDataModule,
    *,
    connect: Connect = connect_locally,
    cache: Path | str | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 128,
    progress: bool = True,
) -> TeacherReport:
    """Measure a teacher on a federation's test images. Its head is fitted in the same way as in a run.

    Args:
        teacher: The teacher.
        data: The federation's data.
        connect: Gives an exchange with the clients of a site factory; by default one in this process.
        cache: Folder of the `TeacherCache`; None uses fedkd's own cache.
        device: The device that the teacher runs on.
        batch_size: Images in a batch.
        progress: Whether to show a progress bar on a terminal.

    Raises:
        FedKDError: If the teacher's number of classes is not the data's, or no client has an image.
    """
    data.prepare_data()
    data.setup()
    outputs = prepare_teacher(
        teacher, data, connect=connect, cache=cache, device=device, batch_size=batch_size, progress=progress
    )
    logits = outputs.test_logits.double()
    return TeacherReport(
        num_images=len(data.test),
        accuracy=outputs.accuracy,
        balanced_accuracy=outputs.balanced_accuracy,
        per_class_accuracy=dict(zip(data.classes, outputs.per_class_accuracy, strict=True)),
        calibration_error=expected_calibration_error(logits, data.test.targets),
        target_entropy={t: mean_entropy(logits, t, normalize=True) for t in TEMPERATURES},
        images_per_second=images_per_second(teacher, data.test.images, device=device, batch_size=batch_size),
        device=str(device),
        sends=outputs.sends,
        chosen=outputs.chosen,
    )


def images_per_second(
    teacher: Teacher,
    images: Tensor,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 128,
    seconds: float = 1.0,
) -> float:
    """Return how many images a teacher processes per second. A first batch warms it up and is not counted.

    Args:
        teacher: The teacher, with its head. It is moved to ``device``, and back afterwards.
        images: uint8 (M, C, H, W) on the CPU. They are repeated until ``seconds`` have passed.
        device: The device that the teacher runs on.
        batch_size: Images in a batch.
        seconds: How long to measure.
    """
    home, batches = teacher.device, images.split(batch_size)
    teacher.to(device)
    try:
        teacher(batches[0].to(device).float() / 255).cpu()
        start, count = time.perf_counter(), 0
        for batch in cycle(batches):
            teacher(batch.to(device).float() / 255).cpu()  # copying to the CPU waits for the GPU
            count += len(batch)
            if (passed := time.perf_counter() - start) >= seconds:
                break
        return count / passed
    finally:
        teacher.to(home)
