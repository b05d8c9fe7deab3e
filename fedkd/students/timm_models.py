"""Any network of timm as a student, by ``timm/NAME``, with or without pretrained weights.

timm (https://github.com/huggingface/pytorch-image-models) is an extra: ``pip install fedkd[timm]``.
"""

from __future__ import annotations

from collections import OrderedDict
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedkd.core.errors import FedKDError, MissingResourceError
from fedkd.students.layers import check_norm, make_norm

PREFIX = "timm/"


class NormalizeChannels(nn.Module):
    """Standardize each channel: (B, C, H, W) in [0, 1] -> (x - mean_c) / std_c. The numbers are never sent.

    Args:
        mean: Of each channel.
        std: Likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the standardized images, of the same shape."""
        return (images - self.mean) / self.std


def timm_student(
    name: str,
    num_classes: int,
    in_channels: int = 3,
    image_size: int = 32,
    *,
    pretrained: bool | str = False,
    small_stem: bool = False,
    norm: str = "batch",
    image_width: int | None = None,
    **options: Any,
) -> nn.Module:
    """Return a network of timm, from images (B, C, H, W) in [0, 1] to logits (B, K).

    Images are standardized as the network's weights expect it. Their size stays: networks with a fixed size, such as
    ViT, are made for the size of the data's images.

    Args:
        name: timm's name, such as ``"resnet18"`` or ``"mobilenetv3_small_100"``.
        num_classes: K. The last layer is always new.
        in_channels: C. The first layer of pretrained weights is adapted to it, as timm does.
        image_size: H in pixels, and W unless ``image_width`` is given.
        pretrained: Whether to start from timm's weights, which are downloaded once; or the path of a file with them.
        small_stem: Whether the first convolution gets stride 1, and a max-pooling behind it is left out: for images
            below 64 pixels.
        norm: "batch" leaves timm's normalization as it is. "group" puts GroupNorm in the place of BatchNorm, with the
            pretrained scales and offsets, so that clients keep no statistics.
        image_width: W in pixels, of oblong images.
        options: Further arguments of ``timm.create_model``, such as ``drop_path_rate``.

    Raises:
        MissingResourceError: If timm is not installed, or the weights cannot be had.
        FedKDError: If timm knows no such network, or refuses an option.
    """
    check_norm(norm)
    check_name(name)
    import timm

    file = str(pretrained) if isinstance(pretrained, str | Path) else None
    if file is not None and not Path(file).is_file():
        raise MissingResourceError(f"pretrained: there is no file {file!r}.")
    given: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels, **options}
    if file is not None:
        given["pretrained_cfg_overlay"] = {"file": file, "custom_load": False}
    config: Any = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size and "img_size" not in given:
        given["img_size"] = image_size if image_width is None else (image_size, image_width)
    try:
        network: Any = timm.create_model(name, pretrained=bool(pretrained), **given)
    except (TypeError, ValueError, AssertionError) as error:
        raise FedKDError(f"timm refuses to make {name!r}: {error}") from error
    except (OSError, RuntimeError) as error:
        raise MissingResourceError(f"The weights of {PREFIX + name!r} cannot be had: {error}") from error
    found: Any = network.pretrained_cfg
    if small_stem:
        _enlarge(network, None if found.get("fixed_input_size") else found.get("first_conv"), name)
    if norm == "group":
        _group(network)
    mean, std = (_per_channel(found[key], in_channels) for key in ("mean", "std"))
    return nn.Sequential(OrderedDict(normalize=NormalizeChannels(mean, std), network=network))


def check_name(name: str) -> None:
    """Raise unless timm has a network of a name.

    Raises:
        MissingResourceError: If timm is not installed.
        FedKDError: If timm knows no such network.
    """
    try:
        import timm
    except ImportError as error:
        raise MissingResourceError("Students of timm need timm: pip install fedkd[timm].") from error
    known = timm.list_models()
    if name.partition(".")[0] not in known:
        near = ", ".join(PREFIX + each for each in get_close_matches(name, known, n=5))
        raise FedKDError(
            f"Unknown student {PREFIX + name!r}. {f'Near are {near}. ' if near else ''}timm.list_models() lists all "
            f"{len(known)}."
        )


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return numbers for so many channels: those of color images, or their mean."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def _enlarge(network: Any, first: Any, name: str) -> None:
    """Give the first convolution stride 1, and leave out a max-pooling behind it."""
    layer = network.get_submodule(first) if isinstance(first, str) else None
    if not isinstance(layer, nn.Conv2d):
        raise FedKDError(f"small_stem: {PREFIX + name!r} has no first convolution to change; leave it out.")
    layer.stride = (1, 1)
    if isinstance(getattr(network, "maxpool", None), nn.Module):
        network.maxpool = nn.Identity()


def _group(module: nn.Module) -> None:
    """Put GroupNorm in the place of every BatchNorm below a module; timm's own ones carry an activation with them."""
    for name, child in module.named_children():
        if not isinstance(child, nn.BatchNorm2d):
            _group(child)
            continue
        layer: nn.Module = make_norm("group", child.num_features, eps=child.eps)
        if child.affine:
            layer.load_state_dict({"weight": child.weight, "bias": child.bias}, strict=False)
        behind = [part for part in (getattr(child, "drop", None), getattr(child, "act", None)) if part is not None]
        setattr(module, name, nn.Sequential(layer, *behind) if behind else layer)
