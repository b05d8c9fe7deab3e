"""A family of students: all networks of a library, by ``PREFIX/NAME``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from torch import nn

from fedkd.core.errors import FedKDError


@dataclass(frozen=True)
class Family:
    """All networks of a library.

    Args:
        prefix: Such as ``"timm/"``.
        member: What stands behind it, in a help: ``NAME`` or ``ID``.
        make: A function that makes a student: ``make(name, num_classes, in_channels, image_size, **options)``.
        check: Raises unless there is such a network, as far as can be told without reading files: ``check(name)``.
        names: Returns the names without the prefix, sorted; None where they cannot be known, as those of a hub.
        about: What the networks are, and how to list them, in a few words.
        check_source: Raises unless what a network is made from is there, a folder or what a hub has, given its name and
            options; None where it is made from the library alone.
        portable: Returns the arguments of `fedkd.students.create` that make a student again where there is neither
            folder nor hub, given those that made it, and the student; None where the same ones do.
    """

    prefix: str
    member: str
    make: Callable[..., nn.Module]
    check: Callable[[str], None]
    names: Callable[[], Sequence[str]] | None
    about: str
    check_source: Callable[..., None] | None = None
    portable: Callable[[Mapping[str, Any], nn.Module], dict[str, Any]] | None = None


def unknown_member(prefix: str, name: str, known: Sequence[str]) -> FedKDError:
    """Build the error for a name that a family does not have.

    Args:
        prefix: Of the family.
        name: The unknown name, without the prefix.
        known: The names that there are.
    """
    near = [prefix + each for each in get_close_matches(name, known, n=5)]
    hint = f" Did you mean {near[0]!r}?" if near else ""
    others = f" Near are also {', '.join(near[1:])}." if near[1:] else ""
    return FedKDError(
        f"Unknown student {prefix + name!r}.{hint}{others} fedkd students '{prefix}*' lists all {len(known):,}."
    )
