"""The code that a class runs: its own, and what that names of its module and of the user's others."""

from __future__ import annotations

import inspect
import sys
import sysconfig
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

LIBRARIES = frozenset({"abc", "builtins", "fedkd", "peft", "timm", "torch", "torchvision", "transformers"})
"""Packages whose classes count by name and version; of all other classes the code itself counts."""

_INSTALLED = tuple({sysconfig.get_path(kind) for kind in ("purelib", "platlib", "stdlib")})
_CONSTANTS = (bool, int, float, complex, str, bytes, type(None))


def is_ours(thing: Any) -> bool:
    """Whether a class or a function comes from one of `LIBRARIES`."""
    return str(thing.__module__).split(".")[0] in LIBRARIES


def source_of(cls: type) -> str:
    """Return the source of a class and of the functions, classes and constants that it names, at any depth.

    What is named counts where it is code of the user's, not of an installed package. Names that are only known when the
    code runs, as by ``getattr``, are not followed.
    """
    return "\n".join(_sources(cls, set()))


def compiled(code: CodeType) -> tuple[Any, ...]:
    """Return instructions, names and constants, those of inner functions too."""
    constants = tuple(compiled(item) if isinstance(item, CodeType) else repr(item) for item in code.co_consts)
    return (code.co_code, code.co_names, constants)


def _sources(thing: type | FunctionType, seen: set[int]) -> Iterator[str]:
    if id(thing) in seen:
        return
    seen.add(id(thing))
    functions = [thing] if isinstance(thing, FunctionType) else _functions_of(thing)
    try:
        yield inspect.getsource(thing)
    except (OSError, TypeError):  # typed into an interpreter
        yield repr([compiled(function.__code__) for function in functions])
    for function in functions:
        names = sorted(_names(function.__code__))
        for name in names:
            if name in function.__globals__:
                yield from _named(name, function.__globals__[name], names, seen)


def _named(name: str, value: Any, names: list[str], seen: set[int]) -> Iterator[str]:
    """Yield the object that a name in code refers to; for a module, the attributes that the same code uses."""
    value = inspect.unwrap(value) if callable(value) and not isinstance(value, type) else value  # as of lru_cache
    if isinstance(value, ModuleType):
        if not _is_installed(value.__name__, getattr(value, "__file__", None)):
            for inner in names:
                if inner in vars(value) and not isinstance(vars(value)[inner], ModuleType):
                    yield from _named(f"{name}.{inner}", vars(value)[inner], [], seen)
    elif isinstance(value, type | FunctionType):
        module = sys.modules.get(value.__module__)
        if not is_ours(value) and not _is_installed(value.__module__, getattr(module, "__file__", None)):
            yield from _sources(value, seen)
    elif _is_constant(value):
        yield f"{name} = {sorted(map(repr, value)) if isinstance(value, set | frozenset) else repr(value)}"


def _functions_of(cls: type) -> list[FunctionType]:
    """Return the functions of a class, looking through what decorates them."""
    found = []
    for part in vars(cls).values():
        for inner in (part, getattr(part, "__func__", None), getattr(part, "fget", None)):
            inner = inspect.unwrap(inner) if callable(inner) else inner
            if isinstance(inner, FunctionType):
                found.append(inner)
    return found


def _names(code: CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _is_installed(module: str, file: str | None) -> bool:
    name = module.split(".")[0]
    return name in LIBRARIES or name in sys.stdlib_module_names - {"__main__"} or str(file).startswith(_INSTALLED)


def _is_constant(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_constant, [*value, *value.values()]))
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_constant, value))
    return isinstance(value, _CONSTANTS)
