"""The stream of shared images, from which every batch of a client takes some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fedkd.core.seeding import derive_seed
from fedkd.data.batch import Batch, Gathered
from fedkd.data.images.augmentation import Augmentation
from fedkd.data.images.views import Views
from fedkd.data.rows import Rows
from fedkd.data.shared import SharedImages


class SharedStream:
    """Shared images in an endless order: pass after pass, each through all of them in a new random order.

    An epoch starts where the epochs before it ended, which follows from their numbers of images. So an epoch can be
    made again without the ones before. The images are on the device as long as their `fedkd.data.rows.Rows` live.

    Args:
        images: The images.
        settings: How many join a batch, and the weight of their loss.
        seed: Decides order and augmentation.
        augmentation: As for `BatchLoader`; what it numbers as epochs are the passes through all images.
        device: Where batches are made and stay.
    """

    def __init__(
        self,
        images: Rows,
        settings: SharedImages,
        *,
        seed: int = 0,
        augmentation: Augmentation | Views | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.images = images
        self._gathered = Gathered(images, augmentation=augmentation, device=torch.device(device))
        self.settings = settings
        self.seed = seed
        self.device = torch.device(device)

    def join(self, own: Iterator[Batch], epoch: int, sizes: Sequence[int]) -> Iterator[Batch]:
        """Yield the batches ``own`` of an epoch with shared images.

        Args:
            own: The client's own.
            epoch: The number of its pass.
            sizes: Images in each of its batches.
        """
        counts = [self.settings.joining(size) for size in sizes]
        total = sum(counts)
        if not total:
            yield from own
            return
        order, passes = self.stretch(epoch * total, total)
        shared = self._gathered.batches(order, epoch, self.seed, counts, passes)
        for batch, joined in zip(own, shared, strict=True):
            yield batch._replace(shared=joined, shared_weight=self.settings.weight)

    def stretch(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Return the images at ``start`` and after it in the endless order.

        Args:
            start: A position.
            count: How many images.

        Returns:
            Positions among the P shared images and, for each, the number of the pass that it is in: int64 (count,).
        """
        length = len(self.images)
        first, last = start // length, (start + count - 1) // length
        orders = [
            torch.randperm(length, generator=torch.Generator().manual_seed(derive_seed(self.seed, number)))
            for number in range(first, last + 1)
        ]
        skipped = start - first * length
        order = torch.cat(orders)[skipped : skipped + count]
        return order, torch.arange(start, start + count) // length
