"""`describe`: the one way in which a setting is written down.

A run's identity, ``repr``, the saved configuration and the cache's fingerprints all use it, so a setting that changes a
result cannot be in one of them and missing in another.
"""

from __future__ import annotations

import enum
import functools
import inspect
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fedkd.core.source import code_hash, contents, is_library
from fedkd.core.tensors import content_hash

_TORCH_INTERNALS = frozenset(vars(nn.Module()))
_RECORD = "_constructor_arguments"
_BY_TEXT = (bytes, complex, date, time, timedelta, range, slice, re.Pattern, Decimal, Fraction)
"""Types without attributes whose ``repr`` says all of a value."""
_SCHEDULE_STATE = frozenset(
    {
        *("optimizer", "base_lrs", "last_epoch", "verbose", "_step_count", "_last_lr"),
        *("_is_initial", "_initial_step", "_get_lr_called_within_step"),
    }
)
"""Attributes of a learning rate scheduler that say how far it is, or that its optimizer says."""


ADDED = {"added": True}
"""Metadata of a dataclass's field that came later. At its default it is not written down, so an older run goes on."""


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
    """Return the constructor's arguments of a `Configured` object or a dataclass, defaults but those `ADDED` filled in.

    Where the object has a public attribute of an argument's name, its present value counts.
    """
    if is_dataclass(value):
        given = {field: getattr(value, field.name) for field in fields(value) if field.init}
        return {
            field.name: item
            for field, item in given.items()
            if not (field.metadata.get("added") and type(item) is type(field.default) and item == field.default)
        }
    found: dict[str, Any] = {}
    given = vars(value).get(_RECORD, {})
    for name, parameter in inspect.signature(type(value)).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            found |= given.get(name, {})
        elif parameter.kind is parameter.VAR_POSITIONAL:
            found[name] = list(given.get(name, ()))
        elif name in (present := _attributes(value)):
            found[name] = present[name]
        elif name in given:
            found[name] = given[name]
        elif parameter.default is not parameter.empty:
            found[name] = parameter.default
    return found


def _attributes(value: Any) -> dict[str, Any]:
    """Return an object's attributes by name; a module's parameters, buffers and parts included."""
    own = dict(getattr(value, "__dict__", {}))
    if isinstance(value, nn.Module):
        own |= {**value._parameters, **value._buffers, **value._modules}
    return own


def describe(value: Any) -> Any:
    """Write a value down in plain terms: dictionaries, lists, texts, numbers and None.

    The result is the same in every process. A `Configured` object and a dataclass become ``{"class_path": ...,
    "init_args": ...}``; any other object has its attributes under ``"settings"``. A library's classes and functions
    count by their names, the caller's by their code too. An object of the caller's class counts by its arguments alone:
    a run may go on with mended code. Tensors count by their content. Mappings keep their order.

    Args:
        value: A setting: plain values, configured objects, functions, optimizers, Lightning callbacks, modules, ...
    """
    return _describe(value, ())


def _describe(value: Any, within: tuple[int, ...]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum):
        return f"{class_path(type(value))}.{value.name}"
    if isinstance(value, str | PurePath):
        return str(value)
    if isinstance(value, int):
        return int(value)  # jsonargparse has numbers of its own
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))  # JSON has no infinity, and NaN != NaN
    if isinstance(value, _BY_TEXT):
        return repr(value)
    if id(value) in within:
        return f"<{type(value).__qualname__} that holds itself>"
    inner = functools.partial(_describe, within=(*within, id(value)))
    if isinstance(value, list | tuple):
        return [inner(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((inner(item) for item in value), key=repr)
    if isinstance(value, Mapping):
        found = {key if isinstance(key, str) else _line(inner(key)): inner(item) for key, item in value.items()}
        # as pairs where two keys have the same text, such as 1 and "1"
        return found if len(found) == len(value) else [[inner(key), inner(item)] for key, item in value.items()]
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
        # private ones too: that is where a sequence keeps its parts, and a cycle its phases
        state = {name: item for name, item in vars(value).items() if name not in _SCHEDULE_STATE}
        return {"class_path": class_path(type(value)), "settings": inner(state)}
    if isinstance(value, functools.partial):
        return {"call": inner(value.func), "args": inner(value.args), "kwargs": inner(value.keywords)}
    if inspect.isroutine(value):
        return _function(value, inner)
    if isinstance(value, type):
        path = class_path(value)
        return path if is_library(value) else {"class": path, "code": code_hash(value)}
    return _object(value, inner)


def _function(value: Any, inner: Any) -> Any:
    """Write a function down: by its name if it is a library's, else also by its code and the values that it holds."""
    name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    if inspect.ismethod(value):
        return {"function": name, "of": inner(value.__self__)}
    if not inspect.isfunction(value) and hasattr(value, "__wrapped__"):  # as of lru_cache
        return inner(value.__wrapped__)
    if not inspect.isfunction(value) or is_library(value):
        return name
    defaults = {
        parameter.name: parameter.default
        for parameter in inspect.signature(value, follow_wrapped=False).parameters.values()
        if parameter.default is not parameter.empty
    }
    cells = dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=True))
    caught = {name: contents(cell) for name, cell in cells.items()}
    values = inner({**defaults, **caught})
    return {"function": name, "code": code_hash(value), **({"values": values} if values else {})}


