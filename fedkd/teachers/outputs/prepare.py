"""From a teacher and a federation's data to what the student is taught: logits for every image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedkd.core.errors import FedKDError
from fedkd.teachers.outputs.cache import TeacherCache
from fedkd.teachers.teacher import Teacher, overrides_forward

if TYPE_CHECKING:
    from fedkd.data import ImageSet, Unlabelled, Views


@dataclass(frozen=True, eq=False)
class TeacherSignal:
    """What a teacher says about all images, and how good it is by itself.

    Args:
        logits: For every training image, (N, K) float32 on the CPU; (N, V, K) where it looked at V views of each.
        test_logits: For every test image, (M, K) float32 on the CPU.
        accuracy: On the test set, in [0, 1].
        balanced_accuracy: Mean of the per-class accuracies.
        per_class_accuracy: On the test images of each class; NaN where there is none.
        head_bytes: What clients sent, all together, to adapt the teacher and fit its head; 0 for a head that is given.
        head_bytes_down: What was sent to them for it, all together.
        sends: What a client sent to fit the head, in words; "" for a head that is given.
        chosen: What the fit chose, by name, such as the regularisation.
        feature_file: The cache's file of the features (N, V, D), to be mapped, if they were asked for.
        shared_logits: For the ImageSet of the shared images, as ``logits`` for the training images; the same tensor
            where they are the public split; None where nothing is shared.
        shared_feature_file: Likewise.
        num_shared: How many shared images there are.
    """

    logits: Tensor
    test_logits: Tensor
    accuracy: float
    balanced_accuracy: float
    per_class_accuracy: list[float]
    head_bytes: int
    head_bytes_down: int
    sends: str = ""
    chosen: Mapping[str, float] = field(default_factory=dict)
    feature_file: Path | None = None
    shared_logits: Tensor | None = None
    shared_feature_file: Path | None = None
    num_shared: int = 0

    def for_clients(self) -> dict[str, Any]:
        """Return what clients train with, under the names of `fedkd.client.works.ClientContext`."""
        return {
            "teacher_logits": self.logits,
            "feature_file": self.feature_file,
            "shared_logits": self.shared_logits,
            "shared_feature_file": self.shared_feature_file,
        }

    def logits_of(self, shards: Sequence[np.ndarray]) -> Tensor:
        """Return the logits for the clients' images alone, all views of each: (n V, K)."""
        return self.logits[torch.from_numpy(np.concatenate(shards))].flatten(0, -2)


