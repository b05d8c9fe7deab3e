"""Batches of a shard, made on the training device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedkd.data.augmentation import Augmentation, Draw
from fedkd.data.images import ImageSet
from fedkd.errors import FedKDError, check_range
from fedkd.seeding import derive_seed


class Batch(NamedTuple):
    """B images on the training device, and what is known of them."""

    images: Tensor  # float32 (B, C, H, W) in [0, 1], channels_last
    targets: Tensor  # int64 (B,)
    index: Tensor  # type: ignore[assignment]  # int64 (B,), position in the ImageSet; hides tuple.index
    teacher_logits: Tensor | None  # float32 (B, K)


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
        augmentation: What is done to images; None leaves them as they are.
        teacher_logits: (N, K) over the whole of ``data``, of any float dtype.
        device: Where batches are made and stay.

    Attributes:
        epoch: The number of the next pass, from 0. Set it to go on from elsewhere.

    Raises:
        FedKDError: If the batch size, an index or the length of ``teacher_logits`` is wrong.
    """

    def __init__(
        self,
        data: ImageSet,
        indices: Sequence[int] | np.ndarray | Tensor,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        teacher_logits: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        check_range("batch_size", batch_size, low=1)
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(data):
            raise FedKDError(
                f"indices must lie in 0..{len(data) - 1}, got {int(chosen.min())}..{int(chosen.max())}: "
                f"there are {len(data)} images."
            )
        if teacher_logits is not None and len(teacher_logits) != len(data):
            raise FedKDError(
                f"teacher_logits must have a row for each of the {len(data)} images, got {len(teacher_logits)} rows."
            )
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
        self._logits = None if teacher_logits is None else teacher_logits[chosen.to(teacher_logits.device)].to(device)

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
        draw = augmentation.draw(index, torch.tensor(epoch, device=self.device), self.seed) if augmentation else None
        for start in range(0, self.num_examples, self.batch_size):
            part = slice(start, start + self.batch_size)
            chosen = order[part]
            images = self._pixels.index_select(0, chosen).permute(0, 3, 1, 2)  # (B, C, H, W)
            if augmentation and draw:
                images = augmentation.apply(images, Draw(*(drawn[part] for drawn in draw)))
            yield Batch(
                images=images.to(torch.float32).div_(255),
                targets=self._targets[chosen],
                index=index[part],
                teacher_logits=None if self._logits is None else self._logits[chosen].float(),
            )
