"""``fedkd students``: the students that have a name, and what each costs."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from fedkd.cli.plain import PlainParser
from fedkd.core.errors import MAX_PIXELS, FedKDError, check_range, in_one_line

EPILOG = """Besides the short names, any network of three libraries is a student:
  torchvision/NAME   any classifier of torchvision
  timm/NAME          any network of timm (pip install fedkd[timm])
  hf/ID              any image classifier of the HuggingFace hub, or of a folder with a config.json
With the option pretrained: true they start from pretrained weights.

fedkd students 'torchvision/*mobile*' hf/microsoft/resnet-18 --image_size 64
In a configuration: model.student NAME, model.student_options {norm: group}."""

MAX_CHANNELS = 1000
"""More channels of an image are a mistake."""

MAX_MEASURED = 40
"""Of more students than so many a pattern lists the names alone: to build and time them takes minutes."""


def make_parser() -> PlainParser:
    """Return the parser of ``fedkd students``."""
    parser = PlainParser("students", epilog=EPILOG)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="students to measure, or patterns such as 'timm/*vit*' (default: the short names)",
    )
    parser.add_argument("--image_size", type=int, default=32, metavar="PIXELS", help="height and width (default: 32)")
    parser.add_argument("--in_channels", type=int, default=3, metavar="C", help="1 is gray, 3 is color (default: 3)")
    parser.add_argument("--num_classes", type=int, default=10, metavar="K", help="number of classes (default: 10)")
    return parser


def run(args: Sequence[str]) -> None:
    """Parse the arguments after ``fedkd students`` and print the table.

    Raises:
        FedKDError: If an argument is wrong.
    """
    options = make_parser().parse_args(list(args))
    from fedkd import students
    from fedkd.students.registry import SMALLEST

    check_range("--image_size", options.image_size, low=SMALLEST, high=MAX_PIXELS)
    check_range("--in_channels", options.in_channels, low=1, high=MAX_CHANNELS)
    check_range("--num_classes", options.num_classes, low=1)

    named = [name for name in options.names if not is_pattern(name)]
    matched = [name for pattern in options.names if is_pattern(pattern) for name in matching(pattern)]
    for name in named:
        students.check_name(name)
        students.check_source(name)
    wanted = list(dict.fromkeys([*named, *matched])) or sorted(students.students)
    if len(wanted) > MAX_MEASURED:
        print("\n".join(wanted))
        print(f"\n{len(wanted):,} students. What they cost is measured for at most {MAX_MEASURED}: narrow the pattern.")
        return
    print_table(wanted, set(named), options)
    if not options.names:
        print(*(f"{prefix:<17} {about}" for prefix, about in others()), sep="\n")


def is_pattern(name: str) -> bool:
    """Whether a name has a wildcard, and stands for those that it matches."""
    return any(character in name for character in "*?[")


def matching(pattern: str) -> list[str]:
    """Return the students that a pattern matches, as in a shell; a ``*`` matches every character.

    Raises:
        FedKDError: If there is none.
    """
    from fedkd.students import students
    from fedkd.students.registry import FAMILIES, family_of

    family = family_of(pattern)
    if family is not None and family.names is None:
        raise FedKDError(f"{pattern!r}: the names behind {family.prefix} cannot be listed. Give one, or a folder.")
    families = FAMILIES if family is None else (family,)
    found = sorted(students) if family is None else []
    found += [each.prefix + name for each in families if each.names is not None for name in each.names()]
    if not found and family is not None:
        family.check(pattern.removeprefix(family.prefix))  # says that the library is not installed
    matches = [name for name in found if fnmatchcase(name, pattern)]
    if not matches:
        plain = "".join(character for character in pattern if character not in "*?[]")
        near = get_close_matches(plain, found, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        prefix = "torchvision/" if family is None else family.prefix
        raise FedKDError(f"No student matches {pattern!r}.{hint} fedkd students '{prefix}*' lists those of {prefix}.")
    return matches


def others() -> list[tuple[str, str]]:
    """Return the libraries whose networks are students by name, and how to list them."""
    from fedkd.students.registry import FAMILIES

    return [(f"{family.prefix}{family.member}", family.about) for family in FAMILIES]


def print_table(names: Sequence[str], named: set[str], options: Any) -> None:
    """Print what students cost.

    Args:
        names: Of all rows.
        named: Those that the user named, one by one: what cannot be measured of these is an error.
        options: ``num_classes``, ``in_channels`` and ``image_size``.

    Raises:
        FedKDError: If a named one cannot be built for such images.
    """
    from rich.table import Table

    from fedkd import students
    from fedkd.cli.display import make_console
    from fedkd.students.cost import measure_cost

    shape = (options.in_channels, options.image_size, options.image_size)
    table = Table(title=f"students for {options.num_classes} classes, images {shape}", title_justify="left")
    table.add_column("name")
    for column in ("parameters", "MACs an image", "CPU ms an image"):
        table.add_column(column, justify="right")
    for name in names:
        try:
            student = students.create(name, options.num_classes, options.in_channels, options.image_size)
            cost = measure_cost(student, shape)
        except (FedKDError, RuntimeError) as error:  # a network that needs larger images
            if name in named:
                raise FedKDError(f"{name} cannot be measured on images {shape}: {in_one_line(error)}") from error
            table.add_row(name, f"(not for such images) {in_one_line(error)}")
            continue
        table.add_row(name, f"{cost.parameters:,}", f"{cost.macs:,}", f"{cost.milliseconds:.1f}")
    make_console().print(table)
