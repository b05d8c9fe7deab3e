"""Teachers by short name: fedkd's own, registered ones, and those that installed packages provide."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fedkd.core.errors import FedKDError, MissingResourceError, unknown_name
from fedkd.core.registry import Registry

if TYPE_CHECKING:
    from fedkd.teachers.teacher import Teacher

F = TypeVar("F", bound="Callable[..., Teacher]")

GROUP = "fedkd.teachers"
"""The entry point group: ``[project.entry-points."fedkd.teachers"]`` in a package's pyproject.toml."""


@dataclass(frozen=True)
class TeacherEntry:
    """A teacher with a short name.

    Args:
        name: The short name.
        factory: Builds the teacher. It is called with the checkpoint, if there is one, and with options by keyword. Or
            its place, ``module:name``, from which it is imported when it is used.
        checkpoint: A HuggingFace hub id or a folder; "" if the factory needs none.
        family: The kind of network, shown to users.
        license: The weights' license as the model card states it, by its SPDX name if it has one.
        image_size: Side of the input in pixels, or None.
        parameters: Millions of parameters, both towers together, or None.
    """

    name: str
    factory: Callable[..., Teacher] | str
    checkpoint: str = ""
    family: str = "custom"
    license: str = ""
    image_size: int | None = None
    parameters: float | None = None

    def load(self) -> Callable[..., Teacher]:
        """Return the factory itself."""
        if not isinstance(self.factory, str):
            return self.factory
        module, _, name = self.factory.partition(":")
        return getattr(importlib.import_module(module), name)

    def create(self, **options: Any) -> Teacher:
        """Build the teacher. ``options`` go to the factory."""
        from fedkd.teachers.teacher import Teacher

        made = self.load()(*([self.checkpoint] if self.checkpoint else []), **options)
        if not isinstance(made, Teacher):
            raise FedKDError(f"Teacher {self.name!r}: {self.source} must return a fedkd.Teacher, got {made!r}.")
        return made

    @property
    def source(self) -> str:
        """Return the origin for error messages: the factory's full name, and the checkpoint."""
        factory = _full_name(self.factory)
        return f"{factory} of {self.checkpoint!r}" if self.checkpoint else factory


class TeacherRegistry(Registry[TeacherEntry]):
    """A registry that also finds the teachers of installed packages.

    A package provides a teacher through an entry point. Its name is the short name. Its value is a `Teacher` subclass
    or a function that returns a teacher; `register` adds a description. The package is imported only when the name is
    used.
    """

    @cached_property
    def plugins(self) -> dict[str, list[EntryPoint]]:
        """Return the entry points of installed packages, by short name. Using a name with several raises an error."""
        found: dict[str, dict[tuple[str, str], EntryPoint]] = {}
        for point in entry_points(group=GROUP):  # a package can be found twice: installed, and as a folder
            found.setdefault(point.name, {}).setdefault((_package(point), point.value), point)
        return {name: list(points.values()) for name, points in found.items()}

    @property
    def registered(self) -> dict[str, TeacherEntry]:
        """Return the registered entries, without importing any package."""
        return dict(self._entries)

    def __getitem__(self, name: str) -> TeacherEntry:
        """Return the entry called ``name``. Imports its package if a package provides it.

        Raises:
            MissingResourceError: If the package cannot be imported.
            FedKDError: If the name is unknown, or used twice.
        """
        points = self.plugins.get(name, [])
        if len(points) > 1:
            sources = " and ".join(f"{_package(point)} ({point.value})" for point in points)
            raise FedKDError(f"The teacher name {name!r} is used twice, by the packages {sources}: uninstall one.")
        if points:
            factory = _load(points[0])
            entry = self._entries.setdefault(name, TeacherEntry(name, factory))
            if entry.factory is not factory:
                raise FedKDError(
                    f"The teacher name {name!r} is used twice, by {entry.source} and by the package "
                    f"{_package(points[0])} ({points[0].value})."
                )
        if name not in self._entries:
            raise unknown_name(self.kind, name, self)
        return self._entries[name]

    def forget(self, name: str, factory: Callable[..., Teacher]) -> None:
        """Remove the entry ``name`` if its factory has the same full name, as when a notebook cell runs again."""
        known = self._entries.get(name)
        if known and _full_name(known.factory) == _full_name(factory):
            del self._entries[name]

    def __contains__(self, name: object) -> bool:
        """Whether ``name`` is registered, or provided by a package."""
        return name in self._entries or name in self.plugins

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, sorted."""
        return iter(sorted({*self._entries, *self.plugins}))

    def __len__(self) -> int:
        """Return the number of names."""
        return len({*self._entries, *self.plugins})


def _full_name(factory: Callable[..., Teacher] | str) -> str:
    if isinstance(factory, str):
        return factory.replace(":", ".")
    return f"{factory.__module__}.{factory.__qualname__}"


def _load(point: EntryPoint) -> Callable[..., Teacher]:
    try:
        factory = point.load()
    except Exception as error:  # importing a package can raise anything
        raise MissingResourceError(
            f"Teacher {point.name!r} of the package {_package(point)} cannot be imported from {point.value}: "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    if not callable(factory):
        raise FedKDError(
            f"Teacher {point.name!r} of the package {_package(point)}: {point.value} is not a class or function."
        )
    return factory


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.module


teachers = TeacherRegistry("teacher")


def register(
    name: str,
    *,
    checkpoint: str = "",
    family: str = "custom",
    license: str = "",
    image_size: int | None = None,
    parameters: float | None = None,
) -> Callable[[F], F]:
    """Return a decorator that registers a `Teacher` subclass, or a function that returns a teacher, under ``name``.

    Args:
        name: The short name, for `create`.
        checkpoint: Passed to the factory as its first argument, if not empty.
        family: The kind of network, shown to users.
        license: The weights' license.
        image_size: Side of the input in pixels.
        parameters: Millions of parameters.

    Raises:
        FedKDError: If the name is already used.
    """

    def decorate(factory: F) -> F:
        teachers.forget(name, factory)
        teachers.add(name, TeacherEntry(name, factory, checkpoint, family, license, image_size, parameters))
        return factory

    return decorate


def name_of(checkpoint: str) -> str:
    """Return the short name of a teacher that comes with a package as a folder; another checkpoint is its own name."""
    if not Path(checkpoint).is_absolute():
        return checkpoint
    return next((entry.name for entry in teachers.registered.values() if entry.checkpoint == checkpoint), checkpoint)


def resolve(checkpoint: str) -> str:
    """Return the hub id or folder of a short name. Any other name is returned unchanged."""
    return (checkpoint in teachers and teachers[checkpoint].checkpoint) or checkpoint
