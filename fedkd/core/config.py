"""`describe`: the one way in which a setting is written down.

A run's identity, ``repr``, the saved configuration and the cache's fingerprints all use it, so a setting that changes a
result cannot be in one of them and missing in another.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fedkd.core.source import compiled, is_ours

_TORCH_INTERNALS = frozenset(vars(nn.Module()))
_RECORD = "_constructor_arguments"


class Configured:
    """A mixin that remembers its constructor's arguments: the base of all that a configuration can name.

    The arguments are recorded when the object is made, under whatever names its constructor keeps them, so a private
    attribute hides none. ``repr`` shows them. (A dataclass needs no record: its fields are its arguments.)
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let the constructor record its arguments first."""
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _recording(vars(cls)["__init__"])  # type: ignore[method-assign]

    def __repr__(self) -> str:
        """Show the constructor's arguments."""
        return one_line(self)


def _recording(constructor: Any) -> Any:
    """Return a constructor that records its arguments, unless a subclass's has done so for this object."""

    @functools.wraps(constructor)
    def record(self: Any, *args: Any, **kwargs: Any) -> None:
        if _RECORD not in vars(self):
            given = inspect.signature(constructor).bind(self, *args, **kwargs).arguments
            object.__setattr__(self, _RECORD, dict(list(given.items())[1:]))
        constructor(self, *args, **kwargs)

    return record


def init_args(value: Any) -> dict[str, Any]:
    """Return the constructor's arguments of a `Configured` object or a dataclass, defaults filled in.

    Where the object has a public attribute of an argument's name, its present value counts.
    """
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value) if field.init}
    found: dict[str, Any] = {}
    given = vars(value).get(_RECORD, {})
    for name, parameter in inspect.signature(type(value)).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            found |= given.get(name, {})
        elif parameter.kind is parameter.VAR_POSITIONAL:
            found[name] = list(given.get(name, ()))
        elif name in vars(value):
            found[name] = vars(value)[name]
        elif name in given:
            found[name] = given[name]
        elif parameter.default is not parameter.empty:
            found[name] = parameter.default
    return found


def describe(value: Any) -> Any:
    """Write a value down in plain terms: dictionaries, lists, texts, numbers and None.

    The result is the same in every process. An object of fedkd or of the caller becomes ``{"class_path": ...,
    "init_args": ...}``; the caller's own functions and classes count by their code; tensors by their content.

    Args:
        value: A setting: plain values, configured objects, functions, optimizers, Lightning callbacks, modules, ...
    """
    return _describe(value, ())


def _describe(value: Any, within: tuple[int, ...]) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return type(value).__mro__[-2](value)  # jsonargparse has numbers of its own
    if id(value) in within:
        return f"<{type(value).__qualname__} that holds itself>"
    inner = functools.partial(_describe, within=(*within, id(value)))
    if isinstance(value, list | tuple):
        return [inner(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((inner(item) for item in value), key=repr)
    if isinstance(value, Mapping):
        return {str(key): inner(item) for key, item in value.items()}
    if isinstance(value, np.generic):
        return inner(value.item())
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__} {tuple(value.shape)} {content_hash(value)[:16]}"
    if isinstance(value, torch.dtype | torch.device | torch.Size):
        return str(value)
    if isinstance(value, Optimizer):
        groups = [
            {name: inner(item) for name, item in group.items() if name != "params"} for group in value.param_groups
        ]
        return {"class_path": class_path(type(value)), "groups": groups}
    if isinstance(value, LRScheduler):
        hidden = {"optimizer", "last_epoch", "_step_count", "_last_lr", "base_lrs", "verbose"}
        state = {name: item for name, item in vars(value).items() if name not in hidden and not name.startswith("_")}
        return {"class_path": class_path(type(value)), "settings": inner(state)}
    if isinstance(value, functools.partial):
        return {"call": inner(value.func), "args": inner(value.args), "kwargs": inner(value.keywords)}
    if inspect.isroutine(value):
        return _function(value, inner)
    if isinstance(value, type):
        return class_path(value)
    return _object(value, inner)


def _function(value: Any, inner: Any) -> Any:
    """Write a function down: by its name if it is a library's, else by its name and its code."""
    name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', repr(type(value)))}"
    code = getattr(value, "__code__", None)
    if code is None or is_ours(value):
        return name
    caught = [cell.cell_contents for cell in value.__closure__ or ()]
    defaults = [value.__defaults__, value.__kwdefaults__]
    digest = hashlib.sha256(repr((compiled(code), inner(defaults))).encode()).hexdigest()[:16]
    return {"function": name, "code": digest, **({"caught": inner(caught)} if caught else {})}


def _object(value: Any, inner: Any) -> Any:
    kind = type(value)
    found: dict[str, Any] = {"class_path": class_path(kind)}
    if isinstance(value, Configured) or is_dataclass(value):
        return found | {"init_args": {name: inner(item) for name, item in init_args(value).items()}}
    hidden = _TORCH_INTERNALS if isinstance(value, nn.Module) else frozenset()
    # private ones too: that is where Lightning's callbacks keep their arguments
    shown = {name: item for name, item in getattr(value, "__dict__", {}).items() if name not in hidden}
    if isinstance(value, nn.Module):
        shown |= dict(value.named_children())
    return found | ({"settings": {name: inner(item) for name, item in sorted(shown.items())}} if shown else {})


def class_path(kind: type) -> str:
    """Return the shortest dotted path under which a class is public, such as ``fedkd.strategies.FedProx``."""
    module = kind.__module__
    if "." not in kind.__qualname__:
        parts = module.split(".")
        for end in range(1, len(parts)):
            package = sys.modules.get(".".join(parts[:end]))
            # by getattr: a lazy package's own dictionary depends on what was used of it before
            if package is not None and getattr(package, kind.__name__, None) is kind:
                return f"{'.'.join(parts[:end])}.{kind.__name__}"
    return f"{module}.{kind.__qualname__}"


def one_line(value: Any) -> str:
    """Write a value down in one line, as in ``KD(ce_weight=0.1, kd_weight=0.9, temperature=2.0)``."""
    return _line(describe(value))


def _line(plain: Any) -> str:
    if isinstance(plain, list):
        return f"[{', '.join(map(_line, plain))}]"
    if not isinstance(plain, dict):
        return repr(plain)
    if "class_path" in plain:
        settings: Any = plain.get("init_args", plain.get("settings", {}))
        if "groups" in plain:
            return f"{plain['class_path'].split('.')[-1]}({'; '.join(dict.fromkeys(map(_options, plain['groups'])))})"
        return f"{plain['class_path'].split('.')[-1]}({_items(settings)})"
    if "function" in plain:
        return f"<{plain['function'].split('.')[-1]} {plain['code'][:8]}>"
    return f"{{{', '.join(f'{key!r}: {_line(item)}' for key, item in plain.items())}}}"


def _items(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_line(item)}" for name, item in settings.items())


def _options(group: Mapping[str, Any]) -> str:
    """Show those of an optimizer's options that are on and not zero."""
    return _items({name: item for name, item in group.items() if item})


def content_hash(value: Tensor | np.ndarray) -> str:
    """Return the SHA-256, in hex, of an array's dtype, shape and content."""
    tensor = value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value))
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
