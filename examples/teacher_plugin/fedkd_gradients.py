"""A teacher from a package: after `pip install examples/teacher_plugin`, `fedkd teachers` lists "gradients"."""

import torch
from torch import Tensor, nn

from fedkd.teachers import Teacher, register


@register("gradients", family="gradients", license="Apache-2.0", image_size=8, parameters=0)
class Gradients(Teacher):
    """Gray levels of 8 x 8 pixels, and their changes to the right and downwards."""

    def features(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> features (B, 176)."""
        gray = nn.functional.adaptive_avg_pool2d(images.mean(1), 8)  # (B, 8, 8)
        parts = (gray, gray.diff(dim=2).abs(), gray.diff(dim=1).abs())
        return torch.cat([part.flatten(1) for part in parts], dim=1)
