"""A registry: a mapping from names to objects, used for students and teachers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from fedkd.core.errors import FedKDError, unknown_name

T = TypeVar("T")


class Registry(Generic[T]):
    """A mapping from short names to objects of one kind.

    Args:
        kind: The kind of object, such as ``"student"``, for error messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> None:
        """Register ``entry`` under ``name``.

        Raises:
            FedKDError: If the name is used for another object.
        """
        if self._entries.get(name, entry) is not entry:
            raise FedKDError(f"The {self.kind} name {name!r} is already used by {self._entries[name]!r}.")
        self._entries[name] = entry

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers a class or function under ``name``."""

        def decorate(entry: T) -> T:
            self.add(name, entry)
            return entry

        return decorate

    def __getitem__(self, name: str) -> T:
        """Return the entry called ``name``.

        Raises:
            FedKDError: If the name is unknown. The error suggests the nearest match.
        """
        if name not in self._entries:
            raise unknown_name(self.kind, name, self._entries)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        """Whether ``name`` is registered."""
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, sorted."""
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self._entries)
