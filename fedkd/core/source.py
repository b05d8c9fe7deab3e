"""The code that a class runs: its own, and what that names of its module and of the user's others."""

from __future__ import annotations

import ast
import dis
import enum
import hashlib
import inspect
import re
import sys
import sysconfig
import textwrap
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedkd.core.tensors import content_hash

LIBRARIES = frozenset({"abc", "builtins", "fedkd", "peft", "timm", "torch", "torchvision", "transformers"})
"""Packages whose classes count by name and version; of all other classes the code itself counts."""

_INSTALLED = tuple({sysconfig.get_path(kind) for kind in ("purelib", "platlib", "stdlib")})
_CONSTANTS = (bool, int, float, complex, str, bytes, type(None))
_MISSING = object()

Write = Callable[[str, Any], str | None]
"""A function that writes down an object that code names, given the name and the object. None leaves it out."""


def is_ours(thing: Any) -> bool:
    """Whether a class or a function comes from one of `LIBRARIES`."""
    return str(getattr(thing, "__module__", None)).split(".")[0] in LIBRARIES


def is_library(thing: Any) -> bool:
    """Whether a class or a function comes from an installed package or from Python itself, not from the user."""
    module = str(getattr(thing, "__module__", None))  # None for some built-in functions; some methods have none
    file = getattr(sys.modules.get(module), "__file__", None)
    return module == "None" or _is_installed(module, file)


