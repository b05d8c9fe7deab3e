"""The help of the subcommands that have sections: one screen, and each section's options by ``--help SECTION``."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from fedkd.cli.errors import classes_of, subclass_names
from fedkd.cli.subcommands import SECTIONS
from fedkd.core.errors import unknown_name

ABOUT = {
    "data": "the data set, the clients and how they share it, batches, augmentation",
    "model": "the student, the teacher, the loss, the optimizer",
    "federation": "rounds, cohorts, the strategy, callbacks, where clients run",
    "trainer": "arguments of each client's Lightning Trainer, and the run's logger",
}
"""What each section is about, in the order of the help."""


def section_asked_for(args: Sequence[str]) -> str | None:
    """Return the section whose help is asked for: ``fit --help data`` or ``fit --data.help``."""
    for option, value in pairwise([*args, ""]):
        if option in ("--help", "-h") and value and not value.startswith("-"):
            return value
        if (found := re.fullmatch(r"--(\w+)\.help", option)) and found[1] in ABOUT:
            return found[1]
    return None


def short_help(parser: ArgumentParser, usage: str, description: str) -> str:
    """Return the help of a subcommand: its own options, and the names of those of each section.

    Args:
        parser: The subcommand's.
        usage: How it is called.
        description: What it does.
    """
    name = parser.prog.split()[-1]
    parts = [f"usage: {usage}", "", description, ""]
    for action in parser._actions:
        if "." not in action.dest and action.dest not in ABOUT and action.option_strings:
            text = option_text(action.help) or "Print the configuration with all defaults, and end."
            parts += _wrapped(", ".join(action.option_strings), text)
    for section, about in ABOUT.items():
        if section in SECTIONS[name] and (options := list(options_of(parser, section))):
            names = [_with_default(key.partition(".")[2], action, section) for key, action in options]
            parts += ["", f"--{section}.*  {about}"]
            parts += textwrap.wrap(", ".join(names), _width(), initial_indent="    ", subsequent_indent="    ")
    parts += [
        "",
        f"fedkd {name} --help SECTION explains the options of a section, --SECTION.OPTION.help CLASS those of a class,",
        "as in --data.partitioner.help Dirichlet. --print_config prints all options with their values.",
    ]
    return "\n".join(parts) + "\n"


def section_help(parser: ArgumentParser, section: str) -> str:
    """Return what each option of a section does, and the classes to choose from.

    Raises:
        FedKDError: If the subcommand has no such section.
    """
    known = [name for name in ABOUT if name in SECTIONS[parser.prog.split()[-1]]]
    if section not in known:
        raise unknown_name("section", section, known)
    parts = [f"--{section}.*  {ABOUT[section]}", ""]
    for name, action in options_of(parser, section):
        parts += _wrapped(f"--{name} (default: {default_text(action.default)})", option_text(action.help))
        if names := choices(parser, name):
            parts += _wrapped("", f"One of {', '.join(names)}.")
    return "\n".join(parts) + "\n"


def options_of(parser: ArgumentParser, section: str) -> Iterator[tuple[str, Any]]:
    """Yield the options of a section, with their actions."""
    for action in parser._actions:
        is_option = f"--{action.dest}" in action.option_strings  # a link between two options is none
        if action.dest.startswith(f"{section}.") and is_option and not action.dest.endswith(".help"):
            yield action.dest, action


def choices(parser: ArgumentParser, name: str) -> list[str]:
    """Return the short names of fedkd's classes that an option takes."""
    bases = [each for each in classes_of(parser, name) if each.__module__.startswith("fedkd.")]
    return sorted({each for base in bases for each in subclass_names(base)})


def _with_default(name: str, action: Any, section: str) -> str:
    plain = action.default is None or isinstance(action.default, bool) or section == "trainer"
    return name if plain else f"{name} ({default_text(action.default)})"


def default_text(value: Any) -> str:
    """Return a default as YAML shows it; of an object, its class's name."""
    found = vars(value) if isinstance(value, Namespace) else value
    if isinstance(found, Mapping) and "class_path" in found:
        return str(found["class_path"]).rpartition(".")[2]
    plain = {None: "null", True: "true", False: "false"}
    return plain[found] if found is None or isinstance(found, bool) else str(found)


def option_text(text: str | None) -> str:
    """Return what an option does, as plain text in one line."""
    return " ".join((text or "").replace("``", "").replace("`", "").split())


def _wrapped(option: str, text: str) -> list[str]:
    lines = [f"  {option}"] if option else []
    return lines + textwrap.wrap(text, _width(), initial_indent=" " * 8, subsequent_indent=" " * 8)


def _width() -> int:
    return min(shutil.get_terminal_size((120, 24)).columns, 120)
