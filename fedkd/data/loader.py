"""Batches of a shard, made on the training device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fedkd.core.errors import FedKDError, check_range
from fedkd.core.seeding import derive_seed
from fedkd.data.batch import Batch, Gathered
from fedkd.data.images.augmentation import Augmentation
from fedkd.data.images.image_set import ImageSet
from fedkd.data.images.views import Views
from fedkd.data.mixing import SharedStream

__all__ = ["Batch", "BatchLoader"]


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
        shared: Images that join every batch (``Batch.shared``), and count neither as examples nor in its class counts.

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
        shared: SharedStream | None = None,
    ) -> None:
        check_range("batch_size", batch_size, low=1, whole=True)
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(data):
            raise FedKDError(
                f"indices must lie in 0..{len(data) - 1}, got {int(chosen.min())}..{int(chosen.max())}: "
                f"there are {len(data)} images."
            )
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.device = torch.device(device)
        self.shared = shared
        self.epoch = 0
        self._own = Gathered(
            data,
            chosen,
            augmentation=augmentation,
            teacher_logits=teacher_logits,
            teacher_features=teacher_features,
            device=self.device,
        )

    @property
    def num_examples(self) -> int:
        """Return the number of images a pass shows."""
        return len(self._own)

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
        sizes = [min(self.batch_size, self.num_examples - start) for start in range(0, len(order), self.batch_size)]
        own = self._own.batches(order, epoch, self.seed, sizes)
        yield from own if self.shared is None else self.shared.join(own, epoch, sizes)
