"""A fixed number of augmented views per image, so that teacher outputs for them can be cached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import Transform

from fedkd.core.errors import check_range
from fedkd.data.images.augmentation import Augmentation, Draw, below, counter_state
from fedkd.data.images.mix import Mix


@dataclass(frozen=True)
class Views:
    """V augmented views of every image. Each epoch trains on one of them.

    View v of image i depends on (``seed``, i, v) alone. It is the same in every run, on every client and in any order:
    the views belong to the data set, as the public split does. A hash of (the client's seed, epoch, image) chooses the
    view of each epoch.

    Args:
        count: V, the number of views.
        augmentation: Draws the views: crop, flip and transforms. Its ``mix`` is no part of them.
        seed: The seed of the views. Teacher outputs are cached separately for each seed.
    """

    count: int
    augmentation: Augmentation
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("views", self.count, low=1, whole=True)

    def sample(self, index: Tensor, epoch: int | Tensor, seed: int) -> tuple[Tensor, Draw]:
        """Choose a view of each image.

        Args:
            index: int64 (B,), the image's position in its ImageSet.
            epoch: The epoch, one for all images or int64 (B,).
            seed: The seed of the run and client. It chooses among the views and does not change them.

        Returns:
            The views, int64 (B,) in [0, V), and their crops and flips.
        """
        view = below(counter_state(index, torch.zeros_like(index) + epoch, seed), self.count)
        return view, self.draw(index, view)

    @property
    def transforms(self) -> Sequence[Transform]:
        """Return the transforms that are part of the views."""
        return self.augmentation.transforms

    @property
    def mix(self) -> Mix | None:
        """Return how the views that train together are mixed."""
        return self.augmentation.mix

    def only(self, view: int) -> Views:
        """Return these views of which every epoch shows one."""
        return OneView(self.count, self.augmentation, self.seed, view)

    def draw(self, index: Tensor, view: Tensor) -> Draw:
        """Return the crops and flips of the views ``view``, int64 (B,), of the images ``index``, int64 (B,)."""
        return self.augmentation.draw(index, view, self.seed)

    def apply(self, images: Tensor, draw: Draw) -> Tensor:
        """Crop and flip: (B, C, H, W) -> (B, C, H, W)."""
        return self.augmentation.apply(images, draw)

    def transform_seeds(self, index: Tensor, view: Tensor, seed: int = 0) -> Tensor:
        """Return the seeds of the transforms, int64 (B,); views have a seed of their own, so ``seed`` is not used."""
        return self.augmentation.transform_seeds(index, view, self.seed)

    def transform(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Apply the transforms: see `Augmentation.transform`."""
        return self.augmentation.transform(images, seeds)


@dataclass(frozen=True)
class OneView(Views):
    """`Views` of which every epoch shows the same one.

    Args:
        view: Its number in [0, V).
    """

    view: int = 0

    @property
    def mix(self) -> None:
        """Mix nothing: one view after the other is predicted."""
        return

    def sample(self, index: Tensor, epoch: int | Tensor, seed: int) -> tuple[Tensor, Draw]:
        """Choose the view, for all images and epochs."""
        view = torch.full_like(index, self.view)
        return view, self.draw(index, view)
