"""Packages whose public names are imported on first use, so that importing the package is quick."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, Iterable[str]], modules: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` for a package.

    Args:
        package: Its name.
        homes: For each module the public names that live in it.
        modules: Further names that are modules in the package.
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def find(name: str) -> Any:
        """Import a public name where it lives."""
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(home_of[name]), name)
        setattr(importlib.import_module(package), name, found)
        return found

    def names() -> list[str]:
        """Return the public names."""
        return sorted({*vars(importlib.import_module(package)), *home_of, *modules})

    return find, names


def import_all(package: ModuleType) -> None:
    """Import all public names of a package, as the command line needs to find classes by their short names."""
    for name in package.__all__:
        getattr(package, name)
