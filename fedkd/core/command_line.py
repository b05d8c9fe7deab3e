"""The text of a command line: its options, and their order."""

from __future__ import annotations

from collections.abc import Sequence

from fedkd.core.errors import FedKDError

SHORT = ("-c", "-h")
"""Options of a single letter."""


def put_classes_first(args: Sequence[str]) -> list[str]:
    """Put the options of a class behind the option that chooses the class: the parser drops those before it in silence.

    ``--data.partitioner.alpha 0.5 --data.partitioner Shards`` becomes ``--data.partitioner Shards
    --data.partitioner.alpha 0.5``, about which the parser says that `Shards` has no such option.

    Args:
        args: Of a subcommand, ``--NAME VALUE`` or ``--NAME=VALUE``.

    Raises:
        FedKDError: If the option that comes later is null, which has no options.
    """
    groups = by_option(args)
    names = [group[0].removeprefix("--").split("=")[0] for group in groups]
    behind: dict[int, list[list[str]]] = {}  # by the position of the option that chooses a class
    for position, (name, group) in enumerate(zip(names, groups, strict=True)):
        chosen = [
            later
            for later in range(position + 1, len(groups))
            if "." in names[later] and name.startswith(f"{names[later]}.")
        ]
        if not chosen:
            continue
        what, value = groups[chosen[-1]][0], " ".join(groups[chosen[-1]][1:]) or groups[chosen[-1]][0].partition("=")[2]
        if value in ("null", "None"):
            raise FedKDError(
                f"{group[0].split('=')[0]} is dropped by the later {what.split('=')[0]} {value}: leave one out."
            )
        behind.setdefault(chosen[-1], []).append(group)
        groups[position] = []
    ordered = [part for position, group in enumerate(groups) for part in (group, *behind.get(position, []))]
    found = [each for group in ordered for each in group]
    return found if found == list(args) else put_classes_first(found)  # again for the options of an inner class


def is_option(argument: str) -> bool:
    """Whether an argument names an option, and is no value such as -1."""
    return argument.startswith("--") or argument in SHORT


def by_option(args: Sequence[str]) -> list[list[str]]:
    """Cut arguments before each option, so that its values stay with it."""
    groups: list[list[str]] = []
    for each in args:
        if is_option(each) or not groups:
            groups.append([])
        groups[-1].append(each)
    return groups
