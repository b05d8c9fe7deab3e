"""A network's first convolution: for the data's channels, and for small images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedkd.core.errors import FedKDError


def first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """Return a network's first convolution in the order of its modules, and its name; None if there is none."""
    found = ((name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d))
    return next(found, None)


def for_channels(weight: Tensor, channels: int) -> Tensor:
    """Return the weights of a first convolution for another number of channels: (O, I, k, k) -> (O, C, k, k).

    For one channel the weights are summed over the channels, so a grayscale image gives the same output as an RGB image
    whose channels are equal. For more channels they are repeated in turn, and scaled so that equal channels give the
    same output as before.

    Args:
        weight: Of a convolution of I channels.
        channels: C.
    """
    given = weight.shape[1]
    if channels == given:
        return weight
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    return weight.repeat(1, -(-channels // given), 1, 1)[:, :channels] * (given / channels)


def take_channels(network: nn.Module, channels: int) -> None:
    """Give a network's first convolution another number of input channels, in place: see `for_channels`.

    Raises:
        FedKDError: If the network has no convolution.
    """
    found = first_convolution(network)
    if found is None:
        raise FedKDError(f"{type(network).__name__} has no convolution to adapt to images of {channels} channels.")
    layer: Any = found[1]
    if layer.in_channels == channels:
        return
    with torch.no_grad():
        layer.weight = nn.Parameter(for_channels(layer.weight, channels))
    layer.in_channels = channels


def enlarge(network: nn.Module, name: str, first: str | None = None) -> None:
    """Give the first convolution stride 1, and leave out a max-pooling behind it, in place: for small images.

    Args:
        network: Any.
        name: What an error calls it.
        first: The name of its first convolution; None takes the first of its modules.

    Raises:
        FedKDError: If there is no such convolution, or position embeddings fix the number of its outputs.
    """
    modules = dict(network.named_modules())
    if first is None and (found := first_convolution(network)) is not None:
        first = found[0]
    layer = modules.get(first or "")
    fixed = any("pos_embed" in each or "position_embed" in each for each, _ in network.named_parameters())
    if not isinstance(layer, nn.Conv2d) or fixed:
        raise FedKDError(f"small_stem: {name!r} has no first convolution to change; leave it out.")
    layer.stride = (1, 1)
    if (pool := _pool_behind(modules, str(first))) is not None:
        parent, _, last = pool.rpartition(".")
        setattr(network.get_submodule(parent), last, nn.Identity())


def _pool_behind(modules: dict[str, nn.Module], first: str) -> str | None:
    """Return the name of the max-pooling between the first convolution and the next one, if there is one.

    A ResNet of several convolutions in its stem has its max-pooling behind the last of these, as ``maxpool``.
    """
    if "maxpool" in modules:
        return "maxpool"
    names = list(modules)
    for name in names[names.index(first) + 1 :]:
        if isinstance(modules[name], nn.Conv2d):
            return None
        if isinstance(modules[name], nn.MaxPool2d):
            return name
    return None
