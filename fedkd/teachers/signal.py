"""From a teacher and a federation's data to what the student is taught: logits for every image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedkd.errors import FedKDError
from fedkd.teachers.base import Teacher
from fedkd.teachers.cache import TeacherCache, overrides_forward

if TYPE_CHECKING:
    from fedkd.data import ImageSet


@dataclass(frozen=True, eq=False)
class TeacherSignal:
    """What a teacher says about all images, and how good it is by itself.

    Args:
        logits: For every training image, (N, K) float32 on the CPU.
        test_logits: For every test image, (M, K) float32 on the CPU.
        accuracy: On the test set, in [0, 1].
        balanced_accuracy: Mean of the per-class accuracies.
        per_class_accuracy: On the test images of each class; NaN where there is none.
        head_bytes: What clients sent, all together, to fit the head; 0 for a head that is given.
        head_bytes_down: What was sent to them for it, all together.
    """

    logits: Tensor
    test_logits: Tensor
    accuracy: float
    balanced_accuracy: float
    per_class_accuracy: list[float]
    head_bytes: int
    head_bytes_down: int


def prepare_teacher(
    teacher: Teacher,
    train: ImageSet,
    test: ImageSet,
    shards: Sequence[np.ndarray],
    *,
    cache: Path | str | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 128,
    progress: bool = True,
) -> TeacherSignal:
    """Show a teacher the data: embed the class names, compute features once, fit the head federatedly, classify.

    Args:
        teacher: The teacher; its head is fitted here unless it has one. It works on ``device`` and returns from there.
        train: All training images, public ones included.
        test: The test images, which nothing is fitted to.
        shards: For each client its positions in ``train``; the head is fitted to these images only.
        cache: Folder of the `TeacherCache`; None is fedkd's own.
        device: Where the teacher works.
        batch_size: Images in a batch.
        progress: Whether to show a progress bar, if this is a terminal.

    Raises:
        FedKDError: If the head's number of classes is not the data's, or no client has an image.
    """
    store, home = TeacherCache(cache), teacher.device
    teacher.to(device)
    try:
        teacher.prepare(train.classes)
        outputs, test_outputs = (
            store.get(teacher, data, batch_size=batch_size, progress=progress)[:, 0] for data in (train, test)
        )
    finally:
        teacher.to(home)

    head_bytes = head_bytes_down = 0
    if (teacher.head is None or teacher.head_is_fitted) and not overrides_forward(teacher):
        fitted = teacher.head_method.fit(outputs, train.targets, shards, train.num_classes)
        teacher.head, teacher.head_is_fitted = fitted.module.to(home), True
        head_bytes, head_bytes_down = fitted.bytes_up, fitted.bytes_down

    logits, test_logits = (_logits(teacher, rows) for rows in (outputs, test_outputs))
    if logits.shape[1] != train.num_classes:
        raise FedKDError(
            f"{type(teacher).__name__} tells {logits.shape[1]} classes apart, but the data has {train.num_classes}."
        )
    per_class = per_class_accuracy(test_logits, test.targets, test.num_classes)
    return TeacherSignal(
        logits=logits,
        test_logits=test_logits,
        accuracy=float((test_logits.argmax(1) == test.targets).double().mean()),
        balanced_accuracy=float(per_class.nanmean()),
        per_class_accuracy=per_class.tolist(),
        head_bytes=head_bytes,
        head_bytes_down=head_bytes_down,
    )


def per_class_accuracy(logits: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """Return the share of each class's images that are classified right, (K,) float64; NaN for a class without any.

    Args:
        logits: (M, K).
        targets: (M,) labels.
        num_classes: K.
    """
    right = (logits.argmax(1) == targets).double()
    return torch.bincount(targets, right, num_classes) / torch.bincount(targets, minlength=num_classes)


def _logits(teacher: Teacher, outputs: np.ndarray, chunk: int = 8192) -> Tensor:
    """Cached outputs (N, D) -> logits (N, K) float32."""
    parts = []
    for start in range(0, len(outputs), chunk):
        rows = torch.from_numpy(outputs[start : start + chunk].astype(np.float32))
        if not overrides_forward(teacher) and teacher.head is not None:
            with torch.no_grad():
                rows = teacher.head(rows.to(teacher.device)).float().cpu()
        parts.append(rows)
    return torch.cat(parts)
