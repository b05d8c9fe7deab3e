"""A hash of everything that a module's output depends on, so that a stale cache is never read."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import pickle
import sys
from collections.abc import Collection
from dataclasses import fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.core.config import Configured, describe, init_args
from fedkd.core.errors import FedKDError
from fedkd.core.source import compiled, is_ours, source_of

WHERE_FROM = frozenset({"checkpoint", "revision", "name_or_path", "_name_or_path"})
"""Attributes with the location of the weights. The hash ignores them, so a moved folder keeps its cache."""

_VERSIONED = ("fedkd", "timm", "transformers")
_VERSIONED_INSIDE = frozenset({"peft", "torchvision"})
"""Packages whose versions count where a module has something of theirs inside: a torchvision may resize differently.

PyTorch's own version does not count. Its releases, like other devices, may change the last bits.
"""
_TORCH_INTERNALS = frozenset(vars(nn.Module())) | {"_constructor_arguments"}


def fingerprint(module: nn.Module, ignore: Collection[str] = ()) -> str:
    """Hash a module's weights, buffers, attributes, code outside `LIBRARIES`, and the versions of what is inside.

    Args:
        module: The module.
        ignore: Names of its attributes and submodules that the hash ignores.

    Returns:
        SHA-256 in hex, the same in every process.

    Raises:
        FedKDError: If an attribute of a class outside `LIBRARIES` cannot be distinguished from another of its type.
    """
    digest = hashlib.sha256(json.dumps([_version(package) for package in _VERSIONED]).encode())
    classes: dict[type, None] = {}
    for name, child in module.named_modules():
        if name.split(".")[0] not in ignore:
            kind = type(child)
            classes |= dict.fromkeys(kind.__mro__)
            skipped = WHERE_FROM | _TORCH_INTERNALS | (frozenset(ignore) if child is module else frozenset())
            settings = {key: value for key, value in sorted(vars(child).items()) if key not in skipped}
            plain = {key: _plain(value, f"{kind.__qualname__}.{key}", is_ours(kind)) for key, value in settings.items()}
            digest.update(json.dumps([name, kind.__module__, kind.__qualname__, plain]).encode())
    for cls in classes:
        if not is_ours(cls):
            digest.update(source_of(cls).encode())
    if inside := sorted(_VERSIONED_INSIDE & {package for cls in classes for package in _packages_of(cls)}):
        digest.update(json.dumps([[package, _version(package)] for package in inside]).encode())
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if name.split(".")[0] not in ignore:
            digest.update(name.encode())
            hash_tensor(digest, tensor)
    return digest.hexdigest()


def own_code(cls: type) -> str:
    """Return the source of a class and those of its bases that are outside `LIBRARIES`."""
    return "".join(source_of(base) for base in cls.__mro__ if not is_ours(base))


def hash_tensor(digest: hashlib._Hash, tensor: Tensor) -> None:
    """Add a tensor's dtype, shape and bytes to a hash."""
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _packages_of(cls: type) -> set[str]:
    """Return the package of a class, and for a class of the user's those of what its module imports."""
    found = {str(cls.__module__)}
    if not is_ours(cls):
        for value in vars(sys.modules.get(cls.__module__, object)).values():
            found.add(value.__name__ if isinstance(value, ModuleType) else str(getattr(value, "__module__", "")))
    return {name.split(".")[0] for name in found}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _plain(value: Any, where: str, by_type: bool) -> Any:
    """Return a setting in a form for JSON. Different settings have different forms.

    With ``by_type``, an object of any other type is represented by its type's name. In a library's class, the other
    settings and the version determine this object.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, where, by_type) for item in value]
    if isinstance(value, dict):
        kept = {key: _plain(item, where, by_type) for key, item in value.items() if key not in WHERE_FROM}
        named = {str(key): item for key, item in kept.items()}
        # as pairs where two keys have the same text, such as 1 and "1"
        return named if len(named) == len(kept) else [[repr(key), item] for key, item in kept.items()]
    if isinstance(value, set | frozenset):  # whose order is another one in every process
        return ["set", sorted(json.dumps(_plain(item, where, by_type)) for item in value)]
    if isinstance(value, torch.dtype | torch.Size | torch.device | np.ndarray | np.generic | Tensor):
        return describe(value)
    if isinstance(value, nn.Module):  # in a list or a dict, where torch does not see it
        return fingerprint(value)
    if is_dataclass(value) and not isinstance(value, type):  # fields that are not arguments count, too
        every = {field.name: getattr(value, field.name) for field in fields(value)}
        return [type(value).__qualname__, _plain(every, where, by_type)]
    if isinstance(value, Configured):
        return [type(value).__qualname__, _plain(init_args(value), where, by_type)]
    if hasattr(value, "to_dict"):  # a HuggingFace configuration
        return _plain(value.to_dict(), where, by_type)
    if by_type:
        return type(value).__qualname__
    if isinstance(value, functools.partial):
        return [_plain(part, where, by_type) for part in (value.func, value.args, value.keywords)]
    if inspect.isfunction(value):
        caught = [cell.cell_contents for cell in value.__closure__ or ()]
        return [
            repr(compiled(value.__code__)),
            _plain([value.__defaults__, value.__kwdefaults__, caught], where, by_type),
        ]
    if isinstance(value, type):
        return [value.__module__, value.__qualname__, source_of(value)]
    try:
        return hashlib.sha256(pickle.dumps(value, protocol=4)).hexdigest()
    except Exception as error:  # an object's own code for pickling can raise anything
        raise FedKDError(
            f"The teacher's cache cannot distinguish {where}, a {type(value).__qualname__}, from another one: make it "
            "something that can be pickled, or name it in not_in_features if features do not depend on it."
        ) from error
