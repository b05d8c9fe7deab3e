"""A hash of everything that a module's output depends on, so that a stale cache is never read."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Collection
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

WHERE_FROM = frozenset({"checkpoint", "revision", "name_or_path", "_name_or_path"})
"""Where weights were found says nothing about what they are: a moved folder keeps its cache."""

_TORCH_INTERNALS = frozenset(vars(nn.Module()))


def fingerprint(module: nn.Module, ignore: Collection[str] = ()) -> str:
    """Hash a module's weights, buffers, plain attributes and, for classes outside fedkd, code.

    Args:
        module: The module.
        ignore: Names of its attributes and submodules that do not matter.

    Returns:
        SHA-256 in hex, the same in every process.
    """
    digest = hashlib.sha256()
    for name, child in module.named_modules():
        if name.split(".")[0] not in ignore:
            skipped = WHERE_FROM | _TORCH_INTERNALS | (frozenset(ignore) if child is module else frozenset())
            settings = {key: _plain(value) for key, value in sorted(vars(child).items()) if key not in skipped}
            kind = type(child)
            digest.update(json.dumps([name, kind.__module__, kind.__qualname__, settings]).encode())
            _hash_tensor_attributes(digest, child, skipped)
    digest.update(own_code(type(module)).encode())
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if name.split(".")[0] not in ignore:
            digest.update(name.encode())
            hash_tensor(digest, tensor)
    return digest.hexdigest()


def own_code(cls: type) -> str:
    """Return the source of a class and its bases, as far as they are not fedkd's, torch's or Python's."""
    others = ("torch", "fedkd", "builtins", "abc")
    return "".join(_source(base) for base in cls.__mro__ if base.__module__.split(".")[0] not in others)


def settings(value: Any) -> str:
    """Write an object's public settings down in a line, as in ``KD(ce_weight=0.1, kd_weight=0.9, temperature=2.0)``.

    Of a module those of its parts follow; tensors, and what else cannot be written down, count by their type.
    """
    hidden = _TORCH_INTERNALS if isinstance(value, nn.Module) else frozenset()
    shown = [(name, setting(item)) for name, item in vars(value).items() if name[0] != "_" and name not in hidden]
    if isinstance(value, nn.Module):
        shown += [(name, settings(part)) for name, part in value.named_children()]
    return f"{type(value).__qualname__}({', '.join(f'{name}={text}' for name, text in shown)})"


def setting(value: Any) -> str:
    """Write down one setting: a plain value, a dataclass of such, or a type's name."""
    if is_dataclass(value) and not isinstance(value, type):
        return settings(value)
    plain = _plain(value)
    return plain if isinstance(plain, str) and not isinstance(value, str) else repr(plain)


def hash_tensor(digest: hashlib._Hash, tensor: Tensor) -> None:
    """Add a tensor's dtype, shape and bytes to a digest."""
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _hash_tensor_attributes(digest: hashlib._Hash, module: nn.Module, skipped: Collection[str]) -> None:
    for key, value in sorted(vars(module).items()):
        if isinstance(value, Tensor) and key not in skipped:
            hash_tensor(digest, value)


def _plain(value: Any) -> Any:
    """Return what can be written down of a setting; objects whose text could hold an address count by their type."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items() if key not in WHERE_FROM}
    if isinstance(value, torch.dtype | torch.Size):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return [type(value).__qualname__, {field.name: _plain(getattr(value, field.name)) for field in fields(value)}]
    if hasattr(value, "to_dict"):  # a HuggingFace configuration
        return _plain(value.to_dict())
    return type(value).__qualname__


def _source(cls: type) -> str:
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):  # typed into an interpreter: the names of what it calls and its constants remain
        methods = [value.__code__ for value in vars(cls).values() if inspect.isfunction(value)]
        return repr([(code.co_code, code.co_names) for code in methods])
