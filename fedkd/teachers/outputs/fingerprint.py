"""A hash of everything that a module's output depends on, so that a stale cache is never read."""

from __future__ import annotations

import enum
import functools
import hashlib
import inspect
import json
import pickle
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.core.config import Configured, describe, init_args
from fedkd.core.errors import FedKDError
from fedkd.core.source import compiled, contents, is_library, is_ours, source_of, sources_named_by

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

    The code counts with the functions, classes, constants and objects of the user's that it names, at any depth: see
    `fedkd.core.source.source_of`.

    Args:
        module: The module.
        ignore: Names of its attributes and submodules that the hash ignores.

    Returns:
        SHA-256 in hex, the same in every process.

    Raises:
        FedKDError: If an attribute of a class outside `LIBRARIES` cannot be distinguished from another of its type.
    """
    return _hash(module, ignore, frozenset())


def _hash(module: nn.Module, ignore: Collection[str], within: frozenset[int]) -> str:
    digest = hashlib.sha256(json.dumps([_version(package) for package in _VERSIONED]).encode())
    classes: dict[type, None] = {}
    for name, child in module.named_modules():
        if name.split(".")[0] not in ignore:
            kind = type(child)
            classes |= dict.fromkeys(kind.__mro__)
            skipped = WHERE_FROM | _TORCH_INTERNALS | (frozenset(ignore) if child is module else frozenset())
            settings = {key: value for key, value in sorted(vars(child).items()) if key not in skipped}
            plain = {
                key: _plain(value, f"{kind.__qualname__}.{key}", is_ours(kind), within)
                for key, value in settings.items()
            }
            digest.update(json.dumps([name, kind.__module__, kind.__qualname__, plain]).encode())
    for cls in classes:
        if not is_ours(cls):
            digest.update(source_of(cls, _writer(cls, within)).encode())
    if inside := sorted(_VERSIONED_INSIDE & {package for cls in classes for package in _packages_of(cls)}):
        digest.update(json.dumps([[package, _version(package)] for package in inside]).encode())
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if name.split(".")[0] not in ignore:
            digest.update(name.encode())
            hash_tensor(digest, tensor)
    return digest.hexdigest()


def own_code(cls: type) -> str:
    """Return the source of a class and those of its bases that are outside `LIBRARIES`."""
    return "".join(source_of(base, _writer(base, frozenset())) for base in cls.__mro__ if not is_ours(base))


def code_within(value: Any) -> str:
    """Hash an object in which there are functions or objects of the user's; an empty text if there are none."""
    if not _holds_users(value, frozenset()):
        return ""
    plain = _plain(value, "", False, named=True)
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


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


def _writer(owner: Any, within: frozenset[int]) -> Callable[[str, Any], str | None]:
    """Return a function that writes down the objects that a class or a function names: those of a library's, none."""

    def write(name: str, value: Any) -> str | None:
        return None if is_library(owner) else json.dumps(_plain(value, name, False, within | {id(owner)}, named=True))

    return write


