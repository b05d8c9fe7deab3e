"""Batches of a shard, made on the training device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedkd.data.augmentation import Augmentation, Draw
from fedkd.data.images import ImageSet
from fedkd.data.views import Views
from fedkd.errors import FedKDError, check_range
from fedkd.seeding import derive_seed


class Batch(NamedTuple):
    """B images on the training device, and what is known of them."""

    images: Tensor  # float32 (B, C, H, W) in [0, 1], channels_last
    targets: Tensor  # int64 (B,)
    index: Tensor  # type: ignore[assignment]  # int64 (B,), position in the ImageSet; hides tuple.index
    teacher_logits: Tensor | None  # float32 (B, K)
    teacher_features: Tensor | None = None  # float32 (B, D)
    view: Tensor | None = None  # int64 (B,), which look at the image this is; None where it is the image itself


class BatchLoader:
    """Iterate over some of an ImageSet's images in batches, all on the device.

    The shard is gathered onto the device once, as uint8. Each pass is the next epoch: a new order, if shuffled, and new
    views for the augmentation. Both follow from the seed and the epoch, so they are the same on every device. The last
    batch may be smaller; an empty shard has no batches.

    Args:
        data: The images.
        indices: Positions in ``data``, (n,).
        batch_size: Images a batch.
        shuffle: Whether every epoch has its own order; otherwise that of ``indices``.
        seed: Decides order and augmentation.
        augmentation: What is done to images: something new every epoch, or one of several fixed `Views`; None leaves
            them as they are.
        teacher_logits: Over the whole of ``data``, of any float dtype: (N, K) for the images themselves, which then
            serve every view, or (N, V, K) for all `Views`.
        teacher_features: Likewise, (N, D) or (N, V, D). It may be mapped from a file: of it only a batch's rows are
            ever read.
        device: Where batches are made and stay.

    Attributes:
        epoch: The number of the next pass, from 0. Set it to go on from elsewhere.

    Raises:
        FedKDError: If the batch size, an index or the shape of what the teacher says is wrong.
    """

    def __init__(
        self,
        data: ImageSet,
        indices: Sequence[int] | np.ndarray | Tensor,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        augmentation: Augmentation | Views | None = None,
        teacher_logits: Tensor | None = None,
        teacher_features: np.ndarray | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        check_range("batch_size", batch_size, low=1)
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(data):
            raise FedKDError(
                f"indices must lie in 0..{len(data) - 1}, got {int(chosen.min())}..{int(chosen.max())}: "
                f"there are {len(data)} images."
            )
        num_views = augmentation.count if isinstance(augmentation, Views) else 1
        for name, said in (("teacher_logits", teacher_logits), ("teacher_features", teacher_features)):
            if said is not None:
                _check_rows(name, tuple(said.shape), len(data), num_views)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.augmentation = augmentation
        self.device = torch.device(device)
        self.epoch = 0
        self._index = chosen.to(self.device)
        # Pixels are kept channels last, (n, H, W, C): batches then come out so without another copy.
        self._pixels = data.images[chosen].to(self.device).permute(0, 2, 3, 1).contiguous()
        self._targets = data.targets[chosen].to(self.device)
        self._logits: Tensor | None = None
        if teacher_logits is not None:
            self._logits = _with_views(teacher_logits)[chosen.to(teacher_logits.device)].to(self.device)  # (n, V, K)
        self._features = None if teacher_features is None else _with_views(np.asarray(teacher_features))  # (N, V, D)

    @property
    def num_examples(self) -> int:
        """Return the number of images a pass shows."""
        return len(self._index)

    def __len__(self) -> int:
        """Return the number of batches a pass has."""
        return -(-self.num_examples // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield one epoch's batches."""
        # A generator runs from the first batch on, so an iterator that is made and never used costs no epoch.
        epoch = self.epoch
        self.epoch += 1
        if self.shuffle:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
            order = torch.randperm(self.num_examples, generator=generator).to(self.device)
        else:
            order = torch.arange(self.num_examples, device=self.device)
        index = self._index[order]
        augmentation = self.augmentation
        view, draw = (None, None) if augmentation is None else augmentation.look(index, epoch, self.seed)
        read = self._feature_reader(index, view)
        for start in range(0, self.num_examples, self.batch_size):
            part = slice(start, start + self.batch_size)
            chosen = order[part]
            images = self._pixels.index_select(0, chosen).permute(0, 3, 1, 2)  # (B, C, H, W)
            if augmentation and draw:
                images = augmentation.apply(images, Draw(*(drawn[part] for drawn in draw)))
            seen = None if view is None else view[part]
            yield Batch(
                images=images.to(torch.float32).div_(255),
                targets=self._targets[chosen],
                index=index[part],
                teacher_logits=None if self._logits is None else _in_view(self._logits, chosen, seen).float(),
                teacher_features=None if read is None else read(part),
                view=seen,
            )

    def _feature_reader(self, index: Tensor, view: Tensor | None) -> Callable[[slice], Tensor] | None:
        """Return a function from a part of the epoch to its features, float32 (B, D), read from the file just then."""
        features = self._features
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
