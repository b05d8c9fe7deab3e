"""The code that a class runs: its own, and what that names of its module and of the user's others."""

from __future__ import annotations

import hashlib
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


def is_library(thing: Any) -> bool:
    """Whether a class or a function comes from an installed package or from Python itself, not from the user."""
    module = str(thing.__module__)  # None for some built-in functions
    file = getattr(sys.modules.get(module), "__file__", None)
    return module == "None" or _is_installed(module, file)


def code_hash(thing: type | FunctionType) -> str:
    """Return a hash of a user's class or function: its code, and the code and constants of the user's that it names.

    A function counts by what it compiles to, for the source of a lambda is the whole line that it stands on.

    Returns:
        16 hex digits, the same in every process of one version of Python.
    """
    if isinstance(thing, type):
        text = "".join(source_of(base) for base in thing.__mro__ if not is_library(base))
    else:
        text = "\n".join([repr(compiled(thing.__code__)), *_sources_of_named(thing, {id(thing)})])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def source_of(cls: type) -> str:
    """Return the source of a class and of the functions, classes and constants that it names, at any depth.

    What is named counts where it is code of the user's, not of an installed package. Names that are only known when the
    code runs, as by ``getattr``, are not followed.
    """
    return "\n".join(_sources(cls, set()))


def compiled(code: CodeType) -> tuple[Any, ...]:
    """Return instructions, names and constants, those of inner functions too."""
    return (code.co_code, code.co_names, tuple(map(_constant, code.co_consts)))


def _constant(item: Any) -> Any:
    if isinstance(item, CodeType):
        return compiled(item)
    # the order of a set of texts is another one in every process
    return sorted(map(repr, item)) if isinstance(item, frozenset) else repr(item)


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
        yield from _sources_of_named(function, seen)


def _sources_of_named(function: FunctionType, seen: set[int]) -> Iterator[str]:
    """Yield what the names in a function's code refer to."""
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
