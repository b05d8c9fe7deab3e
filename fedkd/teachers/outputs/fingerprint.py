"""A hash of everything that a module's output depends on, so that a stale cache is never read."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import io
import json
import pickle
import sys
from collections.abc import Callable, Collection
from dataclasses import fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from types import FunctionType, ModuleType
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
        FedKDError: If an attribute of a class outside `LIBRARIES`, or an object that its code names, cannot be
            distinguished from another of its type.
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
            digest.update(source_of(cls, _writer(cls.__qualname__, within)).encode())
    if inside := sorted(_VERSIONED_INSIDE & {package for cls in classes for package in _packages_of(cls)}):
        digest.update(json.dumps([[package, _version(package)] for package in inside]).encode())
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if name.split(".")[0] not in ignore:
            digest.update(name.encode())
            hash_tensor(digest, tensor)
    return digest.hexdigest()


def own_code(cls: type) -> str:
    """Return the source of a class and those of its bases that are outside `LIBRARIES`."""
    write = _writer(cls.__qualname__, frozenset())
    return "".join(source_of(base, write) for base in cls.__mro__ if not is_ours(base))


def code_within(value: Any) -> str:
    """Hash the code of the classes and functions in an object that are the user's; an empty text if there are none.

    Of an object that cannot be pickled, only the code of its own class counts.
    """
    found: list[Any] = []
    pickler = _Pickler(io.BytesIO(), lambda function: found.append(_plain(function, "", False)))
    with contextlib.suppress(Exception):  # an object's own code for pickling can raise anything
        pickler.dump(value)
    for cls in {**pickler.classes, type(value): None}:
        found += _code_of(cls, frozenset())
    return hashlib.sha256(json.dumps(found).encode()).hexdigest() if found else ""


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


def _writer(where: str, within: frozenset[int]) -> Callable[[str, Any], str]:
    """Return a function that writes down the objects that the code of ``where`` names."""

    def write(name: str, value: Any) -> str:
        return json.dumps(_plain(value, f"{name}, which {where} names", False, within))

    return write


def _plain(value: Any, where: str, by_type: bool, within: frozenset[int] = frozenset()) -> Any:
    """Return a setting in a form for JSON. Different settings have different forms.

    With ``by_type``, an object of a library's is represented by its type's name. In a library's class, the other
    settings and the version determine this object.

    Args:
        value: The setting.
        where: What an error calls it.
        by_type: Whether it is a setting of a library's class.
        within: The ids of the objects that hold it.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if id(value) in within:
        return f"the {type(value).__qualname__} that holds it"
    within |= {id(value)}
    inner = functools.partial(_plain, where=where, by_type=by_type, within=within)
    if isinstance(value, list | tuple):
        return [inner(item) for item in value]
    if isinstance(value, dict):
        kept = {key: inner(item) for key, item in value.items() if key not in WHERE_FROM}
        named = {str(key): item for key, item in kept.items()}
        # as pairs where two keys have the same text, such as 1 and "1"
        return named if len(named) == len(kept) else [[repr(key), item] for key, item in kept.items()]
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
    if hasattr(value, "to_dict"):  # a HuggingFace configuration
        settings, own = inner(value.to_dict()), _code_of(type(value), within)
        return [settings, *own] if own else settings
    if by_type and not _is_users(value):
        return type(value).__qualname__
    if isinstance(value, functools.partial):
        return [inner(part) for part in (value.func, value.args, value.keywords)]
    if inspect.isfunction(value):
        caught = [contents(cell) for cell in value.__closure__ or ()]
        others = sources_named_by(value, _writer(value.__qualname__, within))
        return [repr(compiled(value.__code__)), inner([value.__defaults__, value.__kwdefaults__, caught]), *others]
    if isinstance(value, type):
        return [value.__module__, value.__qualname__, source_of(value, _writer(value.__qualname__, within))]
    pickled = io.BytesIO()
    pickler = _Pickler(pickled, functools.partial(_plain, where=where, by_type=False, within=within))
    try:
        pickler.dump(value)
    except FedKDError:
        raise
    except Exception as error:  # an object's own code for pickling can raise anything
        raise FedKDError(
            f"The teacher's cache cannot distinguish {where}, a {type(value).__qualname__}, from another one: make it "
            "something that can be pickled; or, if features do not depend on it, an attribute of the teacher that is "
            "named in not_in_features."
        ) from error
    digest = hashlib.sha256(pickled.getvalue())
    for cls in pickler.classes:
        digest.update("".join(_code_of(cls, within)).encode())
    return digest.hexdigest()


def _is_users(value: Any) -> bool:
    """Whether a function, an object's class, or a part of a ``functools.partial`` is the user's."""
    if isinstance(value, functools.partial):
        return any(map(_is_users, (value.func, *value.args, *value.keywords.values())))
    return not is_library(value if inspect.isroutine(value) or isinstance(value, type) else type(value))


def _code_of(cls: type, within: frozenset[int]) -> list[str]:
    """Return the source of a class and of its bases, as far as they are the user's; an empty list if there is none."""
    write = _writer(cls.__qualname__, within)
    return [source_of(base, write) for base in cls.__mro__ if not is_library(base)]


class _Pickler(pickle.Pickler):
    """Pickles an object for its hash: functions count by their code. It notes the classes whose objects it meets.

    Args:
        file: Takes the bytes.
        plain: Returns a function in a form for JSON.
    """

    def __init__(self, file: io.BytesIO, plain: Callable[[Any], Any]) -> None:
        super().__init__(file, protocol=4)
        self.plain = plain
        self.classes: dict[type, None] = {}

    def reducer_override(self, thing: Any) -> Any:
        """Replace a user's function by its code; pickle everything else as usual."""
        if isinstance(thing, FunctionType) and not is_library(thing):
            return str, (json.dumps(self.plain(thing)),)
        self.classes[thing if isinstance(thing, type) else type(thing)] = None
        return NotImplemented
