"""`Pool`: unlabeled images that the server and all clients may see."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedkd.data.images.augmentation import Augmentation
from fedkd.data.images.views import Views
from fedkd.data.loader import BatchLoader
from fedkd.data.rows import Rows


@dataclass(frozen=True, eq=False)
class Pool:
    """P unlabeled images of no client, and how batches of them are made.

    Args:
        rows: The images. Their targets are all 0 and mean nothing. Teacher outputs are (P, K), or (P, V, K) of `views`.
        batch_size: Images in a training batch.
        eval_batch_size: Images in a batch that is only predicted; None suits the device.
        augmentation: What is done to images that are trained on.
        views: The fixed views that predictions are made for; None is the image itself.
    """

    rows: Rows
    batch_size: int | None
    eval_batch_size: int | None
    augmentation: Augmentation | Views | None = None
    views: Views | None = None

    def __len__(self) -> int:
        """Return P."""
        return len(self.rows)

    @property
    def teacher_logits(self) -> Tensor | None:
        """Return the foundation model's logits, (P, K) or (P, V, K); None without a teacher."""
        return self.rows.teacher_logits

    def training_loader(self, logits: Tensor, seed: int, device: torch.device) -> BatchLoader:
        """Return shuffled, augmented batches whose ``teacher_logits`` are rows of ``logits``, (P, K) or (P, V, K)."""
        return BatchLoader(
            self.rows.with_outputs(logits),
            batch_size=self.batch_size,
            shuffle=True,
            seed=seed,
            augmentation=self.augmentation,
            device=device,
        )

    def loader(self, device: torch.device, batch_size: int | None = None) -> BatchLoader:
        """Return the images themselves, in order, in batches of ``eval_batch_size``, or ``batch_size`` without one."""
        size = self.eval_batch_size or batch_size
        return BatchLoader(self._images, batch_size=size, device=device)

    def view_loaders(self, device: torch.device) -> list[BatchLoader]:
        """Return all images in order, once for each view; without views, once."""
        if self.views is None:
            return [self.loader(device)]
        views = [self.views.only(view) for view in range(self.views.count)]
        return [
            BatchLoader(self._images, batch_size=self.eval_batch_size, augmentation=each, device=device)
            for each in views
        ]

    @cached_property
    def _images(self) -> Rows:
        """The images without a teacher's outputs."""
        return self.rows.with_outputs(None)
