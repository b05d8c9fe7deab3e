"""The ResNets for CIFAR: 6n + 2 layers, three stages of n blocks, 16, 32 and 64 channels wide.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2015, arXiv 1512.03385, section 4.2.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from fedkd.core.errors import FedKDError, check_range
from fedkd.students.layers import Normalize, check_norm, make_norm
from fedkd.students.registry import students


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (the paper's option A).

    If the block halves the image and adds channels, the shortcut takes every second pixel and pads the new channels
    with zeros.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output, at least ``in_channels``.
        stride: 1, or 2 to halve the image.
        norm: ``"batch"`` or ``"group"``.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, norm: str) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = channels - in_channels
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm1 = make_norm(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.norm2 = make_norm(norm, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, channels, H / stride, W / stride)."""
        shortcut = x
        if self.stride > 1:
            shortcut = shortcut[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.new_channels))
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + shortcut)


class CifarResNet(nn.Module):
    """A ResNet for small images; ResNet-20, -32 and -56 have 0.27M, 0.46M and 0.85M parameters, as in the paper.

    Args:
        num_classes: K, the number of classes.
        in_channels: C, the channels of an image.
        norm: ``"batch"``, as in the paper, or ``"group"``.
        depth: Layers with weights: 6n + 2 for n blocks per stage.
        width: Multiplies the channels of the three stages, 16, 32 and 64.

    Raises:
        FedKDError: If the norm, depth or width is not allowed.
    """

    def __init__(
        self, num_classes: int, in_channels: int = 3, norm: str = "batch", depth: int = 20, width: float = 1.0
    ) -> None:
        super().__init__()
        check_norm(norm)
        check_range("width", width, low=1 / 16)
        if depth < 8 or (depth - 2) % 6:
            raise FedKDError(f"depth must be 6n + 2 (8, 14, 20, 26, 32, ...), got {depth!r}.")
        blocks, channels = (depth - 2) // 6, round(16 * width)
        self.normalize = Normalize()
        self.conv = nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False)
        self.norm = make_norm(norm, channels)
        self.stage1 = _stage(channels, channels, blocks, stride=1, norm=norm)
        self.stage2 = _stage(channels, 2 * channels, blocks, stride=2, norm=norm)
        self.stage3 = _stage(2 * channels, 4 * channels, blocks, stride=2, norm=norm)
        self.head = nn.Linear(4 * channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [0, 1] to logits (B, K)."""
        x = F.relu(self.norm(self.conv(self.normalize(images))))  # (B, C, H, W) -> (B, 16, H, W)
        x = self.stage3(self.stage2(self.stage1(x)))  # -> (B, 64, H/4, W/4)
        return self.head(x.mean((2, 3)))  # -> (B, 64) -> (B, K)


def _stage(in_channels: int, channels: int, blocks: int, stride: int, norm: str) -> nn.Sequential:
    first = Block(in_channels, channels, stride, norm)
    return nn.Sequential(first, *(Block(channels, channels, 1, norm) for _ in range(blocks - 1)))


for _depth in (8, 20, 32, 56):
    students.add(f"resnet{_depth}", partial(CifarResNet, depth=_depth))
