"""`CommonImages`: images without labels that belong to no client, as students look at them and learn from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedkd.data import Augmentation, BatchLoader, Views
from fedkd.data.shared import Unlabelled


@dataclass(frozen=True, eq=False)
class CommonImages:
    """P images that anybody may look at, and how they are looked at.

    Args:
        images: Without labels.
        batch_size: Of training.
        eval_batch_size: Of looking.
        augmentation: What is done to images that are trained on.
        views: The looks that a judgement is made on: fixed ones; None is the image itself.
        teacher_logits: What the foundation model says of them, (P, K), or (P, V, K) for ``views``; None without one.
    """

    images: Unlabelled
    batch_size: int
    eval_batch_size: int
    augmentation: Augmentation | Views | None = None
    views: Views | None = None
    teacher_logits: Tensor | None = None

    @property
    def positions(self) -> Tensor:
        """Where the images lie in their ImageSet, int64 (P,): what is drawn for an image depends on it."""
        return torch.from_numpy(self.images.indices)

    def training_loader(self, logits: Tensor, seed: int, device: torch.device) -> BatchLoader:
        """Return shuffled, augmented batches whose ``teacher_logits`` are rows of ``logits``, (P, K) or (P, V, K)."""
        table = logits.new_zeros(len(self.images.data), *logits.shape[1:])
        table[self.positions] = logits
        return BatchLoader(
            self.images.data,
            self.positions,
            batch_size=self.batch_size,
            shuffle=True,
            seed=seed,
            augmentation=self.augmentation,
            teacher_logits=table,
            device=device,
        )

    def loader(self, device: torch.device) -> BatchLoader:
        """Return the images themselves, in order."""
        return BatchLoader(self.images.data, self.positions, batch_size=self.eval_batch_size, device=device)

    def view_loaders(self, device: torch.device) -> list[BatchLoader]:
        """Return all images in order for each of ``views``; without views, once."""
        if self.views is None:
            return [self.loader(device)]
        positions, data, loaders = self.positions, self.images.data, []
        for view in range(self.views.count):
            draw = self.views.draw(positions, torch.full_like(positions, view))
            seen = Unlabelled.of(self.views.apply(data.images[positions], draw), data.classes)
            loaders.append(BatchLoader(seen.data, seen.indices, batch_size=self.eval_batch_size, device=device))
        return loaders
