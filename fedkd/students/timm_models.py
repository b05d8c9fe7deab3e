"""Any network of timm as a student, by ``timm/NAME``, with or without pretrained weights.

timm (https://github.com/huggingface/pytorch-image-models) is an extra: ``pip install fedkd[timm]``.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedkd.core.errors import FedKDError, MissingResourceError, in_one_line, unknown_name
from fedkd.students.family import Family, unknown_member
from fedkd.students.layers import NormalizeChannels, allow_single_images, check_norm, replace_batch_norms
from fedkd.students.pretrained import read_weights
from fedkd.students.stem import enlarge

PREFIX = "timm/"


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
        name: timm's name, such as ``"resnet18"`` or ``"mobilenetv3_small_100"``; ``"resnet18.tv_in1k"`` chooses among
            its weights.
        num_classes: K. The last layer is always new.
        in_channels: C. The first layer of pretrained weights is adapted to it, as timm does.
        image_size: H in pixels, and W unless ``image_width`` is given.
        pretrained: Whether to start from timm's weights, which are downloaded once; or the path of a file with them
            (``.pth``, ``.safetensors``), of which the last layer may be lacking.
        small_stem: Whether the first convolution gets stride 1, and a max-pooling behind it is left out: for images
            below 64 pixels.
        norm: "batch" leaves timm's normalization as it is, except that BatchNorm also trains on a single image: see
            `fedkd.students.BatchNorm2d`. "group" puts GroupNorm in the place of BatchNorm, with the pretrained scales
            and offsets, so that clients keep no statistics.
        image_width: W in pixels, of oblong images.
        options: Further arguments of ``timm.create_model``, such as ``drop_path_rate``.

    Raises:
        MissingResourceError: If timm is not installed, or the weights cannot be had.
        FedKDError: If timm knows no such network, or refuses an option; or the file lacks weights of the network.
    """
    check_norm(norm)
    check_name(name)
    import timm

    file = str(Path(pretrained).expanduser()) if isinstance(pretrained, str | Path) else None
    given: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels, **options}
    config: Any = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size and "img_size" not in given:
        given["img_size"] = image_size if image_width is None else (image_size, image_width)
    if file is not None:
        classes = _check_weights(name, file, given)
        # timm drops a last layer for another number of classes than its configuration has, not than the file has
        given["pretrained_cfg_overlay"] = _from_file(
            file, **({} if classes == num_classes else {"num_classes": classes})
        )
    try:
        network: Any = timm.create_model(name, pretrained=bool(pretrained), **given)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise _refusal(name, options, error) from error
        raise MissingResourceError(f"The weights of {PREFIX + name!r} cannot be had: {in_one_line(error)}") from error
    except Exception as error:  # the network's own code, for any options
        raise _refusal(name, options, error) from error
    found: Any = network.pretrained_cfg
    if small_stem:
        first = None if found.get("fixed_input_size") else found.get("first_conv")
        enlarge(network, PREFIX + name, first if isinstance(first, str) else "")
    if norm == "group":
        replace_batch_norms(network, norm)
    else:
        allow_single_images(network)
    normalize = NormalizeChannels.of(found["mean"], found["std"], in_channels)
    return nn.Sequential(OrderedDict(normalize=normalize, network=network))


def _refusal(name: str, options: Mapping[str, Any], error: Exception) -> FedKDError:
    """Build the error for options that timm does not take."""
    given = ", ".join(f"{key}={value!r}" for key, value in options.items())
    text = (
        f"{type(error).__name__}: {error}" if isinstance(error, LookupError | ArithmeticError) else in_one_line(error)
    )
    return FedKDError(f"timm refuses to make {name!r}{f' with {given}' if given else ''}: {text}")


def _from_file(file: str, **more: Any) -> dict[str, Any]:
    """Return what timm's configuration of a network says where its weights come from a file."""
    return {"file": file, "custom_load": False, **more}


def _check_weights(name: str, file: str, options: Mapping[str, Any]) -> int:
    """Raise unless a file has all weights of a network, apart from those of its last layer.

    timm accepts a file that lacks weights where the number of classes differs. So a network is made for the file's
    number of classes. timm renames and resizes weights as usual.

    Returns:
        The file's number of classes, 0 if it has no last layer.

    Raises:
        MissingResourceError: If there is no such file.
        FedKDError: If it is no state dict, or lacks weights, or they do not fit.
    """
    import timm

    found = timm.models.clean_state_dict(dict(read_weights(file)))
    config: Any = timm.get_pretrained_cfg(name)
    last = getattr(config, "classifier", None) or ()
    heads = [f"{each}.weight" for each in ((last,) if isinstance(last, str) else last)]
    classes = next((len(found[head]) for head in heads if head in found), 0)
    overlay = _from_file(file, num_classes=classes, label_offset=0)
    with torch.random.fork_rng(devices=[]):  # this network's own weights are drawn, and left
        try:
            timm.create_model(
                name, pretrained=True, **{**options, "num_classes": classes, "pretrained_cfg_overlay": overlay}
            )
        except RuntimeError as error:
            text = in_one_line(error)
            lacking = re.findall(r'"([^"]+)"', text.partition("Missing key(s)")[2].partition("Unexpected key(s)")[0])
            if lacking:
                raise FedKDError(
                    f"The weights for {PREFIX + name!r} lack {len(lacking)} of its tensors, such as {lacking[0]!r}."
                ) from error
            if "size mismatch" in text:
                wrong = text[text.index("size mismatch") :].split(". ")[0].rstrip(".")
                raise FedKDError(f"The weights for {PREFIX + name!r} do not fit: {wrong}.") from error
        except Exception as error:  # timm's own code for weights of other formats
            raise FedKDError(
                f"The weights in {file!r} cannot be taken for {PREFIX + name!r}: {in_one_line(error)}"
            ) from error
    return classes


def names() -> list[str]:
    """Return the names of timm's networks, sorted; none if timm is not installed."""
    try:
        import timm
    except ImportError:
        return []
    return sorted(timm.list_models())


def check_name(name: str) -> None:
    """Raise unless timm has a network of a name, ``NETWORK`` or ``NETWORK.TAG``, where a tag stands for weights.

    Raises:
        MissingResourceError: If timm is not installed.
        FedKDError: If timm knows no such network, or no such tag.
    """
    try:
        import timm
    except ImportError as error:
        raise MissingResourceError("Students of timm need timm: pip install fedkd[timm].") from error
    known = timm.list_models()
    network, _, tag = name.partition(".")
    if network not in known:
        raise unknown_member(PREFIX, name, known)
    tags = [each.partition(".")[2] for each in timm.models.get_arch_pretrained_cfgs(network)]
    if tag and tag not in tags:
        raise unknown_name(f"tag of student {PREFIX + network!r}", tag, filter(None, tags))


TIMM = Family(
    PREFIX, "NAME", timm_student, check_name, names, "any network of timm: fedkd students 'timm/*' lists them"
)