def prepare_teacher(
    teacher: Teacher,
    train: ImageSet,
    test: ImageSet,
    shards: Sequence[np.ndarray],
    *,
    public: np.ndarray | None = None,
    shared: Unlabelled | None = None,
    views: Views | None = None,
    features: bool = False,
    cache: Path | str | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 128,
    progress: bool = True,
) -> TeacherSignal:
    """Show a teacher the data: embed the class names, compute features once, fit the head federatedly, classify.

    The head is fitted to the images themselves, also where ``views`` are what the student is taught: so it is the same
    for both ways to teach. Two hooks are called if the teacher has them: ``adapt(train, shards)`` before any feature is
    computed, which may change its weights and returns what that cost (``bytes_up``, ``bytes_down``); and, once the head
    is there, ``fit_weights(outputs, targets)`` with its cached outputs (P, D) on the public split, float32 on the CPU,
    and their labels (P,), where P may be 0.

    Args:
        teacher: The teacher; its head is fitted here unless it has one. It works on ``device`` and returns from there.
        train: All training images, public ones included.
        test: The test images, which nothing is fitted to.
        shards: For each client its positions in ``train``; the head is fitted to these images only.
        public: Positions in ``train`` that belong to no client; None is none.
        shared: Images that students learn from beside ``train``; nothing is fitted to them.
        views: What the student will see of each image; None has the teacher judge the images themselves.
        features: Whether the student is to be taught features too.
        cache: Folder of the `TeacherCache`; None is fedkd's own.
        device: Where the teacher works.
        batch_size: Images in a batch.
        progress: Whether to show a progress bar, if this is a terminal.

    Raises:
        FedKDError: If the head's number of classes is not the data's, or no client has an image.
    """
    store = TeacherCache(cache)

    def look(data: ImageSet, views: Views | None = None, features: bool = False) -> np.memmap:
        return store.get(teacher, data, views=views, features=features, batch_size=batch_size, progress=progress)

    adapt, fit_weights = (getattr(teacher, hook, None) for hook in ("adapt", "fit_weights"))
    bytes_up = bytes_down = 0
    with _working_on(teacher, device):
        teacher.prepare(train.classes)
        if adapt:
            cost = adapt(train, shards)
            bytes_up, bytes_down = cost.bytes_up, cost.bytes_down
        fits_head = (teacher.head is None or teacher.head_is_fitted) and not overrides_forward(teacher)
        clean = look(train) if fits_head or fit_weights or views is None else None
        taught = look(train, views) if clean is None or views is not None else clean
        seen_features = look(train, views, features=True) if features and overrides_forward(teacher) else taught
        test_outputs = look(test)
        shared_taught, shared_features = taught, seen_features  # public images are among those of train
        if shared is not None and shared.data.images is not train.images:
            shared_taught = shared_features = look(shared.data, views)
            if features and overrides_forward(teacher):
                shared_features = look(shared.data, views, features=True)

    fitted = None
    if clean is not None and fits_head:
        fitted = teacher.head_method.fit(clean[:, 0], train.targets, shards, train.num_classes)
        teacher.head, teacher.head_is_fitted = fitted.module.to(teacher.device), True
        bytes_up, bytes_down = bytes_up + fitted.bytes_up, bytes_down + fitted.bytes_down
    if clean is not None and fit_weights:
        rows = np.empty(0, np.int64) if public is None else public
        fit_weights(torch.from_numpy(clean[rows, 0].astype(np.float32)), train.targets[torch.from_numpy(rows)])

    def logits_of(outputs: np.memmap) -> Tensor:
        found = _logits(teacher, outputs)
        return found[:, 0] if views is None else found

    logits, test_logits = logits_of(taught), _logits(teacher, test_outputs)[:, 0]
    if logits.shape[-1] != train.num_classes:
        raise FedKDError(
            f"{type(teacher).__name__} tells {logits.shape[-1]} classes apart, but the data has {train.num_classes}."
        )
    per_class = per_class_accuracy(test_logits, test.targets, test.num_classes)
    return TeacherSignal(
        logits=logits,
        test_logits=test_logits,
        accuracy=float((test_logits.argmax(1) == test.targets).double().mean()),
        balanced_accuracy=float(per_class.nanmean()),
        per_class_accuracy=per_class.tolist(),
        head_bytes=bytes_up,
        head_bytes_down=bytes_down,
        sends=fitted.sends if fitted else "",
        chosen=fitted.chosen if fitted else {},
        feature_file=Path(str(seen_features.filename)) if features else None,
        shared_logits=None if shared is None else logits if shared_taught is taught else logits_of(shared_taught),
        shared_feature_file=Path(str(shared_features.filename)) if features and shared is not None else None,
        num_shared=0 if shared is None else len(shared),
    )


@contextmanager
def _working_on(teacher: Teacher, device: torch.device | str) -> Iterator[None]:
    """Bring a teacher to a device, and back."""
    home = teacher.device
    teacher.to(device)
    try:
        yield
    finally:
        teacher.to(home)


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
    """Cached outputs (N, V, D) -> logits (N, V, K) float32."""
    rows, parts = outputs.reshape(-1, outputs.shape[-1]), []  # (N V, D), still mapped
    for start in range(0, len(rows), chunk):
        part = torch.from_numpy(rows[start : start + chunk].astype(np.float32))
        if not overrides_forward(teacher) and teacher.head is not None:
            with torch.no_grad():
                part = teacher.head(part.to(teacher.device)).float().cpu()
        parts.append(part)
    return torch.cat(parts).unflatten(0, outputs.shape[:2])
