"""`Rows`: some images with what is known of each, which is all that a client may hold or everybody may share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedkd.core.errors import FedKDError
from fedkd.data.images.image_set import ImageSet, select


@dataclass(frozen=True, eq=False)
class MappedRows:
    """Some rows of an array in a ``.npy`` file. Only the rows that are read are ever loaded.

    Args:
        file: The file, with an array (N, ...).
        rows: Positions in it, int64 (n,).
    """

    file: Path
    rows: np.ndarray

    @cached_property
    def _array(self) -> np.ndarray:
        return np.load(self.file, mmap_mode="r")

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (n, ...)."""
        return (len(self.rows), *self._array.shape[1:])

    def __len__(self) -> int:
        """Return n."""
        return len(self.rows)

    def __getitem__(self, key: Any) -> np.ndarray:
        """Read rows by their numbers in ``[0, n)``; a tuple indexes the further axes as well, as numpy does."""
        first, rest = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        return self._array[(self.rows[first], *rest)]

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the file's name, not what it holds."""
        return {"file": self.file, "rows": self.rows}


@dataclass(frozen=True, eq=False)
class Rows:
    """n images and what is known of them.

    Args:
        images: uint8 (n, C, H, W) on the CPU, in the memory format channels_last.
        targets: int64 (n,); all 0 where the images have no labels.
        index: int64 (n,), the number of each image in its data set. Augmentations are drawn from it.
        classes: The K class names.
        teacher_logits: (n, K) of the images themselves, which then serve every view, or (n, V, K) of all views.
        teacher_features: Likewise, (n, D) or (n, V, D).

    Raises:
        FedKDError: If one of them has another number of rows.
    """

    images: Tensor
    targets: Tensor
    index: Tensor
    classes: tuple[str, ...]
    teacher_logits: Tensor | None = None
    teacher_features: np.ndarray | MappedRows | None = None
    _pixels: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)
    _resident: dict[torch.device, ResidentRows] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("targets", "index", "teacher_logits", "teacher_features"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self.images):
                raise FedKDError(
                    f"{name} must have a row for each of the {len(self.images)} images, got {len(value)} rows."
                )

    @classmethod
    def of(
        cls,
        data: ImageSet,
        indices: Sequence[int] | np.ndarray | Tensor | None = None,
        *,
        teacher_logits: Tensor | None = None,
        teacher_features: np.ndarray | MappedRows | Path | None = None,
    ) -> Rows:
        """Copy some rows of a data set.

        Args:
            data: The N images.
            indices: Positions in it, (n,); None takes all.
            teacher_logits: Of all N images, (N, K) or (N, V, K), of any float dtype.
            teacher_features: Likewise, (N, D) or (N, V, D): an array, or a ``.npy`` file that is mapped.

        Raises:
            FedKDError: If an index is out of range, or the teacher's outputs have not N rows.
        """
        chosen = torch.arange(len(data)) if indices is None else torch.as_tensor(indices, dtype=torch.int64)
        if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(data):
            raise FedKDError(
                f"indices must lie in 0..{len(data) - 1}, got {int(chosen.min())}..{int(chosen.max())}: "
                f"there are {len(data)} images."
            )
        features: np.ndarray | MappedRows | None = None
        if isinstance(teacher_features, Path):
            features = MappedRows(teacher_features, chosen.numpy())
        for name, given in (("teacher_logits", teacher_logits), ("teacher_features", teacher_features)):
            if given is not None and not isinstance(given, Path) and len(given) != len(data):
                raise FedKDError(f"{name} must have a row for each of the {len(data)} images, got {len(given)} rows.")
        if teacher_features is not None and not isinstance(teacher_features, Path):
            features = np.asarray(teacher_features[chosen.numpy()])
        return cls(
            images=select(data.images, chosen),
            targets=data.targets[chosen],
            index=chosen,
            classes=data.classes,
            teacher_logits=None if teacher_logits is None else teacher_logits[chosen],
            teacher_features=features,
        )

    def __len__(self) -> int:
        """Return n."""
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """Return K."""
        return len(self.classes)

    def with_outputs(self, logits: Tensor | None) -> Rows:
        """Return the same images with other outputs of a teacher; on a device they share their pixels."""
        rows = Rows(self.images, self.targets, self.index, self.classes, teacher_logits=logits)
        object.__setattr__(rows, "_pixels", self._pixels)
        return rows

    def on(self, device: torch.device) -> ResidentRows:
        """Return the rows on a device. They stay there as long as this object lives, and are copied once."""
        if device not in self._resident:
            if device not in self._pixels:
                # Pixels are kept channels last, (n, H, W, C): batches then come out so without another copy.
                self._pixels[device] = self.images.to(device).permute(0, 2, 3, 1).contiguous()
            self._resident[device] = ResidentRows.of(self, self._pixels[device])
        return self._resident[device]

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the rows, and not what lies on devices."""
        return {**vars(self), "_pixels": {}, "_resident": {}}


@dataclass(frozen=True, eq=False)
class ResidentRows:
    """`Rows` on a device.

    Attributes:
        pixels: uint8 (n, H, W, C).
        targets: int64 (n,).
        index: int64 (n,).
        class_counts: int64 (K,), the images of each class.
        logits: The teacher's, (n, V, K); None without a teacher.
        features: The teacher's, (n, V, D) on the device; on the CPU as in `Rows`, where a file is read a batch at a
            time.
    """

    pixels: Tensor
    targets: Tensor
    index: Tensor
    class_counts: Tensor
    logits: Tensor | None
    features: Any

    @classmethod
    def of(cls, rows: Rows, pixels: Tensor) -> ResidentRows:
        """Copy rows to where their pixels are."""
        device, logits = pixels.device, rows.teacher_logits
        features: Any = rows.teacher_features
        if features is not None and device.type != "cpu":  # else each batch would wait for its copy to the device
            features = all_features(features).to(device)
        return cls(
            pixels=pixels,
            targets=rows.targets.to(device),
            index=rows.index.to(device),
            class_counts=torch.bincount(rows.targets, minlength=rows.num_classes).to(device),
            logits=None if logits is None else _with_views(logits).to(device),
            features=features,
        )


def all_features(features: np.ndarray | MappedRows) -> Tensor:
    """Read the features of all rows: (n, D) or (n, V, D) -> (n, V, D)."""
    return _with_views(torch.from_numpy(np.asarray(features[np.arange(len(features))])))


def _with_views(outputs: Tensor) -> Tensor:
    """(n, K) -> (n, 1, K): outputs for the images themselves are a single view."""
    return outputs[:, None] if outputs.ndim == 2 else outputs
