"""Teachers by short name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from fedkd.registry import Registry

if TYPE_CHECKING:
    from fedkd.teachers.base import Teacher

F = TypeVar("F", bound="Callable[..., Teacher]")


@dataclass(frozen=True)
class TeacherEntry:
    """A teacher that can be asked for by name.

    Args:
        name: The short name.
        factory: Makes the teacher; called with the checkpoint first, if there is one, and then with options by keyword.
        checkpoint: A HuggingFace hub id or a folder, or "" where the factory needs none.
        family: What kind of network it is, for people to read.
        licence: The weights' licence, by its SPDX name.
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
        return self.factory(*([self.checkpoint] if self.checkpoint else []), **options)


teachers: Registry[TeacherEntry] = Registry("teacher")


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
        teachers.add(name, TeacherEntry(name, factory, checkpoint, family, licence, image_size, parameters))
        return factory

    return decorate


def resolve(checkpoint: str) -> str:
    """Return the hub id or folder behind a short name; anything else comes back as it is."""
    return (checkpoint in teachers and teachers[checkpoint].checkpoint) or checkpoint
