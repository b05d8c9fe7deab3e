"""Teachers by short name: fedkd's own, those that were registered, and those that installed packages announce."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from fedkd.core.errors import FedKDError, MissingResourceError, unknown_name
from fedkd.core.registry import Registry

if TYPE_CHECKING:
    from fedkd.teachers.teacher import Teacher

F = TypeVar("F", bound="Callable[..., Teacher]")

GROUP = "fedkd.teachers"
"""The entry points' group: in a package's pyproject.toml, ``[project.entry-points."fedkd.teachers"]``."""


@dataclass(frozen=True)
class TeacherEntry:
    """A teacher that can be asked for by name.

    Args:
        name: The short name.
        factory: Makes the teacher; called with the checkpoint first, if there is one, and then with options by keyword.
        checkpoint: A HuggingFace hub id or a folder, or "" where the factory needs none.
        family: What kind of network it is, for people to read.
        licence: The weights' licence, by its SPDX name where it has one, as the checkpoint's model card states it.
        image_size: The input's side in pixels, or None.
        parameters: Millions of parameters, both towers together, or None.
    """

    name: str
    factory: Callable[..., Teacher]
    checkpoint: str = ""
    family: str = "custom"
    licence: str = ""
    image_size: int | None = None
    parameters: float | None = None

    def create(self, **options: Any) -> Teacher:
        """Make the teacher; ``options`` go to the factory."""
        from fedkd.teachers.teacher import Teacher

        made = self.factory(*([self.checkpoint] if self.checkpoint else []), **options)
        if not isinstance(made, Teacher):
            raise FedKDError(f"Teacher {self.name!r}: {self.source} must return a fedkd.Teacher, got {made!r}.")
        return made

    @property
    def source(self) -> str:
        """Say where it comes from: the factory's full name, and the checkpoint."""
        factory = f"{self.factory.__module__}.{self.factory.__qualname__}"
        return f"{factory} of {self.checkpoint!r}" if self.checkpoint else factory


class TeacherRegistry(Registry[TeacherEntry]):
    """A registry that knows installed packages too.

    A package announces a teacher by an entry point: its name is the short name, its value a `Teacher` subclass or a
    function that returns one (told more about with `register`). Nothing of it is imported until that name is looked up.
    """

    @cached_property
    def plugins(self) -> dict[str, list[EntryPoint]]:
        """Return the installed packages' entry points by short name; more than one is one too many."""
        found: dict[str, dict[tuple[str, str], EntryPoint]] = {}
        for point in entry_points(group=GROUP):  # a package may be found twice, as installed and as a folder
            found.setdefault(point.name, {}).setdefault((_package(point), point.value), point)
        return {name: list(points.values()) for name, points in found.items()}

    @property
    def registered(self) -> dict[str, TeacherEntry]:
        """Return the entries for which no package has to be imported any more."""
        return dict(self._entries)

    def __getitem__(self, name: str) -> TeacherEntry:
        """Return the entry called ``name``, from its package if need be.

        Raises:
            MissingResourceError: If the package that announces it cannot be imported.
            FedKDError: If there is no such name, or two have it.
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
        """Drop the entry called ``name`` if it is of a factory of the same full name: a notebook's cell ran again."""
        known = self._entries.get(name)
        if known and (known.factory.__module__, known.factory.__qualname__) == (
            factory.__module__,
            factory.__qualname__,
        ):
            del self._entries[name]

    def __contains__(self, name: object) -> bool:
        """Whether ``name`` is registered or announced."""
        return name in self._entries or name in self.plugins

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, sorted."""
        return iter(sorted({*self._entries, *self.plugins}))

    def __len__(self) -> int:
        """Return the number of names."""
        return len({*self._entries, *self.plugins})


def _load(point: EntryPoint) -> Callable[..., Teacher]:
    try:
        factory = point.load()
    except Exception as error:  # whatever a package does when it is imported
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
    licence: str = "",
    image_size: int | None = None,
    parameters: float | None = None,
) -> Callable[[F], F]:
    """Return a decorator that makes a `Teacher` subclass, or a function that returns a teacher, known by ``name``.

    Args:
        name: The short name, for `create`.
        checkpoint: Given to it as its first argument, if not empty.
        family: See `TeacherEntry`, also for what follows.
        licence: The weights' licence.
        image_size: The input's side in pixels.
        parameters: Millions of parameters.

    Raises:
        FedKDError: If the name is already used.
    """

    def decorate(factory: F) -> F:
        teachers.forget(name, factory)
        teachers.add(name, TeacherEntry(name, factory, checkpoint, family, licence, image_size, parameters))
        return factory

    return decorate


def resolve(checkpoint: str) -> str:
    """Return the hub id or folder behind a short name; anything else comes back as it is."""
    return (checkpoint in teachers and teachers[checkpoint].checkpoint) or checkpoint
