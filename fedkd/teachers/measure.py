"""What a teacher is worth by itself: accuracy, calibration, how soft its targets are, and its speed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedkd.teachers.outputs.prepare import prepare_teacher
from fedkd.teachers.teacher import Teacher

if TYPE_CHECKING:
    from fedkd.data import FederatedDataModule

TEMPERATURES = (1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class TeacherReport:
    """A teacher alone, on the test images.

    Args:
        num_images: M, the number of test images.
        accuracy: In [0, 1], as all accuracies.
        balanced_accuracy: Mean of the per-class accuracies.
        per_class_accuracy: By class name; NaN for a class without test images.
        calibration_error: See `expected_calibration_error`, in [0, 1].
        target_entropy: By temperature, see `mean_entropy`, in [0, 1].
        images_per_second: From pixels to logits.
        device: Where that was measured.
        head_bytes: What clients sent, all together, to fit the head.
        head_bytes_down: What was sent to them for it, all together.
        sends: What a client sent, in words; "" for a head that is given.
        chosen: What the fit chose, by name, such as the regularisation.
    """

    num_images: int
    accuracy: float
    balanced_accuracy: float
    per_class_accuracy: dict[str, float]
    calibration_error: float
    target_entropy: dict[float, float]
    images_per_second: float
    device: str
    head_bytes: int
    head_bytes_down: int = 0
    sends: str = ""
    chosen: Mapping[str, float] = field(default_factory=dict)


def measure_teacher(
    teacher: Teacher,
    data: FederatedDataModule,
    *,
    cache: Path | str | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 128,
    progress: bool = True,
) -> TeacherReport:
    """Measure a teacher on a federation's test images, its head fitted as a run would fit it.

    Args:
        teacher: The teacher.
        data: The federation's data.
        cache: Folder of the `TeacherCache`; None is fedkd's own.
        device: Where the teacher works.
        batch_size: Images in a batch.
        progress: Whether to show a progress bar, if this is a terminal.

    Raises:
        FedKDError: If the teacher does not fit to the data.
    """
    data.prepare_data()
    data.setup()
    signal = prepare_teacher(
        teacher,
        data.train,
        data.test,
        data.shards,
        public=data.public_indices,
        cache=cache,
        device=device,
        batch_size=batch_size,
        progress=progress,
    )
    logits = signal.test_logits
    return TeacherReport(
        num_images=len(data.test),
        accuracy=signal.accuracy,
        balanced_accuracy=signal.balanced_accuracy,
        per_class_accuracy=dict(zip(data.classes, signal.per_class_accuracy, strict=True)),
        calibration_error=expected_calibration_error(logits, data.test.targets),
        target_entropy={temperature: mean_entropy(logits, temperature) for temperature in TEMPERATURES},
        images_per_second=images_per_second(teacher, data.test.images, device=device, batch_size=batch_size),
        device=str(device),
        head_bytes=signal.head_bytes,
        head_bytes_down=signal.head_bytes_down,
        sends=signal.sends,
        chosen=signal.chosen,
    )


def expected_calibration_error(logits: Tensor, targets: Tensor, num_bins: int = 15) -> float:
    """Return how far confidence and accuracy are apart (Guo et al. 2017, arXiv 1706.04599, equation 3).

    ECE = sum_b n_b / M |acc_b - conf_b|, over bins of equal width of the greatest probability.

    Args:
        logits: (M, K).
        targets: (M,) labels.
        num_bins: How many bins.
    """
    confidence, predicted = logits.double().softmax(1).max(1)  # (M,)
    right = (predicted == targets).double()
    bins = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1  # bin b is (b / num_bins, (b + 1) / num_bins]
    gaps = torch.zeros(num_bins, dtype=torch.float64).index_add_(0, bins, right - confidence)
    return float(gaps.abs().sum() / len(targets))


def mean_entropy(logits: Tensor, temperature: float) -> float:
    """Return the mean entropy of softmax(logits / T), (M, K), over log K: 0 says one class, 1 says nothing."""
    log_p = (logits.double() / temperature).log_softmax(1)
    entropy = -(log_p.exp() * log_p.clamp(min=-1e4)).sum(1)  # clamped, for 0 * -inf is NaN
    return float(entropy.mean() / math.log(max(2, logits.shape[1])))


def images_per_second(
    teacher: Teacher,
    images: Tensor,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 128,
    seconds: float = 1.0,
) -> float:
    """Return how many images a second go through a teacher, after a first batch that is not counted.

    Args:
        teacher: The teacher, with its head; it returns from the device.
        images: uint8 (M, C, H, W) on the CPU; they are gone through again until
        seconds: have passed.
        device: Where the teacher works.
        batch_size: Images in a batch.
    """
    home, batches = teacher.device, images.split(batch_size)
    teacher.to(device)
    try:
        teacher(batches[0].to(device).float() / 255).cpu()
        start, count = time.perf_counter(), 0
        for batch in cycle(batches):
            teacher(batch.to(device).float() / 255).cpu()  # to the CPU: a GPU might still be at work
            count += len(batch)
            if (passed := time.perf_counter() - start) >= seconds:
                break
        return count / passed
    finally:
        teacher.to(home)
