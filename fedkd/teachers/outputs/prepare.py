"""Compute a teacher's outputs for every image of a federation. The student is trained on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedkd.core.errors import FedKDError
from fedkd.core.local import Connect, connect_locally
from fedkd.core.metrics import accuracy, confusion_matrix, per_class_accuracy
from fedkd.data import FederatedDataModule, ImageSet, Views
from fedkd.teachers.heads.clients import HeadClients
from fedkd.teachers.outputs.cache import TeacherCache
from fedkd.teachers.teacher import Teacher

MIN_ROWS = 16
"""The least number of rows that a head is given: one or two rows may be multiplied with other last bits."""


@dataclass(frozen=True, eq=False)
class TeacherOutputs:
    """A teacher's outputs for all images, and the teacher's own accuracy.

    Args:
        logits: For every training image, (N, K) float32 on the CPU; (N, V, K) with V views per image.
        test_logits: For every test image, (M, K) float32 on the CPU.
        accuracy: On the test set, in [0, 1].
        balanced_accuracy: Mean of the per-class accuracies.
        per_class_accuracy: On the test images of each class; NaN for a class without test images.
        sends: A description of what a client sent to fit the head; "" for a head that needs no fit.
        chosen: Values that the fit chose, by name, such as the regularization.
        feature_file: The cache's file of the features (N, V, D), if they are needed.
        shared_logits: The logits for the ImageSet of the shared images, like ``logits``. The same tensor as ``logits``
            if the shared images are the public split; None if no images are shared.
        shared_feature_file: The same for ``feature_file``.
        num_shared: The number of shared images.
    """

    logits: Tensor
    test_logits: Tensor
    accuracy: float
    balanced_accuracy: float
    per_class_accuracy: list[float]
    sends: str = ""
    chosen: Mapping[str, float] = field(default_factory=dict)
    feature_file: Path | None = None
    shared_logits: Tensor | None = None
    shared_feature_file: Path | None = None
    num_shared: int = 0

    def of_clients(self, shards: Sequence[np.ndarray]) -> tuple[Tensor, np.ndarray | None]:
        """Return logits (n V, K) and features (n, V, D) of the clients' images only, for all views of each."""
        rows = np.concatenate(shards)
        features = None if self.feature_file is None else np.load(self.feature_file, mmap_mode="r")[rows]
        return self.logits[torch.from_numpy(rows)].flatten(0, -2), features


