"""Any classifier of torchvision as a student, by ``torchvision/NAME``, with or without pretrained weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedkd.core.errors import FedKDError, MissingResourceError, in_one_line
from fedkd.students.family import Family, unknown_member
from fedkd.students.layers import NormalizeChannels, check_norm, replace_batch_norms
from fedkd.students.pretrained import read_weights, take_weights
from fedkd.students.stem import enlarge, take_channels

PREFIX = "torchvision/"

_OWN_NORMALIZATION = {"googlenet": (0.5, 0.5), "inception_v3": (0.5, 0.5)}
"""Networks whose weights want another mean and standard deviation than their transforms give: the networks convert from
one to the other in their forward pass, of colored images alone."""


def torchvision_student(
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
    """Return a network of torchvision, from images (B, C, H, W) in [0, 1] to logits (B, K).

    Images are standardized as torchvision's weights expect it. Their size stays: a ViT is made for the size of the
    data's images.

    Args:
        name: torchvision's name, such as ``"efficientnet_b0"``; ``torchvision.models.list_models`` has them.
        num_classes: K. The last layer is new unless the weights are for as many classes.
        in_channels: C. The first convolution is adapted to it: see `fedkd.students.stem.for_channels`.
        image_size: H in pixels, and W unless ``image_width`` is given.
        pretrained: Whether to start from torchvision's best weights, ``DEFAULT``, which are downloaded once; or the
            name of others, such as ``"IMAGENET1K_V1"``; or the path of a file with a state dict (``.pth``,
            ``.safetensors``).
        small_stem: Whether the first convolution gets stride 1, and a max-pooling behind it is left out: for images
            below 64 pixels.
        norm: "batch" or "group", in the place of BatchNorm, with the pretrained scales and offsets: see
            `fedkd.students.replace_batch_norms`. LayerNorm stays.
        image_width: W in pixels, of oblong images.
        options: Further arguments of the network, such as ``dropout``.

    Raises:
        MissingResourceError: If the weights cannot be had.
        FedKDError: If torchvision knows no such network, or refuses an option.
    """
    check_norm(norm)
    check_name(name)
    from torchvision import models

    size = (image_size, image_size if image_width is None else image_width)
    weights = _weights(name, pretrained)
    network: Any = _build(name, {"num_classes": num_classes, **_made_for(name, size), **options})
    take_channels(network, in_channels)
    if pretrained:
        take_weights(network, weights, num_classes, (in_channels, *size), PREFIX + name)
    if small_stem:
        enlarge(network, PREFIX + name)
    replace_batch_norms(network, norm)
    transforms: Any = models.get_model_weights(name)["DEFAULT"].transforms()
    mean, std = transforms.mean, transforms.std
    if name in _OWN_NORMALIZATION:
        mean, std = ([value] * 3 for value in _OWN_NORMALIZATION[name])
    normalize = NormalizeChannels.of(mean, std, in_channels)
    return nn.Sequential(OrderedDict(normalize=normalize, network=network))


def names() -> list[str]:
    """Return the names of torchvision's classifiers, sorted."""
    from torchvision import models

    return models.list_models(module=models)


def check_name(name: str) -> None:
    """Raise unless torchvision has a classifier of a name.

    Raises:
        FedKDError: If it has none.
    """
    known = names()
    if name not in known:
        raise unknown_member(PREFIX, name, known)


def _made_for(name: str, size: tuple[int, int]) -> dict[str, Any]:
    """Return the arguments of a network that depend on the size of the images, and those that differ from its own."""
    if name in _OWN_NORMALIZATION:
        return {"aux_logits": False, "transform_input": False, "init_weights": False}
    if name.startswith("vit_"):
        if size[0] != size[1]:
            raise FedKDError(f"{PREFIX + name!r} takes square images, got {size[0]} x {size[1]}.")
        return {"image_size": size[0]}
    return {"input_size": size} if name.startswith("maxvit") else {}


def _build(name: str, options: dict[str, Any]) -> nn.Module:
    from torchvision import models

    try:
        return models.get_model(name, weights=None, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise FedKDError(f"torchvision refuses to make {name!r}: {in_one_line(error)}") from error


def _weights(name: str, pretrained: bool | str | Path) -> Mapping[str, Tensor]:
    """Return pretrained weights by name: none, torchvision's, or those of a file."""
    if not pretrained:
        return {}
    from torchvision import models

    known: Any = models.get_model_weights(name)
    chosen = "DEFAULT" if pretrained is True else str(pretrained)
    if chosen not in known.__members__:
        return read_weights(chosen, tuple(known.__members__))
    try:
        with torch.random.fork_rng(devices=[]):  # its own weights are drawn before they are replaced
            return models.get_model(name, weights=known[chosen], progress=False).state_dict()
    except (OSError, RuntimeError) as error:
        place = Path(torch.hub.get_dir()) / "checkpoints"
        raise MissingResourceError(
            f"The weights of {PREFIX + name!r} cannot be had ({in_one_line(error)}): put {known[chosen].url} into "
            f"{str(place)!r}, or give a file, pretrained: FILE."
        ) from error


TORCHVISION = Family(
    PREFIX,
    "NAME",
    torchvision_student,
    check_name,
    names,
    "any classifier of torchvision: fedkd students 'torchvision/*' lists them",
)
