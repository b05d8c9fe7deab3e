"""A fixed number of looks at each image, so that what a teacher says of them can be kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedkd.core.errors import check_range
from fedkd.data.images.augmentation import Augmentation, Draw, below, counter_state


@dataclass(frozen=True)
class Views:
    """V augmented versions of every image, of which each epoch shows one.

    Version v of image i is drawn from (``seed``, i, v) alone, so it is the same in every run, on every client and in
    whatever order images are looked at: like the public split, the versions belong to the data set. Which of them an
    epoch shows is a hash of (the client's seed, epoch, image).

    Args:
        count: V.
        augmentation: What a version is drawn from.
        seed: Draws the versions; other seeds are other images to a teacher, and cached apart.
    """

    count: int
    augmentation: Augmentation
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("views", self.count, low=1, whole=True)

    def look(self, index: Tensor, epoch: int | Tensor, seed: int) -> tuple[Tensor, Draw]:
        """Choose a version of each image and say what was drawn for it.

        Args:
            index: int64 (B,), the image's position in its ImageSet.
            epoch: The number of the pass, of all images or of each, int64 (B,).
            seed: The run's and client's seed; it chooses among the versions and changes none of them.

        Returns:
            The versions, int64 (B,) in [0, V), and what was drawn.
        """
        view = below(counter_state(index, torch.zeros_like(index) + epoch, seed), self.count)
        return view, self.draw(index, view)

    def draw(self, index: Tensor, view: Tensor) -> Draw:
        """Return what was drawn for version ``view``, int64 (B,), of image ``index``, int64 (B,)."""
        return self.augmentation.draw(index, view, self.seed)

    def apply(self, images: Tensor, draw: Draw) -> Tensor:
        """Crop and flip as drawn: (B, C, H, W) -> (B, C, H, W)."""
        return self.augmentation.apply(images, draw)