def written(value: Any) -> str | None:
    """Write down constants, tensors and arrays, also in lists and dictionaries, by content; None for other objects.

    A path is none of these: a run may go on where its folder was moved.
    """
    if isinstance(value, Tensor | np.ndarray | np.generic):
        array = value if isinstance(value, Tensor) else np.asarray(value)
        return f"{type(value).__name__} {content_hash(array)}"
    if isinstance(value, enum.Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if isinstance(value, re.Pattern):  # its repr is cut
        return repr((value.pattern, value.flags))
    if isinstance(value, Mapping):
        value = [*value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        items = [written(item) for item in value]
        if None in items:
            return None
        return repr(sorted(map(str, items)) if isinstance(value, set | frozenset) else items)
    return repr(value) if isinstance(value, (*_CONSTANTS, torch.dtype, torch.device)) else None


def _by_content(_name: str, value: Any) -> str | None:
    return written(value)


def code_hash(thing: type | FunctionType) -> str:
    """Return a hash of a user's class or function: its code, and the code and data of the user's that it names.

    A function counts by what it compiles to, for the source of a lambda is the whole line that it stands on.

    Returns:
        16 hex digits, the same in every process of one version of Python.
    """
    if isinstance(thing, type):
        text = "".join(source_of(base) for base in thing.__mro__ if not is_library(base))
    else:
        text = "\n".join([repr(compiled(thing.__code__)), *sources_named_by(thing)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def source_of(cls: type, write: Write = _by_content) -> str:
    """Return the source of a class and of the functions, classes, constants and objects that it names, at any depth.

    What is named counts where it is of the user's, not of an installed package. Names that are only known when the
    code runs, as by ``getattr``, are not followed.

    Args:
        cls: The class.
        write: Writes down the objects; by default those that `written` knows.
    """
    return "\n".join(_sources(cls, set(), write))


def sources_named_by(function: FunctionType, write: Write = _by_content) -> list[str]:
    """Return what `source_of` would add for the names in a function's code, without the function's own code."""
    return list(_sources_of_named(function, {id(function)}, write))


def compiled(code: CodeType) -> tuple[Any, ...]:
    """Return instructions, names and constants, those of inner functions too."""
    return (code.co_code, code.co_names, tuple(map(_constant, code.co_consts)))


def _constant(item: Any) -> Any:
    if isinstance(item, CodeType):
        return compiled(item)
    # the order of a set of texts is another one in every process
    return sorted(map(repr, item)) if isinstance(item, frozenset) else repr(item)


def _sources(thing: type | FunctionType, seen: set[int], write: Write) -> Iterator[str]:
    if id(thing) in seen:
        return
    seen.add(id(thing))
    functions = [thing] if isinstance(thing, FunctionType) else _functions_of(thing)
    try:
        source = inspect.getsource(thing)
    except (OSError, TypeError):  # typed into an interpreter
        yield repr([compiled(function.__code__) for function in functions])
        yield from _values_within(thing, functions, seen, write)
    else:
        yield source
        around = functions[0].__globals__ if functions else vars(sys.modules.get(thing.__module__, object))
        yield from _found_at(_paths_when_defined(source), around, seen, write)
    for function in functions:
        yield from _sources_of_named(function, seen, write)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if name != "__class__":  # of super()
                yield from _named(name, contents(cell), [], seen, write)


def _sources_of_named(function: FunctionType, seen: set[int], write: Write) -> Iterator[str]:
    """Yield what the names in a function's code refer to."""
    names = sorted(_names(function.__code__))
    for name in names:
        if not _is_object(function.__globals__.get(name)):
            yield from _named(name, function.__globals__.get(name, _MISSING), names, seen, write)
    for path in sorted(_paths(function.__code__)):
        name, value = _follow(path, function.__globals__)
        if name.count(".") > 1 or _is_object(value):  # all others are found by their names, above
            yield from _named(name, value, [], seen, write)


def _found_at(paths: set[tuple[str, ...]], around: Mapping[str, Any], seen: set[int], write: Write) -> Iterator[str]:
    for path in sorted(paths):
        name, value = _follow(path, around)
        yield from _named(name, value, [], seen, write)


def _values_within(
    thing: type | FunctionType, functions: list[FunctionType], seen: set[int], write: Write
) -> Iterator[str]:
    """Yield a class's attributes and the defaults of functions, which code without a source does not show."""
    own = {} if isinstance(thing, FunctionType) else vars(thing)
    for name, value in sorted(own.items()):
        if not name.startswith(("__", "_abc_")) and not hasattr(value, "__get__"):
            yield from _named(name, value, [], seen, write)
    for function in functions:
        defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        for value in defaults:
            yield from _named(f"{function.__name__} by default", value, [], seen, write)


def _named(name: str, value: Any, names: list[str], seen: set[int], write: Write) -> Iterator[str]:
    """Yield the object that a name in code refers to; for a module, the attributes that the same code uses."""
    value = _unwrapped(value)
    if isinstance(value, ModuleType):
        if not _is_installed(value.__name__, getattr(value, "__file__", None)):
            for inner in names:
                found = vars(value).get(inner, _MISSING)
                if not isinstance(found, ModuleType) and not _is_object(found):
                    yield from _named(f"{name}.{inner}", found, [], seen, write)
    elif isinstance(value, type | FunctionType):
        for each in value.__mro__ if isinstance(value, type) else [value]:
            module = sys.modules.get(each.__module__)
            if not is_ours(each) and not _is_installed(each.__module__, getattr(module, "__file__", None)):
                yield from _sources(each, seen, write)
    elif _is_constant(value):
        yield f"{name} = {sorted(map(repr, value)) if isinstance(value, set | frozenset) else repr(value)}"
    elif isinstance(value, partial):
        for part in (value.func, *value.args, *value.keywords.values()):
            yield from _named(name, part, [], seen, write)
    elif _is_object(value) and id(value) not in seen:
        seen.add(id(value))
        if (text := write(name, value)) is not None:
            yield f"{name} = {text}"


def _is_object(value: Any) -> bool:
    """Whether a value is none of what has a source or is a constant, nor a library's function."""
    value = _unwrapped(value)
    if value is _MISSING or isinstance(value, ModuleType | type | FunctionType) or _is_constant(value):
        return False
    return not (hasattr(value, "__name__") and is_library(value))


def _unwrapped(value: Any) -> Any:
    """Look through a decorator, such as lru_cache."""
    return inspect.unwrap(value) if callable(value) and not isinstance(value, type) else value


def contents(cell: Any) -> Any:
    """Return what is in a variable that a function closes over, None if it has no value yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


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


def _paths(code: CodeType) -> set[tuple[str, ...]]:
    """Return the global names that code loads, each with the attributes that it takes of it, as ``("numpy", "pi")``.

    `_names` also has the attributes of all other objects. A module's variable may have the name of one by chance.
    """
    found: set[tuple[str, ...]] = set()
    path: tuple[str, ...] = ()
    for each in dis.get_instructions(code):
        if path and each.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            path = (*path, each.argval)
            continue
        found |= {path} if path else set()
        path = (each.argval,) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME") else ()
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return found.union(*map(_paths, inner))


def _paths_when_defined(source: str) -> set[tuple[str, ...]]:
    """Return the names, as `_paths` does, that run with a definition: decorators, defaults, a class's attributes."""
    try:
        todo: list[ast.AST | None] = [ast.parse(textwrap.dedent(source))]
    except SyntaxError:  # a part of a statement, such as the line of a lambda
        return set()
    found: set[tuple[str, ...]] = set()
    while todo:
        node = todo.pop()
        path: list[str] = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            todo += [*getattr(node, "decorator_list", []), *node.args.defaults, *node.args.kw_defaults]
            continue
        if isinstance(node, ast.ClassDef):
            todo += [*node.decorator_list, *node.body]
            continue
        if isinstance(node, ast.AnnAssign):
            todo.append(node.value)
            continue
        while isinstance(node, ast.Attribute):
            path.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name):
            found.add((node.id, *reversed(path)))
        elif node is not None:
            todo += ast.iter_child_nodes(node)
    return found


def _follow(path: tuple[str, ...], around: Mapping[str, Any]) -> tuple[str, Any]:
    """Return what a path of names leads to, through the user's modules, and the part of the path that leads there."""
    value, used = around.get(path[0], _MISSING), 1
    while isinstance(value, ModuleType) and used < len(path):
        if _is_installed(value.__name__, getattr(value, "__file__", None)):
            break
        value, used = vars(value).get(path[used], _MISSING), used + 1
    return ".".join(path[:used]), value


def _is_installed(module: str, file: str | None) -> bool:
    name = module.split(".")[0]
    return name in LIBRARIES or name in sys.stdlib_module_names - {"__main__"} or str(file).startswith(_INSTALLED)


def _is_constant(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_constant, [*value, *value.values()]))
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_constant, value))
    return isinstance(value, _CONSTANTS)
