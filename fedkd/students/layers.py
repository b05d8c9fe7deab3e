"""The layers that students share: standardized images, and a choice of normalization."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedkd.core.errors import unknown_name

NORMS = ("batch", "group")


class Normalize(nn.Module):
    """Standardize images: (B, C, H, W) in [0, 1] -> (x - mean) / std.

    The two numbers are constants, not buffers: they are the same on every client, so they never travel, and nothing of
    any client's images is in them. Their defaults map [0, 1] onto [-2, 2]; the standard deviation of a channel of
    natural images is near 0.25.

    Args:
        mean: Subtracted from every channel.
        std: Divides every channel.
    """

    def __init__(self, mean: float = 0.5, std: float = 0.25) -> None:
        super().__init__()
        self.mean = mean
        self.std = std

    def forward(self, images: Tensor) -> Tensor:
        """Return the standardized images, of the same shape."""
        return (images - self.mean) / self.std

    def extra_repr(self) -> str:
        """Show the constants when the module is printed."""
        return f"mean={self.mean}, std={self.std}"


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalization that also trains where a batch holds one value a channel.

    One image whose feature map has shrunk to 1x1 has no variance, and torch refuses it. Here that batch is normalized
    by the running statistics, as in evaluation, and leaves them as they are. Every other batch is treated as by torch.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (B, C, H, W) over B, H and W."""
        values_per_channel = input.numel() // input.shape[1]
        if self.training and values_per_channel == 1:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


class GroupNorm(nn.GroupNorm):
    """Group normalization in float32 where autocast would have it in bfloat16, as autocast does on CUDA.

    On CPUs autocast leaves it to its input's precision, and torch's bfloat16 gradient of it is slow: a training step of
    `resnet8` takes 1.4 times as long.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (B, C, H, W) over each group's channels, H and W."""
        if torch.is_autocast_enabled(input.device.type):
            with torch.autocast(input.device.type, enabled=False):
                return super().forward(input.float())
        return super().forward(input)


def check_norm(norm: str, allowed: Sequence[str] = NORMS) -> None:
    """Raise unless ``norm`` is allowed.

    Raises:
        FedKDError: If it is not; the message has the nearest match.
    """
    if norm not in allowed:
        raise unknown_name("norm", norm, allowed)


def make_norm(norm: str, channels: int, eps: float = 1e-5) -> nn.Module:
    """Return a normalization layer for feature maps (B, channels, H, W).

    Group normalization (Wu and He, "Group Normalization", 2018, arXiv 1803.08494) sees one image at a time and holds no
    buffers, so a client's skew does not reach the others through running statistics. It gets `num_groups` groups.

    Args:
        norm: ``"batch"`` or ``"group"``.
        channels: The number of channels.
        eps: Added to the variance.

    Raises:
        FedKDError: If ``norm`` is neither.
    """
    check_norm(norm)
    if norm == "batch":
        return BatchNorm2d(channels, eps=eps)
    return GroupNorm(num_groups(channels), channels, eps=eps)


def num_groups(channels: int) -> int:
    """Return the largest divisor of ``channels`` up to 32 that leaves at least 8 channels a group, else 1.

    Where a feature map is 1x1 a group holds one value a channel. A group of one would always come out as 0 and one of
    two as +1 and -1, neither with a gradient to learn from.
    """
    return max((g for g in range(1, 33) if channels % g == 0 and channels // g >= 8), default=1)


def replace_batch_norms(module: nn.Module, norm: str) -> None:
    """Put fresh layers of `make_norm` in place of every ``nn.BatchNorm2d`` below ``module``, which is changed.

    Only the old layers' eps is kept. Momentum goes to torch's 0.1: MobileNetV3's 0.01 suits a million ImageNet steps,
    but after the few steps of a round the running statistics would still be near their start.

    Args:
        module: Any network, such as one of torchvision's.
        norm: ``"batch"`` or ``"group"``.

    Raises:
        FedKDError: If ``norm`` is neither.
    """
    check_norm(norm)
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, make_norm(norm, child.num_features, eps=child.eps))
        else:
            replace_batch_norms(child, norm)
