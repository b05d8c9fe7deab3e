"""The layers that students share: standardized images, and a choice of normalization."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedkd.core.errors import FedKDError, check_range, unknown_name

NORMS = ("batch", "group")

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the channels of ImageNet's images, which most pretrained weights expect."""


class Normalize(nn.Module):
    """Standardize images: (B, C, H, W) in [0, 1] -> (x - mean) / std.

    The two numbers are constants, not buffers. They are the same on every client, so clients never send them, and they
    do not depend on any client's images. The defaults map [0, 1] to [-2, 2]. The standard deviation of a channel of
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


def check_per_channel(name: str, values: Any, channels: int) -> None:
    """Raise unless numbers are one for each channel, or those of color images; None is allowed.

    Args:
        name: "mean" or "std", which is above 0.
        values: The numbers.
        channels: C.

    Raises:
        FedKDError: If they are not.
    """
    if values is None:
        return
    allowed = sorted({channels, 3})
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) not in allowed:
        raise FedKDError(f"{name} must be a list of {' or '.join(map(str, allowed))} numbers, got {values!r}.")
    for value in values:
        check_range(name, value, low=0, low_open=name == "std")


class NormalizeChannels(nn.Module):
    """Standardize each channel: (B, C, H, W) in [0, 1] -> (x - mean_c) / std_c. The numbers are never sent.

    Args:
        mean: Of each channel.
        std: Likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    @classmethod
    def of(cls, mean: Sequence[float], std: Sequence[float], channels: int) -> NormalizeChannels:
        """Take the numbers of color images; images of another number of channels get their mean."""
        return cls(
            *(list(each) if len(each) == channels else [sum(each) / len(each)] * channels for each in (mean, std))
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the standardized images, of the same shape."""
        return (images - self.mean) / self.std


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalization that also trains on a batch with one value per channel.

    A batch of one image with a 1x1 feature map has no variance, and torch raises an error. Here the running statistics
    normalize that batch, as in evaluation, and it does not change them. Every other batch is handled as in torch.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (B, C, H, W) over B, H and W."""
        return _by_running_statistics(self, input) if _has_no_variance(self, input) else super().forward(input)


class BatchNorm1d(nn.BatchNorm1d):
    """Batch normalization of vectors that also trains on a batch of one: see `BatchNorm2d`."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (B, C) over B, or (B, C, L) over B and L."""
        return _by_running_statistics(self, input) if _has_no_variance(self, input) else super().forward(input)


class BatchNormAct2d(BatchNorm2d):
    """`BatchNorm2d` with a dropout and an activation behind it, under the names that timm gives them.

    Args:
        like: timm's layer, which gives the settings, dropout and activation.
    """

    def __init__(self, like: Any) -> None:
        super().__init__(like.num_features, like.eps, like.momentum, like.affine, like.track_running_stats)
        self.drop, self.act = like.drop, like.act

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (B, C, H, W), and apply dropout and activation."""
        return self.act(self.drop(super().forward(input)))


def _has_no_variance(layer: nn.Module, input: Tensor) -> bool:
    """Whether a layer trains on one value per channel."""
    return layer.training and input.numel() == input.shape[1]


def _by_running_statistics(layer: Any, input: Tensor) -> Tensor:
    return F.batch_norm(input, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps)


class GroupNorm(nn.GroupNorm):
    """Group normalization that runs in float32 under autocast on every device, as autocast runs it on CUDA.

    On CPUs autocast keeps the precision of the input, and torch's bfloat16 gradient of group normalization is slow: a
    training step of `resnet8` takes 1.4 times as long.
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
        FedKDError: If it is not. The error names the nearest match.
    """
    if norm not in allowed:
        raise unknown_name("norm", norm, allowed)


def make_norm(norm: str, channels: int, eps: float = 1e-5) -> nn.Module:
    """Return a normalization layer for feature maps (B, channels, H, W).

    Group normalization (Wu and He, "Group Normalization", 2018, arXiv 1803.08494) uses one image at a time and has no
    buffers, so a client's skew does not affect the others through running statistics. It has `num_groups` groups.

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
    """Return the largest divisor of ``channels`` up to 32 that leaves at least 8 channels per group, else 1.

    In a 1x1 feature map a group has one value per channel. The output of a group with one channel would always be 0,
    and that of a group with two channels +1 and -1. Neither has a gradient.
    """
    return max((g for g in range(1, 33) if channels % g == 0 and channels // g >= 8), default=1)


def allow_single_images(module: nn.Module) -> None:
    """Replace every BatchNorm of torch's and timm's below ``module`` with one that trains on a single image, in place.

    The layers keep all settings, tensors and names of tensors, and do the same on all other batches: see `BatchNorm2d`.

    Args:
        module: Any network.
    """
    for name, child in module.named_children():
        settings = [getattr(child, key, None) for key in ("num_features", "eps", "momentum", "affine")]
        layer: nn.Module
        if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d):
            kind: Any = BatchNorm1d if isinstance(child, nn.BatchNorm1d) else BatchNorm2d
            layer = kind(*settings, child.track_running_stats)
        elif type(child).__name__ == "BatchNormAct2d" and not isinstance(child, BatchNormAct2d):
            layer = BatchNormAct2d(child)
        else:
            allow_single_images(child)
            continue
        for key, parameter in child._parameters.items():
            layer.register_parameter(key, parameter)
        for key, buffer in child._buffers.items():
            layer.register_buffer(key, buffer)
        setattr(module, name, layer.train(child.training))


def replace_batch_norms(module: nn.Module, norm: str) -> None:
    """Replace every ``nn.BatchNorm2d`` and ``nn.BatchNorm1d`` below ``module``, in place.

    A layer of `make_norm` takes its place; with "batch", a `BatchNorm1d` takes that of an ``nn.BatchNorm1d``. With
    "group" no layer keeps running statistics.

    The layers keep eps, scales, offsets, and a BatchNorm its running statistics. An activation within the layer, as
    timm's have it, comes behind. Momentum becomes torch's 0.1. MobileNetV3's 0.01 suits a million ImageNet steps; after
    the few steps of a round the running statistics would still be near their initial values.

    Args:
        module: Any network, such as one of torchvision's.
        norm: ``"batch"`` or ``"group"``.

    Raises:
        FedKDError: If ``norm`` is neither.
    """
    check_norm(norm)
    for name, child in module.named_children():
        if not isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            replace_batch_norms(child, norm)
            continue
        of_vectors = norm == "batch" and isinstance(child, nn.BatchNorm1d)
        layer = (BatchNorm1d if of_vectors else partial(make_norm, norm))(child.num_features, eps=child.eps)
        layer.load_state_dict(child.state_dict(), strict=False)
        behind = [part for part in (getattr(child, "drop", None), getattr(child, "act", None)) if part is not None]
        setattr(module, name, nn.Sequential(layer, *behind) if behind else layer)