def _plain(value: Any, where: str, by_type: bool, within: frozenset[int] = frozenset(), named: bool = False) -> Any:
    """Return a setting in a form for JSON, the same in every process. Different settings have different forms.

    With ``by_type``, an object of a library's is represented by its type's name. In a library's class, the other
    settings and the version determine this object. With ``named`` so is one of a library outside `LIBRARIES`, such as a
    lock or a console: code that names it may use it for anything.

    Args:
        value: The setting.
        where: What an error calls it.
        by_type: Whether it is a setting of a library's class.
        within: The ids of the objects that hold it, and of the classes and functions whose code names it.
        named: Whether it is, or is held by, an object that code names.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, enum.Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if id(value) in within:
        return f"the {type(value).__qualname__} that holds it"
    within |= {id(value)}
    inner = functools.partial(_plain, where=where, by_type=by_type, within=within, named=named)
    if isinstance(value, list | tuple):
        return [inner(item) for item in value]
    if isinstance(value, Mapping):
        kept = {key: inner(item) for key, item in value.items() if key not in WHERE_FROM}
        texts = {str(key): item for key, item in kept.items()}
        # as pairs where two keys have the same text, such as 1 and "1"
        return texts if len(texts) == len(kept) else [[repr(key), item] for key, item in kept.items()]
    if isinstance(value, set | frozenset):  # whose order is another one in every process
        return ["set", sorted(json.dumps(inner(item)) for item in value)]
    if isinstance(value, torch.dtype | torch.Size | torch.device | np.ndarray | np.generic | Tensor):
        return describe(value)
    if isinstance(value, nn.Module):  # in a list or a dict, where torch does not see it
        return _hash(value, (), within)
    if is_dataclass(value) and not isinstance(value, type):  # fields that are not arguments count, too
        every = {field.name: getattr(value, field.name) for field in fields(value)}
        return [type(value).__qualname__, inner(every), *_code_of(type(value), within)]
    if isinstance(value, Configured):
        return [type(value).__qualname__, inner(init_args(value)), *_code_of(type(value), within)]
    if hasattr(value, "to_dict") and not isinstance(value, type):  # a HuggingFace configuration
        settings, own = inner(value.to_dict()), _code_of(type(value), within)
        return [settings, *own] if own else settings
    if by_type and not _is_users(value):
        return type(value).__qualname__
    if isinstance(value, functools.partial):
        return [inner(part) for part in (value.func, value.args, value.keywords)]
    if inspect.ismethod(value):
        return [inner(value.__self__), inner(value.__func__)]
    if inspect.isfunction(value):
        caught = [contents(cell) for cell in value.__closure__ or ()]
        others = [] if is_library(value) else sources_named_by(value, _writer(value, within))
        return [repr(compiled(value.__code__)), inner([value.__defaults__, value.__kwdefaults__, caught]), *others]
    if isinstance(value, type):
        return [value.__module__, value.__qualname__, source_of(value, _writer(value, within))]
    if inspect.isroutine(value):
        return f"{type(value).__qualname__} {value.__qualname__}"
    if callable(value) and hasattr(value, "__wrapped__"):  # as of lru_cache
        return inner(inspect.unwrap(value))
    if isinstance(value, re.Pattern):
        return ["pattern", repr(value.pattern), value.flags]
    if named and isinstance(value, bytes | bytearray | complex | range | slice):
        return [type(value).__qualname__, repr(value)]
    return _object(value, where, inner, named, _code_of(type(value), within))


def _object(value: Any, where: str, inner: Callable[[Any], Any], named: bool, code: list[str]) -> Any:
    """Return any other object in a form for JSON: by its attributes, and by its code where that is the user's.

    An object of a package outside `LIBRARIES` counts by its pickle, or by its type if it is ``named``.

    Args:
        value: The object.
        where: As for `_plain`.
        inner: Returns an attribute in a form for JSON.
        named: As for `_plain`.
        code: The user's code of its class.
    """
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    try:
        state = value.__getstate__() if code or is_ours(type(value)) else None
        if state is not None or code:
            return [name, inner(state), *code]
        return name if named else hashlib.sha256(pickle.dumps(value, protocol=4)).hexdigest()
    except FedKDError:
        raise
    except Exception as error:  # an object's own code for pickling can raise anything
        if named:
            return [name, *code]
        raise FedKDError(
            f"The teacher's cache cannot distinguish {where}, a {type(value).__qualname__}, from another one: make it "
            "something that can be pickled, or name it in not_in_features if features do not depend on it."
        ) from error


def _holds_users(value: Any, within: frozenset[int]) -> bool:
    """Whether a value is, or holds at any depth, a function, a class or an object of the user's."""
    if id(value) in within:
        return False
    if isinstance(value, type) or inspect.isroutine(value):
        return not is_library(value)
    if not is_library(type(value)):
        return True
    if isinstance(value, functools.partial):
        parts: Any = (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, Mapping):
        parts = value.values()
    else:
        parts = value if isinstance(value, list | tuple | set | frozenset) else getattr(value, "__dict__", {}).values()
    return any(_holds_users(part, within | {id(value)}) for part in parts)


def _is_users(value: Any) -> bool:
    """Whether a function, an object's class, or a part of a ``functools.partial`` is the user's."""
    if isinstance(value, functools.partial):
        return any(map(_is_users, (value.func, *value.args, *value.keywords.values())))
    return not is_library(value if inspect.isroutine(value) or isinstance(value, type) else type(value))


def _code_of(cls: type, within: frozenset[int]) -> list[str]:
    """Return the source of a class and of its bases, as far as they are the user's; an empty list if there is none."""
    return [
        # else objects whose class names all of them would be written once for every order of them
        base.__qualname__ if id(base) in within else source_of(base, _writer(base, within))
        for base in cls.__mro__
        if not is_library(base)
    ]