def prepare_teacher(
    teacher: Teacher,
    data: FederatedDataModule,
    *,
    connect: Connect = connect_locally,
    views: Views | None = None,
    features: bool = False,
    cache: TeacherCache | Path | str | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 128,
    progress: bool = True,
) -> TeacherOutputs:
    """Compute a teacher's outputs: embed the class names, adapt it, compute features once, fit the head federatedly.

    The head is fitted to the images themselves. So it does not depend on ``views``, on which the student is trained.

    Two hooks are called if the teacher has them. ``adapt(data, connect)`` is called before any feature is computed; it
    may change the teacher's weights in exchanges with the clients. ``fit_weights(outputs, targets)`` is called after
    the head is fitted, with the cached outputs (P, D) for the public split, float32 on the CPU, and their labels (P,).
    P may be 0.

    In a simulation the features of all clients' images are computed here, in one pass. What clients send to fit the
    head goes only through ``connect``.

    Args:
        teacher: The teacher. Its head is fitted here unless it has one. It is moved to ``device``, and back afterwards.
        data: The federation's data, already set up.
        connect: Gives an exchange with the clients of a site factory; by default one in this process.
        views: The views of each image that the student is trained on; None is the images themselves.
        features: Whether the student is also trained on features.
        cache: The `TeacherCache`, or its folder; None uses fedkd's own cache.
        device: The device that the teacher runs on.
        batch_size: Images in a batch.
        progress: Whether to show a progress bar on a terminal.

    Raises:
        FedKDError: If the head's number of classes is not the data's, or no client has an image.
    """
    store = cache if isinstance(cache, TeacherCache) else TeacherCache(cache)
    train, shared = data.train, data.shared_images

    def outputs_of(images: ImageSet, views: Views | None = None, features: bool = False) -> np.ndarray:
        if not len(images):  # a server without public images, whose clients have theirs elsewhere
            return np.zeros((0, 1 if views is None else views.count, 0), np.float32)
        index = data.train_numbers if images is train else None
        return store.get(
            teacher, images, views=views, features=features, batch_size=batch_size, index=index, progress=progress
        )

    adapt, fit_weights = (getattr(teacher, hook, None) for hook in ("adapt", "fit_weights"))
    with _working_on(teacher, device):
        teacher.image_shape = train.image_shape
        teacher.prepare(train.classes)
        if adapt:
            adapt(data, connect)
        fits_head = (teacher.head is None or teacher.head_is_fitted) and not teacher.overrides_forward
        clean = outputs_of(train) if fits_head or fit_weights or views is None else None
        seen = outputs_of(train, views) if clean is None or views is not None else clean
        own_features = features and teacher.overrides_forward  # the cached outputs are logits
        seen_features = outputs_of(train, views, features=True) if own_features else seen
        test_outputs = outputs_of(data.test)
        shared_seen, shared_features = seen, seen_features  # public images are among those of train
        if shared is not None and shared.data.images is not train.images:
            shared_seen = shared_features = outputs_of(shared.data, views)
            if own_features:
                shared_features = outputs_of(shared.data, views, features=True)

    fitted = None
    if clean is not None and fits_head:
        counts = {client: len(shard) for client, shard in enumerate(data.shards)}
        with connect(data.sites("head", feature_file=file_of(clean))) as exchange:
            clients = HeadClients(exchange, counts, train.num_classes, test_outputs.shape[-1])
            fitted = teacher.head_method.fit(clients)
        teacher.head, teacher.head_is_fitted = fitted.module.to(teacher.device), True
    if clean is not None and fit_weights:
        rows = data.public_indices
        fit_weights(torch.from_numpy(clean[rows, 0].astype(np.float32)), train.targets[torch.from_numpy(rows)])

    def logits_of(outputs: np.ndarray) -> Tensor:
        return logits_from(teacher, outputs, views)

    logits, test_logits = logits_of(seen), logits_from(teacher, test_outputs)
    if test_logits.shape[-1] != train.num_classes:
        raise FedKDError(
            f"{type(teacher).__name__} has {test_logits.shape[-1]} classes, but the data has {train.num_classes}."
        )
    confusion = confusion_matrix(test_logits, data.test.targets, train.num_classes)
    per_class = per_class_accuracy(confusion)
    return TeacherOutputs(
        logits=logits,
        test_logits=test_logits,
        accuracy=float(accuracy(confusion)),
        balanced_accuracy=float(per_class.nanmean()),
        per_class_accuracy=per_class.tolist(),
        sends=fitted.sends if fitted else "",
        chosen=fitted.chosen if fitted else {},
        feature_file=file_of(seen_features) if features else None,
        shared_logits=None if shared is None else logits if shared_seen is seen else logits_of(shared_seen),
        shared_feature_file=file_of(shared_features) if features and shared is not None else None,
        num_shared=0 if shared is None else len(shared),
    )


@contextmanager
def _working_on(teacher: Teacher, device: torch.device | str) -> Iterator[None]:
    """Move a teacher to a device, and back afterwards."""
    home = teacher.device
    teacher.to(device)
    try:
        yield
    finally:
        teacher.to(home)


def file_of(outputs: np.ndarray) -> Path | None:
    """Return the file of outputs that are mapped from one; None if they are not."""
    return Path(str(outputs.filename)) if isinstance(outputs, np.memmap) else None


def logits_from(teacher: Teacher, outputs: np.ndarray, views: Views | None = None, chunk: int = 8192) -> Tensor:
    """Return a teacher's logits by its cached outputs.

    Args:
        teacher: With its head.
        outputs: As `TeacherCache.get` returns them, (N, V, D).
        views: The V views; None if the outputs are for the images themselves.
        chunk: So many outputs are in memory at once.

    Returns:
        (N, V, K) float32; (N, K) without views.
    """
    if not len(outputs):
        shape = (0, len(teacher.classes)) if views is None else (*outputs.shape[:2], len(teacher.classes))
        return torch.zeros(shape)
    rows, parts = outputs.reshape(-1, outputs.shape[-1]), []  # (N V, D), still memory-mapped
    for start in range(0, len(rows), chunk):
        part = torch.from_numpy(rows[start : start + chunk].astype(np.float32))
        if (head := teacher.frozen_head) is not None:
            count, missing = len(part), max(0, MIN_ROWS - len(part))
            part = F.pad(part, (0, 0, 0, missing)).to(teacher.device)
            with torch.no_grad():
                part = head(part)[:count].float().cpu()
        parts.append(part)
    logits = torch.cat(parts).unflatten(0, outputs.shape[:2])
    return logits[:, 0] if views is None else logits
