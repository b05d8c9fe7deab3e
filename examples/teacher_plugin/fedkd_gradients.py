"""A teacher from a package: after `pip install examples/teacher_plugin`, `fedkd teachers` lists "gradients"."""

import torch
from torch import Tensor, nn

from fedkd.teachers import Teacher, register


@register("gradients", family="gradients", licence="Apache-2.0", image_size=8, parameters=0)
class Gradients(Teacher):
    """Grey levels of 8 x 8 pixels, and how they change to the right and downwards."""

    def features(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> features (B, 176)."""
        grey = nn.functional.adaptive_avg_pool2d(images.mean(1), 8)  # (B, 8, 8)
        parts = (grey, grey.diff(dim=2).abs(), grey.diff(dim=1).abs())
        return torch.cat([part.flatten(1) for part in parts], dim=1)
