"""Images on the training device, and batches made of them there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedkd.core.errors import FedKDError
from fedkd.data.images.augmentation import Augmentation, Draw
from fedkd.data.images.image_set import ImageSet
from fedkd.data.images.views import Views


class Batch(NamedTuple):
    """B images on the training device, and what is known of them."""

    images: Tensor  # float32 (B, C, H, W) in [0, 1], channels_last
    targets: Tensor  # int64 (B,)
    index: Tensor  # type: ignore[assignment]  # int64 (B,), position in the ImageSet; hides tuple.index
    teacher_logits: Tensor | None  # float32 (B, K)
    teacher_features: Tensor | None = None  # float32 (B, D)
    view: Tensor | None = None  # int64 (B,), which look at the image this is; None where it is the image itself
    class_counts: Tensor | None = None  # int64 (K,), images of each class among all that the loader shows
    shared: Batch | None = None  # images to learn from the teacher alone: their targets are all 0 and mean nothing
    shared_weight: float = 1.0  # of their loss, relative to that of the B images


class Gathered:
    """Some of an ImageSet's images, gathered onto a device once, as uint8.

    Args:
        data: The images.
        indices: Positions in ``data``, int64 (n,).
        augmentation: As for `BatchLoader`.
        teacher_logits: As for `BatchLoader`.
        teacher_features: As for `BatchLoader`.
        device: Where batches are made and stay.

    Raises:
        FedKDError: If the shape of what the teacher says is wrong.
    """

    def __init__(
        self,
        data: ImageSet,
        indices: Tensor,
        *,
        augmentation: Augmentation | Views | None = None,
        teacher_logits: Tensor | None = None,
        teacher_features: np.ndarray | None = None,
        device: torch.device,
    ) -> None:
        num_views = augmentation.count if isinstance(augmentation, Views) else 1
        for name, said in (("teacher_logits", teacher_logits), ("teacher_features", teacher_features)):
            if said is not None:
                _check_rows(name, tuple(said.shape), len(data), num_views)
        self.augmentation, self.device = augmentation, device
        self.index = indices.to(device)
        # Pixels are kept channels last, (n, H, W, C): batches then come out so without another copy.
        self.pixels = data.images[indices].to(device).permute(0, 2, 3, 1).contiguous()
        targets = data.targets[indices]
        self.targets = targets.to(device)
        self.class_counts = torch.bincount(targets, minlength=data.num_classes).to(device)
        self.logits: Tensor | None = None
        if teacher_logits is not None:
            self.logits = _with_views(teacher_logits)[indices.to(teacher_logits.device)].to(device)  # (n, V, K)
        self.features = None if teacher_features is None else _with_views(np.asarray(teacher_features))  # (N, V, D)

    def __len__(self) -> int:
        """Return n."""
        return len(self.index)

    def batches(self, order: Tensor, epoch: int | Tensor, seed: int, sizes: Sequence[int]) -> Iterator[Batch]:
        """Yield one batch after the other.

        Args:
            order: The images to show, positions among the n, int64 (m,), on the device.
            epoch: The number of the pass, of all images or of each, int64 (m,); the augmentation follows from it.
            seed: Decides the augmentation.
            sizes: Images in each batch; the sum is m.
        """
        index = self.index[order]
        augmentation = self.augmentation
        view, draw = (None, None) if augmentation is None else augmentation.look(index, epoch, seed)
        read = self._feature_reader(index, view)
        start = 0
        for size in sizes:
            part = slice(start, start + size)
            start += size
            chosen = order[part]
            images = self.pixels.index_select(0, chosen).permute(0, 3, 1, 2)  # (B, C, H, W)
            if augmentation and draw:
                images = augmentation.apply(images, Draw(*(drawn[part] for drawn in draw)))
            seen = None if view is None else view[part]
            yield Batch(
                images=images.to(torch.float32).div_(255),
                targets=self.targets[chosen],
                index=index[part],
                teacher_logits=None if self.logits is None else _in_view(self.logits, chosen, seen).float(),
                teacher_features=None if read is None else read(part),
                view=seen,
                class_counts=self.class_counts,
            )

    def _feature_reader(self, index: Tensor, view: Tensor | None) -> Callable[[slice], Tensor] | None:
        """Return a function from a part of the epoch to its features, float32 (B, D), read from the file just then."""
        features = self.features
        if features is None:
            return None
        rows, views = index.cpu().numpy(), None if view is None else view.cpu().numpy()

        def read(part: slice) -> Tensor:
            found = _in_view(features, rows[part], None if views is None else views[part])
            return torch.from_numpy(found).to(self.device).float()

        return read


def _with_views(outputs: Any) -> Any:
    """(N, D) -> (N, 1, D): outputs on the images themselves are a single view."""
    return outputs[:, None] if outputs.ndim == 2 else outputs


def _in_view(outputs: Any, rows: Any, view: Any) -> Any:
    """Select rows (B,) of outputs (N, V, D), each in its view: (B, D). A single view serves all."""
    return outputs[rows, 0 if outputs.shape[1] == 1 else view]


def _check_rows(name: str, shape: tuple[int, ...], num_images: int, num_views: int) -> None:
    if shape[0] != num_images:
        raise FedKDError(f"{name} must have a row for each of the {num_images} images, got {shape[0]} rows.")
    if len(shape) == 3 and shape[1] not in (1, num_views):
        allowed = "1 view" if num_views == 1 else f"1 view or {num_views}"
        raise FedKDError(f"{name} must be of {allowed}, as the images are, got {shape[1]} views.")
