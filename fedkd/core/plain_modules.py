"""Frozen modules as plain values and tensors, so that they travel without pickle."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fedkd.core.errors import FedKDError
from fedkd.core.tensors import Tensors

_PLAIN = (bool, int, float, str, type(None))


def take_apart(module: nn.Module, name: str = "") -> tuple[dict[str, Any], Tensors]:
    """Return a module as JSON and named tensors: its class, its plain attributes, its tensors and its parts.

    Args:
        module: A module that is nothing but these, such as a teacher's fitted head.
        name: What the names of its tensors start with.

    Raises:
        FedKDError: If an attribute is neither a plain value nor a tuple or list of such.
    """
    kind = type(module)
    tensors: Tensors = {}
    values: dict[str, Any] = {}
    for key, value in vars(module).items():
        if key.startswith("_") or key == "training":
            continue
        is_list = isinstance(value, tuple | list)
        if not all(isinstance(each, _PLAIN) for each in (value if is_list else [value])):
            raise FedKDError(
                f"{kind.__name__} cannot be sent to clients on other machines: its attribute {key!r} is "
                f"{type(value).__name__}, neither a plain value nor a tensor of its own (register_buffer)."
            )
        values[key] = {"tuple" if isinstance(value, tuple) else "list": list(value)} if is_list else value
    for key, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        tensors[f"{name}{key}"] = tensor.detach().cpu()
    parts = {}
    for key, part in module.named_children():
        parts[key], inner = take_apart(part, f"{name}{key}.")
        tensors |= inner
    return {"class": f"{kind.__module__}:{kind.__qualname__}", "values": values, "parts": parts}, tensors


def put_together(plain: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str = "") -> nn.Module:
    """Return the module that `take_apart` took apart, without parameters: its tensors are buffers.

    Args:
        plain: The JSON.
        tensors: The tensors.
        name: What the names of its tensors start with.

    Raises:
        FedKDError: If there is no such class. One of torch, of fedkd, or of a module that is imported already will do.
    """
    module = _class_of(plain["class"]).__new__(_class_of(plain["class"]))
    nn.Module.__init__(module)
    for key, value in plain["values"].items():
        if isinstance(value, Mapping):
            ((form, items),) = value.items()
            value = tuple(items) if form == "tuple" else list(items)
        setattr(module, key, value)
    for key, tensor in tensors.items():
        own = key.removeprefix(name)
        if key.startswith(name) and "." not in own:
            module.register_buffer(own, tensor)
    for key, part in plain["parts"].items():
        module.add_module(key, put_together(part, tensors, f"{name}{key}."))
    return module.eval()


def _class_of(name: str) -> type[nn.Module]:
    module, _, qualname = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise FedKDError(f"This machine knows no module of class {name!r}: import it there, such as with the teacher.")
    return found