def _object(value: Any, inner: Any) -> Any:
    kind = type(value)
    found: dict[str, Any] = {"class_path": class_path(kind)}
    if isinstance(value, Configured) or is_dataclass(value):
        return found | {"init_args": {name: inner(item) for name, item in init_args(value).items()}}
    hidden = _TORCH_INTERNALS if isinstance(value, nn.Module) else frozenset()
    # private ones too: that is where Lightning's callbacks keep their arguments; no parameters, for they are trained
    shown = {
        name: item
        for name, item in _attributes(value).items()
        if name not in hidden and not isinstance(item, nn.Parameter)
    }
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


def one_line(value: Any, *, paths: bool = False) -> str:
    """Write a value down in one line, as in ``KD(ce_weight=0.1, kd_weight=0.9, temperature=2.0)``.

    Args:
        value: A setting.
        paths: Whether classes that are neither fedkd's nor torch's stand with the module that they come from, so that
            one is not taken for another of the same name.
    """
    return _line(describe(value), paths)


def _line(plain: Any, paths: bool = False) -> str:
    if isinstance(plain, list):
        return f"[{', '.join(_line(item, paths) for item in plain)}]"
    if not isinstance(plain, dict):
        return repr(plain)
    match plain:  # any dictionary may have some of these keys
        case {"class_path": str(path), "groups": [*groups]} if len(plain) == 2 and all(map(_is_settings, groups)):
            options = dict.fromkeys(_options(group, paths) for group in groups)
            return f"{_name(path, paths)}({'; '.join(options)})"
        case {"class_path": str(path), "init_args": settings} | {"class_path": str(path), "settings": settings} if len(
            plain
        ) == 2 and _is_settings(settings):
            return f"{_name(path, paths)}({_items(settings, paths)})"
        case {"class_path": str(path)} if len(plain) == 1:
            return f"{_name(path, paths)}()"
        case {"class": str(path)} | {"function": str(path)} if _is_code(plain):
            held = f", {_items(plain['values'], paths)}" if "values" in plain else ""
            what = _line(plain["of"], paths) if "of" in plain else plain["code"]
            return f"<{path.split('.')[-1].strip('<>')} {what}{held}>"  # <> of <lambda>
    return f"{{{', '.join(f'{key!r}: {_line(item, paths)}' for key, item in plain.items())}}}"


def _is_settings(plain: Any) -> bool:
    return isinstance(plain, dict) and all(isinstance(name, str) for name in plain)


def _is_code(plain: Mapping[str, Any]) -> bool:
    """Whether a dictionary describes a class or a function."""
    whole = len(plain.keys() - {"values"}) == 2 and (isinstance(plain.get("code"), str) or "of" in plain)
    return (
        whole
        and _is_settings(plain.get("values", {}))
        and plain.keys() <= {"class", "function", "code", "of", "values"}
    )


def _name(path: str, paths: bool) -> str:
    return path if paths and not path.startswith(("fedkd.", "torch.")) else path.split(".")[-1]


def _items(settings: Mapping[str, Any], paths: bool) -> str:
    return ", ".join(f"{name}={_line(item, paths)}" for name, item in settings.items())


def _options(group: Mapping[str, Any], paths: bool) -> str:
    """Show those of an optimizer's options that are on and not zero."""
    return _items({name: item for name, item in group.items() if item}, paths)
