"""torchvision's lightweight networks, without pretrained weights, with a stem for small images.

ResNet-18 (He et al., 2015, arXiv 1512.03385), MobileNetV2 (Sandler et al., 2018, arXiv 1801.04381), MobileNetV3 (Howard
et al., 2019, arXiv 1905.02244), ShuffleNetV2 (Ma et al., 2018, arXiv 1807.11164).

These networks are designed for 224 pixels and reduce the image size 32-fold. Below 64 pixels the first convolution
becomes 3x3 with stride 1, and the max-pooling after it is removed if there is one. ResNet-18 and ShuffleNetV2 then
reduce the size 8-fold and the MobileNets 16-fold. From 64 pixels on the networks are those of torchvision.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from fedkd.core.errors import check_range
from fedkd.students.layers import Normalize, check_norm, replace_batch_norms
from fedkd.students.registry import students

SMALL = 64
"""The small stem is for images below this number of pixels."""


@students.register("resnet18")
def resnet18(num_classes: int, in_channels: int = 3, image_size: int = 32, norm: str = "batch") -> nn.Module:
    """Return torchvision's ResNet-18, from images (B, C, H, W) in [0, 1] to logits (B, K).

    Args:
        num_classes: K, the number of classes.
        in_channels: C, the channels of an image.
        image_size: H and W in pixels; below 64 it gets the small stem.
        norm: ``"batch"`` or ``"group"``.

    Raises:
        FedKDError: If ``norm`` is neither.
    """
    check_norm(norm)
    from torchvision.models import resnet18 as build

    network = build(weights=None, num_classes=num_classes)
    network.conv1 = _stem(network.conv1, in_channels, image_size)
    if image_size < SMALL:
        network.maxpool = nn.Identity()
    return _student(network, norm)


def _shufflenet(name: str, num_classes: int, in_channels: int, image_size: int, norm: str) -> nn.Module:
    check_norm(norm)
    from torchvision import models

    network = models.get_model(name, weights=None, num_classes=num_classes)
    network.conv1[0] = _stem(network.conv1[0], in_channels, image_size)
    if image_size < SMALL:
        network.maxpool = nn.Identity()
    return _student(network, norm)


@students.register("shufflenet_v2_x0_5")
def shufflenet_v2_x0_5(num_classes: int, in_channels: int = 3, image_size: int = 32, norm: str = "batch") -> nn.Module:
    """Return torchvision's ShuffleNetV2 with half the width; arguments and result as for `resnet18`."""
    return _shufflenet("shufflenet_v2_x0_5", num_classes, in_channels, image_size, norm)


@students.register("shufflenet_v2_x1_0")
def shufflenet_v2_x1_0(num_classes: int, in_channels: int = 3, image_size: int = 32, norm: str = "batch") -> nn.Module:
    """Return torchvision's ShuffleNetV2; arguments and result as for `resnet18`."""
    return _shufflenet("shufflenet_v2_x1_0", num_classes, in_channels, image_size, norm)


def _mobilenet(name: str, num_classes: int, in_channels: int, image_size: int, norm: str, dropout: float) -> nn.Module:
    check_norm(norm)
    check_range("dropout", dropout, low=0, high=1, high_open=True)
    from torchvision import models

    network = models.get_model(name, weights=None, num_classes=num_classes, dropout=dropout)
    network.features[0][0] = _stem(network.features[0][0], in_channels, image_size)
    return _student(network, norm)


@students.register("mobilenet_v2")
def mobilenet_v2(
    num_classes: int, in_channels: int = 3, image_size: int = 32, norm: str = "batch", dropout: float = 0.0
) -> nn.Module:
    """Return torchvision's MobileNetV2; arguments and result as for `resnet18`.

    Args:
        num_classes: K, the number of classes.
        in_channels: C, the channels of an image.
        image_size: H and W in pixels; below 64 it gets the small stem.
        norm: ``"batch"`` or ``"group"``.
        dropout: Probability of dropping a feature before the last layer; torchvision's is 0.2, for ImageNet.

    Raises:
        FedKDError: If the norm or dropout is not allowed.
    """
    return _mobilenet("mobilenet_v2", num_classes, in_channels, image_size, norm, dropout)


@students.register("mobilenet_v3_small")
def mobilenet_v3_small(
    num_classes: int, in_channels: int = 3, image_size: int = 32, norm: str = "batch", dropout: float = 0.0
) -> nn.Module:
    """Return torchvision's MobileNetV3-Small; arguments and result as for `mobilenet_v2`."""
    return _mobilenet("mobilenet_v3_small", num_classes, in_channels, image_size, norm, dropout)


@students.register("mobilenet_v3_large")
def mobilenet_v3_large(
    num_classes: int, in_channels: int = 3, image_size: int = 32, norm: str = "batch", dropout: float = 0.0
) -> nn.Module:
    """Return torchvision's MobileNetV3-Large; arguments and result as for `mobilenet_v2`."""
    return _mobilenet("mobilenet_v3_large", num_classes, in_channels, image_size, norm, dropout)


def _stem(conv: nn.Conv2d, in_channels: int, image_size: int) -> nn.Conv2d:
    """Return a new first convolution for ``in_channels``: 3x3 with stride 1 for small images, else like ``conv``."""
    kernel_size, stride = (3, 1) if image_size < SMALL else (conv.kernel_size[0], conv.stride[0])
    stem = nn.Conv2d(in_channels, conv.out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    return stem


def _student(network: nn.Module, norm: str) -> nn.Module:
    replace_batch_norms(network, norm)
    return nn.Sequential(OrderedDict(normalize=Normalize(), network=network))
