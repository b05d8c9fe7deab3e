"""Batches of a shard, made on the training device."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fedkd.core.errors import check_range
from fedkd.core.seeding import derive_seed
from fedkd.data.batch import Batch, Gathered
from fedkd.data.images.augmentation import Augmentation
from fedkd.data.images.views import Views
from fedkd.data.rows import Rows
from fedkd.data.shared_stream import SharedStream

__all__ = ["Batch", "BatchLoader"]


EVAL_BATCH_SIZES = {"cpu": 64, "cuda": 512}
"""Images in a batch that is only predicted. On a CPU, larger batches leave the caches and take twice as long."""


class BatchLoader:
    """Iterate over rows in batches, all on the device.

    The images go to the device once, as uint8. Each pass is the next epoch: a new order, if shuffled, and new views for
    the augmentation. Both follow from the seed and the epoch, so they are the same on every device. The last batch may
    be smaller; without rows there are no batches.

    Args:
        rows: The images and what is known of them. Features in a mapped file are read a batch at a time on a CPU; on
            another device they all go there with the images.
        batch_size: Images in a batch, >= 1; None is what predicts fastest on the device, `EVAL_BATCH_SIZES`.
        shuffle: Whether every epoch has its own order; otherwise the order of ``rows``.
        seed: Decides order and augmentation.
        augmentation: What is done to images: something new every epoch, or one of several fixed `Views`; None leaves
            them as they are.
        device: Where batches are made and stay.
        shared: Images that join every batch (``Batch.shared``). They count neither as examples nor in the class counts.

    Attributes:
        num_examples: The number of images that a pass shows.
        epoch: The number of the next pass, from 0. Set it to go on from elsewhere.

    Raises:
        FedKDError: If the batch size is out of range, or the teacher's outputs are for another number of views.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        batch_size: int | None,
        shuffle: bool = False,
        seed: int = 0,
        augmentation: Augmentation | Views | None = None,
        device: torch.device | str = "cpu",
        shared: SharedStream | None = None,
    ) -> None:
        self.device = torch.device(device)
        if batch_size is None:
            batch_size = EVAL_BATCH_SIZES.get(self.device.type, EVAL_BATCH_SIZES["cuda"])
        check_range("batch_size", batch_size, low=1, whole=True)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.shared = shared
        self.epoch = 0
        self.num_examples = len(rows)
        self._own: Gathered | None = Gathered(rows, augmentation=augmentation, device=self.device)

    def release(self) -> None:
        """Let go of the images. A Trainer keeps its loader in a cycle of references until the next garbage collection.

        With large clients, the images of many would be in memory at once.
        """
        self._own = self.shared = None

    def __len__(self) -> int:
        """Return the number of batches a pass has."""
        return -(-self.num_examples // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield one epoch's batches."""
        # A generator runs from the first batch on, so an iterator that is made and never used costs no epoch.
        assert self._own is not None, "the loader was released"
        epoch = self.epoch
        self.epoch += 1
        if self.shuffle:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
            order = torch.randperm(self.num_examples, generator=generator)
        else:
            order = torch.arange(self.num_examples)
        sizes = [min(self.batch_size, self.num_examples - start) for start in range(0, len(order), self.batch_size)]
        own = self._own.batches(order, epoch, self.seed, sizes)
        yield from own if self.shared is None else self.shared.join(own, epoch, sizes)
