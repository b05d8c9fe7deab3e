"""Images kept once, as one uint8 tensor: clients, teachers and loaders hold indices into it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedkd.core.errors import FedKDError
from fedkd.data.images.pixels import stack_pixels, to_pixels


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images, decoded and kept once.

    Args:
        images: uint8 (N, C, H, W) on the CPU, C being 1 or 3.
        targets: int64 (N,), each in ``[0, K)``.
        classes: The K class names, in the order of the labels.

    Raises:
        FedKDError: If the three do not fit together.
    """

    images: Tensor
    targets: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        images, targets = self.images, self.targets
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise FedKDError(
                f"images must be uint8 (N, C, H, W) with C 1 or 3, got {images.dtype} {tuple(images.shape)}."
            )
        if targets.dtype != torch.int64 or targets.shape != images.shape[:1]:
            raise FedKDError(
                f"targets must be int64 ({len(images)},), one an image, got {targets.dtype} {tuple(targets.shape)}."
            )
        if len(set(self.classes)) < len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise FedKDError(f"The class name {twice!r} stands twice: results are reported by name.")
        outside = targets[(targets < 0) | (targets >= len(self.classes))]
        if len(outside):
            raise FedKDError(
                f"Label {int(outside[0])} is outside 0..{len(self.classes) - 1}: there are {len(self.classes)} classes "
                f"({', '.join(self.classes[:10])}{', ...' if len(self.classes) > 10 else ''})."
            )

    def __len__(self) -> int:
        """Return the number of images, N."""
        return len(self.targets)

    @property
    def num_classes(self) -> int:
        """Return the number of classes, K, whether or not each has an image."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of pixels, labels and class names: equal exactly when the sets are."""
        digest = hashlib.sha256(json.dumps([list(self.images.shape), list(self.classes)]).encode())
        digest.update(self.images.contiguous().numpy().data)
        digest.update(self.targets.contiguous().numpy().data)
        return digest.hexdigest()

    def subset(self, indices: Sequence[int] | np.ndarray | Tensor) -> ImageSet:
        """Return a copy of the images at ``indices``, in that order; the classes stay."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return ImageSet(self.images[chosen], self.targets[chosen], self.classes)

    @classmethod
    def from_dataset(cls, dataset: Any, classes: Sequence[str] | None = None) -> ImageSet:
        """Read any map-style dataset of (image, label) once.

        Args:
            dataset: Has ``__len__`` and ``__getitem__``. An image is a PIL image ("L" stays one channel, every other
                mode becomes RGB), a tensor (C, H, W) or an array (H, W[, C]); tensors and arrays are uint8, or float
                in [0, 1]. All are of one size; where grey and colour mix, grey becomes colour.
            classes: The class names; by default ``dataset.classes``, also of the dataset behind a ``Subset``, and
                otherwise the numbers from 0 to the greatest label.

        Raises:
            FedKDError: If an image or label is of another kind, sizes differ, or a label is outside the classes.
        """
        if not len(dataset):
            raise FedKDError("The dataset is empty: it has no image to learn from.")
        labels: list[int] = []

        def read() -> Iterator[np.ndarray]:
            for i in range(len(dataset)):
                image, label = dataset[i]
                labels.append(_label(label, i))
                yield to_pixels(image)

        images = stack_pixels(read(), len(dataset))
        names = class_names(dataset) if classes is None else tuple(classes)
        if names is None:
            names = tuple(str(k) for k in range(max(labels) + 1))
        return cls(images, torch.tensor(labels, dtype=torch.int64), names)


def class_names(dataset: Any) -> tuple[str, ...] | None:
    """Return ``dataset.classes``, looking through ``Subset``s, or None where there are no names."""
    while not hasattr(dataset, "classes") and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    return None if names is None else tuple(str(name) for name in names)


def _label(label: Any, position: int) -> int:
    """Return a label as an int; a fraction, a vector or a bool is a mistake, not a label."""
    if isinstance(label, np.ndarray | np.generic | Tensor) and label.ndim == 0:
        label = label.item()
    if isinstance(label, bool) or not isinstance(label, int):
        raise FedKDError(f"The label of item {position} must be an integer class number, got {label!r}.")
    return label
