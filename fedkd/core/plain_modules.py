"""Frozen modules as plain values and tensors, so that they travel without pickle."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fedkd.core.errors import FedKDError
from fedkd.core.tensors import Tensors

_PLAIN = (bool, int, float, str, type(None))
_OF_TORCH = frozenset(vars(nn.Module()))
"""What every module has: not a class's own attributes."""


def take_apart(module: nn.Module, name: str = "") -> tuple[dict[str, Any], Tensors]:
    """Return a module as JSON and named tensors: its class, its plain attributes, its tensors and its parts.

    Args:
        module: A module that is nothing but these, such as a teacher's fitted head.
        name: What the names of its tensors start with.

    Raises:
        FedKDError: If an attribute is neither a plain value nor a tuple or list of such.
    """
    kind = type(module)
    values: dict[str, Any] = {}
    for key, value in vars(module).items():
        if key in _OF_TORCH:
            continue
        is_list = isinstance(value, tuple | list)
        if not all(isinstance(each, _PLAIN) for each in (value if is_list else [value])):
            raise FedKDError(
                f"{kind.__name__} cannot be sent to clients on other machines: its attribute {key!r} is "
                f"{type(value).__name__}, neither a plain value nor a tensor of its own (register_buffer)."
            )
        values[key] = {"tuple" if isinstance(value, tuple) else "list": list(value)} if is_list else value
    own: dict[str, Tensor | None] = {**module._parameters, **module._buffers}
    tensors = {f"{name}{key}": value.detach().cpu() for key, value in own.items() if value is not None}
    parts: dict[str, Any] = {}
    for key, part in module._modules.items():
        parts[key] = None
        if part is not None:
            parts[key], inner = take_apart(part, f"{name}{key}.")
            tensors |= inner
    return {
        "class": f"{kind.__module__}:{kind.__qualname__}",
        "values": values,
        "own": list(own),
        "parts": parts,
    }, tensors


def put_together(plain: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str = "") -> nn.Module:
    """Return the module that `take_apart` took apart, without parameters: its tensors are buffers.

    Args:
        plain: The JSON.
        tensors: The tensors.
        name: What the names of its tensors start with.

    Raises:
        FedKDError: If there is no such class in a module that is imported already.
    """
    kind = _class_of(plain["class"])
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    for key, value in plain["values"].items():
        if isinstance(value, Mapping):
            ((form, items),) = value.items()
            value = tuple(items) if form == "tuple" else list(items)
        setattr(module, key, value)
    for key in plain["own"]:
        module.register_buffer(key, tensors.get(f"{name}{key}"))
    for key, part in plain["parts"].items():
        module.add_module(key, None if part is None else put_together(part, tensors, f"{name}{key}."))
    return module.eval()


def _class_of(name: str) -> type[nn.Module]:
    module, _, qualname = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise FedKDError(f"This machine knows no module of class {name!r}: import it there, such as with the teacher.")
    return found
