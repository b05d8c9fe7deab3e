"""Pretrained weights for a network of other classes, channels and image size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from fedkd.core.errors import FedKDError, MissingResourceError, in_one_line
from fedkd.students.stem import first_convolution, for_channels


def read_weights(file: str, names: Sequence[str] = ()) -> Mapping[str, Tensor]:
    """Read a state dict from a file, ``.safetensors`` or what ``torch.save`` writes.

    The state dict may also be under the key ``model`` or ``state_dict``, or such a key with ``_ema`` behind it, as
    training scripts save it.

    Args:
        file: Its path.
        names: What ``pretrained`` may also be, for the error.

    Raises:
        MissingResourceError: If there is no such file.
        FedKDError: If it is no state dict.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        near = get_close_matches(file, names, n=1)
        others = f", nor weights of that name: {', '.join(names)}" if names else ""
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise MissingResourceError(f"pretrained: there is no file {file!r}{others}.{hint}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise half a dozen kinds for what is no such file
        raise FedKDError(f"pretrained: {file!r} cannot be read as weights: {in_one_line(error)}") from error
    for key in ("model", "state_dict", "state_dict_ema", "model_ema"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise FedKDError(f"pretrained: {file!r} has no state dict, but a {type(found).__name__}.")
    return found


def take_weights(
    network: nn.Module, found: Mapping[str, Tensor], num_classes: int, image_shape: tuple[int, int, int], name: str
) -> None:
    """Load weights into a network in place, and adapt those that depend on the data.

    The first convolution is adapted to the channels (`for_channels`), position embeddings are interpolated, and layers
    for another number of classes keep the network's own new weights.

    Args:
        network: With new weights, for the data.
        found: The weights by name. Those that the network does not have are left.
        num_classes: K.
        image_shape: (C, H, W).
        name: What an error calls the network.

    Raises:
        FedKDError: If weights are lacking, or do not fit.
    """
    own, taken = network.state_dict(), {}
    first = first_convolution(network)
    stem = None if first is None else f"{first[0]}.weight"
    if lacking := sorted(own.keys() - found.keys()):
        raise FedKDError(f"The weights for {name!r} lack {len(lacking)} of its tensors, such as {lacking[0]!r}.")
    for key, value in own.items():
        given = found[key]
        if given.shape == value.shape:
            taken[key] = given
        elif first is not None and _is_positions(key, given, value):
            grid = _at_size(given.reshape(1, *given.shape[-2:]), value.shape[-2], image_shape, first[1].stride)
            taken[key] = grid.reshape(value.shape)
        elif _differs_in_first(given, value) and len(value) == num_classes:
            continue
        elif key == stem and given.shape[0] == value.shape[0] and given.shape[2:] == value.shape[2:]:
            taken[key] = for_channels(given, image_shape[0])
        else:
            raise FedKDError(
                f"The weights for {name!r} do not fit: {key!r} is {tuple(given.shape)}, and {tuple(value.shape)} for "
                f"images {image_shape} and {num_classes} classes."
            )
    network.load_state_dict(taken, strict=False)


def _differs_in_first(given: Tensor, value: Tensor) -> bool:
    return given.ndim == value.ndim > 0 and given.shape[1:] == value.shape[1:]


def _is_positions(key: str, given: Tensor, value: Tensor) -> bool:
    """Whether both are position embeddings, (1, N, D) or (N, D), of different N."""
    if "pos" not in key or given.ndim != value.ndim or given.shape[-1] != value.shape[-1]:
        return False
    return given.ndim == 2 or (given.ndim == 3 and len(given) == len(value) == 1)


def _at_size(given: Tensor, count: int, image_shape: tuple[int, int, int], patch: tuple[int, ...]) -> Tensor:
    """Interpolate position embeddings: (1, P + G * G, D) -> (1, P + h * w, D), of P tokens that are no patches.

    Args:
        given: Of a square image.
        count: P + h * w.
        image_shape: (C, H, W) of the new images.
        patch: Sides of a patch, in pixels.

    Raises:
        FedKDError: If they are no embeddings of a square grid.
    """
    high, wide = image_shape[1] // patch[0], image_shape[2] // patch[1]
    prefix = count - high * wide
    side = math.isqrt(max(0, given.shape[1] - prefix))
    if prefix < 0 or side == 0 or prefix + side * side != given.shape[1]:
        raise FedKDError(
            f"The {given.shape[1]} position embeddings of the weights cannot be interpolated for images {image_shape}."
        )
    grid = given[:, prefix:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)  # (1, G * G, D) -> (1, D, G, G)
    grid = F.interpolate(grid, (high, wide), mode="bicubic", antialias=True, align_corners=False)
    patches = grid.flatten(2).transpose(1, 2).to(given.dtype)  # (1, D, h, w) -> (1, h * w, D)
    return torch.cat([given[:, :prefix], patches], dim=1)
