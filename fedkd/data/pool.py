"""`Pool`: unlabeled images that the server and all clients may see."""

from __future__ import annotations

from dataclasses import dataclass

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
        rows = self._with(self.rows.images, logits)
        return BatchLoader(
            rows, batch_size=self.batch_size, shuffle=True, seed=seed, augmentation=self.augmentation, device=device
        )

    def loader(self, device: torch.device, batch_size: int | None = None) -> BatchLoader:
        """Return the images themselves, in order, in batches of ``eval_batch_size``, or ``batch_size`` without one."""
        size = self.eval_batch_size or batch_size
        return BatchLoader(self._with(self.rows.images), batch_size=size, device=device)

    def view_loaders(self, device: torch.device) -> list[BatchLoader]:
        """Return all images in order, once for each view; without views, once."""
        if self.views is None:
            return [self.loader(device)]
        loaders, rows = [], self.rows
        for view in range(self.views.count):
            draw = self.views.draw(rows.index, torch.full_like(rows.index, view))
            seen = self._with(self.views.apply(rows.images, draw))
            loaders.append(BatchLoader(seen, batch_size=self.eval_batch_size, device=device))
        return loaders

    def _with(self, images: Tensor, logits: Tensor | None = None) -> Rows:
        """Return these rows with other images and other teacher outputs."""
        return Rows(images, self.rows.targets, self.rows.index, self.rows.classes, teacher_logits=logits)
