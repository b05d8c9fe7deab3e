"""Writes the reference of the command line into its page, from the parsers themselves, when the site is built."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from typing import Any

from fedkd.cli.help import ABOUT, choices, default_text, option_text, options_of
from fedkd.cli.subcommands import PLAIN, SECTIONS, SUBCOMMANDS

PLACE = "<!-- the reference stands here on the site -->"
"""What the page has in place of the reference."""


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Put the reference into the page that has a place for it; MkDocs calls this for every page."""
    return markdown.replace(PLACE, reference()) if PLACE in markdown else markdown


def reference() -> str:
    """Return the reference as Markdown: every subcommand with its options, then the options of every section."""
    from fedkd.cli.commands import parsers

    built = parsers()
    parts = []
    for name, about in SUBCOMMANDS.items():
        parts.append(f"## fedkd {name}\n\n{_plain(about)}\n")
        if name in PLAIN:
            parser = importlib.import_module(PLAIN[name]).make_parser()
            parts += [_usage(parser), _table(_own(parser)), _plain(parser.epilog or "", block=True)]
        elif name in SECTIONS:
            parts += [_usage(built[name]), _table(_own(built[name]))]
            if sections := [f"[`--{each}.*`](#-{each})" for each in ABOUT if each in SECTIONS[name]]:
                parts.append(f"Sections: {', '.join(sections)}.\n")
    for section, about in ABOUT.items():
        parts.append(f"## --{section}.* {{ #-{section} }}\n\n{about[0].upper()}{about[1:]}.\n")
        parts.append(_table(_section(built["fit"], section)))
    return "\n".join(part for part in parts if part)


def _own(parser: Any) -> Iterator[tuple[str, str, str]]:
    """Yield the options that are in no section, each with its default and what it does."""
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or "." in action.dest or action.dest in ABOUT:
            continue
        name = ", ".join(action.option_strings) or str(action.metavar)
        default = "" if action.default in (None, argparse.SUPPRESS) or not action.option_strings else action.default
        yield name, str(default), option_text(action.help) or "Print the configuration with all defaults, and end."


def _section(parser: Any, section: str) -> Iterator[tuple[str, str, str]]:
    """Yield the options of a section, likewise, with the classes to choose from."""
    for name, action in options_of(parser, section):
        text = option_text(action.help)
        if names := choices(parser, name):
            text += f" One of {', '.join(f'`{each}`' for each in names)}."
        yield f"--{name}", default_text(action.default), text


def _table(rows: Iterator[tuple[str, str, str]]) -> str:
    lines = [
        f"| `{name}` | {f'`{_cell(default)}`' if default else ''} | {_cell(text)} |" for name, default, text in rows
    ]
    return "\n".join(["| option | default | what it does |", "|---|---|---|", *lines, ""]) if lines else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _usage(parser: Any) -> str:
    usage = " ".join(str(parser.usage or parser.format_usage().removeprefix("usage: ")).split())
    return f"```text\n{usage}\n```\n"


def _plain(text: str, block: bool = False) -> str:
    if block:
        return f"```text\n{text}\n```\n" if text else ""
    return text.replace("<", "&lt;")
