"""Images on the training device, and batches made of them there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedkd.core.errors import FedKDError
from fedkd.core.seeding import derive_seed
from fedkd.data.images.augmentation import Augmentation, Draw
from fedkd.data.images.mix import MixDraws
from fedkd.data.images.views import Views
from fedkd.data.rows import Rows


class Batch(NamedTuple):
    """B images on the training device, with their labels and teacher outputs."""

    images: Tensor  # float32 (B, C, H, W) in [0, 1], channels_last
    targets: Tensor  # int64 (B,)
    index: Tensor  # type: ignore[assignment]  # int64 (B,), position in the ImageSet; hides tuple.index
    teacher_logits: Tensor | None  # float32 (B, K)
    teacher_features: Tensor | None = None  # float32 (B, D)
    view: Tensor | None = None  # int64 (B,), the number of the view; None for the image itself
    class_counts: Tensor | None = None  # int64 (K,), images of each class among all that the loader shows
    shared: Batch | None = None  # images to learn from the teacher alone: their targets are all 0 and mean nothing
    shared_weight: float = 1.0  # of their loss, relative to that of the B images
    mix_weight: Tensor | None = None  # float32 (), if images are mixed: each image's share. The rest is the one before


class Gathered:
    """Rows on a device, as uint8, and batches made of them there.

    Args:
        rows: The images and what is known of them.
        augmentation: As for `BatchLoader`.
        device: Where batches are made and stay.

    Raises:
        FedKDError: If the teacher's outputs are for another number of views.
    """

    def __init__(self, rows: Rows, *, augmentation: Augmentation | Views | None = None, device: torch.device) -> None:
        num_views = augmentation.count if isinstance(augmentation, Views) else 1
        for name in ("teacher_logits", "teacher_features"):
            outputs = getattr(rows, name)
            if outputs is not None:
                _check_views(name, tuple(outputs.shape), num_views)
        self.rows, self.augmentation, self.device = rows.on(device), augmentation, device
        self._index = rows.index  # on the CPU

    def batches(
        self, order: Tensor, epoch: int, seed: int, sizes: Sequence[int], passes: Tensor | None = None
    ) -> Iterator[Batch]:
        """Yield one batch after the other.

        Args:
            order: The images to show, positions among the n, int64 (m,), on the CPU.
            epoch: The number of the epoch; the augmentation follows from it.
            seed: Decides the augmentation.
            sizes: Images in each batch; the sum is m.
            passes: Takes the place of the epoch for what is done to each image by itself, int64 (m,), on the CPU.
        """
        rows = self.rows
        seeds = self._transform_seeds(order, epoch if passes is None else passes, seed)
        order = order.to(self.device)
        index = rows.index[order]
        augmentation = self.augmentation
        number = epoch if passes is None else passes.to(self.device)
        view, draw = (None, None) if augmentation is None else augmentation.sample(index, number, seed)
        read = self._feature_reader(order, view)
        mix = self._mix(epoch, seed, len(sizes))
        start = 0
        for batch, size in enumerate(sizes):
            part = slice(start, start + size)
            start += size
            chosen = order[part]
            images = rows.pixels.index_select(0, chosen).permute(0, 3, 1, 2)  # (B, C, H, W)
            if augmentation and draw:
                images = augmentation.apply(images, Draw(*(drawn[part] for drawn in draw)))
            if augmentation and seeds is not None:
                images = augmentation.transform(images, seeds[part])
            images = images.to(torch.float32).div_(255)
            seen = None if view is None else view[part]
            yield Batch(
                images=images if mix is None else mix.mixed(images, batch),
                targets=rows.targets[chosen],
                index=index[part],
                teacher_logits=None if rows.logits is None else _in_view(rows.logits, chosen, seen).float(),
                teacher_features=None if read is None else read(part),
                view=seen,
                class_counts=rows.class_counts,
                mix_weight=None if mix is None else mix.weight[batch],
            )

    def _transform_seeds(self, order: Tensor, passes: int | Tensor, seed: int) -> Tensor | None:
        """Return what the transforms of each image follow from, int64 (m,) on the CPU; None without transforms."""
        if self.augmentation is None or not self.augmentation.transforms:
            return None
        index = self._index[order]
        view, _ = self.augmentation.sample(index, passes, seed)
        return self.augmentation.transform_seeds(index, view, seed)

    def _mix(self, epoch: int, seed: int, count: int) -> MixDraws | None:
        """Return how the batches of an epoch are mixed, None if they are not."""
        mix = None if self.augmentation is None else self.augmentation.mix
        if mix is None:
            return None
        height, width = self.rows.pixels.shape[1:3]
        return mix.draw(count, (height, width), derive_seed(seed, "mix", epoch)).on(self.device)

    def _feature_reader(self, order: Tensor, view: Tensor | None) -> Callable[[slice], Tensor] | None:
        """Return a function from a part of the epoch to its features, float32 (B, D); a file's are read only then."""
        features = self.rows.features
        if features is None:
            return None
        if isinstance(features, Tensor):
            return lambda part: _in_view(features, order[part], None if view is None else view[part]).float()
        numbers, views = order.cpu().numpy(), None if view is None else view.cpu().numpy()

        def read(part: slice) -> Tensor:
            key = (numbers[part],) if len(features.shape) == 2 else (numbers[part], _view_of(features, views, part))
            return torch.from_numpy(np.asarray(features[key])).to(self.device).float()

        return read


def _in_view(outputs: Tensor, rows: Tensor, view: Tensor | None) -> Tensor:
    """Select rows (B,) of outputs (n, V, K), each in its view: (B, K). A single view serves all."""
    return outputs[rows, 0 if outputs.shape[1] == 1 or view is None else view]


def _view_of(features: Any, views: np.ndarray | None, part: slice) -> Any:
    """Return which view's features (n, V, D) to read for a part of the epoch. A single view serves all."""
    return 0 if features.shape[1] == 1 or views is None else views[part]


def _check_views(name: str, shape: tuple[int, ...], num_views: int) -> None:
    if len(shape) == 3 and shape[1] not in (1, num_views):
        allowed = "1 view" if num_views == 1 else f"1 view or {num_views}"
        raise FedKDError(f"{name} must be of {allowed}, as the images are, got {shape[1]} views.")
