"""Unlabeled images that every client also trains on, with the teacher's outputs as targets."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedkd.core.errors import FedKDError, check_range
from fedkd.data.images.image_set import ImageSet
from fedkd.data.rows import Rows


@dataclass(frozen=True, eq=False)
class Unlabeled:
    """Some images of an ImageSet without their labels, which are all 0.

    Args:
        data: The ImageSet.
        indices: Sorted positions in it, int64 (P,): an image is known by its position, to `fedkd.data.Views` and to
            a teacher's outputs for ``data``.
    """

    data: ImageSet
    indices: np.ndarray

    @classmethod
    def of(cls, images: Tensor, classes: tuple[str, ...], indices: np.ndarray | None = None) -> Unlabeled:
        """Take images, uint8 (N, C, H, W), at ``indices`` (all if not given), for a task with these classes."""
        data = ImageSet(images, torch.zeros(len(images), dtype=torch.int64), classes)
        return cls(data, np.arange(len(images)) if indices is None else indices)

    def __len__(self) -> int:
        """Return the number of images, P."""
        return len(self.indices)

    def rows(self, teacher_logits: Tensor | None = None, teacher_features: np.ndarray | Path | None = None) -> Rows:
        """Return the images alone.

        Args:
            teacher_logits: Of all images of ``data``, as for `Rows.of`.
            teacher_features: Likewise.
        """
        return Rows.of(self.data, self.indices, teacher_logits=teacher_logits, teacher_features=teacher_features)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the images and their positions."""
        digest = hashlib.sha256(self.indices.tobytes())
        digest.update(self.data.images[torch.from_numpy(self.indices)].contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class SharedImages(ABC):
    """A source of shared images, and their share in a client's training.

    Every client's batch of b own images gets ``round(b * fraction / (1 - fraction))`` shared ones, at least one unless
    ``fraction`` is 0. A client's number of steps stays that of its own images. The loss is that of the own
    images plus ``weight`` times the loss without labels on the shared ones (`DistillationLoss.distill`).

    To add a source, subclass it as a frozen dataclass with `load`.

    Args:
        weight: Of the shared images' loss, >= 0; own images' is 1.
        fraction: Share of a training batch that is shared images, in [0, 1).
    """

    weight: float = 1.0
    fraction: float = 0.5

    def __post_init__(self) -> None:
        check_range("weight", self.weight, low=0)
        check_range("fraction", self.fraction, low=0, high=1, high_open=True)

    @abstractmethod
    def load(self, train: ImageSet, public: np.ndarray) -> Unlabeled:
        """Return the images, at least one, of the shape that ``train`` has.

        Args:
            train: All training images; their labels are not read.
            public: Sorted positions in ``train`` of the public split, int64.
        """

    def joining(self, own: int) -> int:
        """Return how many shared images join a batch of ``own`` >= 1 images."""
        return max(round(own * self.fraction / (1 - self.fraction)), 1) if self.fraction else 0


@dataclass(frozen=True)
class PublicImages(SharedImages):
    """The public split, without its labels: it takes ``public_fraction``."""

    def load(self, train: ImageSet, public: np.ndarray) -> Unlabeled:
        """Return the public images; they keep their positions in ``train``, so a teacher runs on them once."""
        if not len(public):
            raise FedKDError("PublicImages needs a public split: set data.public_fraction, such as to 0.2.")
        return Unlabeled.of(train.images, train.classes, public)
