"""Turn the parser's error messages into one line: the value, the allowed values, the nearest match."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

from jsonargparse import ArgumentParser

from fedkd.cli.subcommands import SUBCOMMANDS
from fedkd.core.errors import FedKDError, unknown_name
from fedkd.data import ImageSource, SharedImages
from fedkd.losses import DistillationLoss, LabelLoss
from fedkd.partition import Partitioner
from fedkd.server.backends import Backend
from fedkd.strategies import Strategy
from fedkd.teachers import Teacher
from fedkd.teachers.heads.head import FederatedHead

NAMED_BY_CLASS: dict[str, type] = {
    "data.dataset": ImageSource,
    "data.partitioner": Partitioner,
    "data.shared": SharedImages,
    "federation.backend": Backend,
    "federation.strategy": Strategy,
    "model.label_loss": LabelLoss,
    "model.loss": DistillationLoss,
    "model.teacher": Teacher,
    "head": FederatedHead,  # of a teacher: a separate parser parses a nested value
}


OF_CLASSES = ("--model.optimizer.lr", "--model.optimizer.weight_decay", "--data.partitioner.alpha")
"""Options of classes, which no parser lists, that people give without their section."""


def explain(parser: ArgumentParser, message: str) -> str:
    """Return the parser's error message in one line.

    Args:
        parser: The parser that reports the error.
        message: Its message, of one or many lines.

    Returns:
        One line that names the option and the value, and if they are known the allowed values and the nearest match.
    """
    if found := re.match(r"argument subcommand: invalid choice: '([^']*)' \(choose from (.*)\)", message):
        return str(unknown_name("subcommand", found[1], SUBCOMMANDS))
    if found := re.match(r"unrecognized arguments: (--[^\s=]+)", message):
        return unknown_option(parser, found[1])
    if found := re.match(r"Subcommand '(\w+)' does not accept option '([^']+)'", message):  # a key of a YAML file
        commands: Any = parser._subcommands_action
        return unknown_option(commands._name_parser_map[found[1]], f"--{found[2]}")
    found = re.search(r'[Pp]arser key "([^"]+)"', message)
    key = found[1] if found else ""
    found = re.search(r"Expected a dot import path string: (\S+)", message)
    is_checkpoint = found and key == "model.teacher" and not found[1].isidentifier()  # a short name, an id, a folder
    if found and found[1] in literals(message):  # the default, where an option of a class was given
        return f"{key} has no class yet, it is {found[1]!r}; set it before its options, with --{key} CLASS."
    if found and key in NAMED_BY_CLASS and not is_checkpoint:
        return f"{key}: {unknown_name('class', found[1], [*literals(message), *subclass_names(NAMED_BY_CLASS[key])])}"
    # The class exists, and its own error names the wrong option.
    if found := re.search(r"Errors:\n\s+- (\w+: .*)", message):
        return f"{key}.{found[1]}"
    if found := re.search(r"Errors:\n\s+- (Unknown .*)", message):
        return f"{key}: {found[1]}"
    if found := re.search(r"(?:class_path '([^']+)':\s+)?Option '([^']+)' is not accepted", message):
        # A separate parser parses a class inside another value. It knows only the arguments of that class.
        own = [
            action.dest for action in parser._actions if not re.search(r"help$|^config$|^print_config$", action.dest)
        ]
        error = unknown_name("option", found[2], parameters_of(found[1]) if found[1] else own)
        return f"{key}: {error}" if key else str(error)
    # For a class or null: the class's own error, which already has one line.
    optional = (
        r"Subtypes: \[<class '[^']+'>, <class 'NoneType'>\]\n\s*Errors:\n\s*- (?!Expected|Not a)(\w.*)\n\s*- Expected a"
    )
    if found := re.search(optional, message):
        return f"{key}: {found[1]}"
    if found := re.search(r"Given value: NestedArg\(key='(\w+)', val=(.*)\)", message):
        return f"{key}.{found[1]} {found[2]}: {key} has no class yet; set it first with --{key} CLASS."
    allowed = literals(message)
    if allowed and (found := re.search(r"(?:Given|Got) value: (.*)", message)):
        number = " A number is also allowed." if re.search(r"Subtypes: \[.*<class '(?:int|float)'>", message) else ""
        return f"{key}: {unknown_name('value', found[1], set(allowed))}{number}"
    if found := re.search(r"Subtypes: \[(.*)\]\n(?:.*\n)*?\s*Given value: (.*)", message):
        kinds = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", found[1]).replace("NoneType", "null")
        return f"{key}: {found[2]!r} is none of {kinds}."
    if found := re.search(r"Expected a <class '(\w+)'>\. Got value: (.*)", message):
        return f"{key}: {found[2]!r} is not of type {found[1]}."
    plain = re.sub(r'[Pp]arser key "([^"]+)":', r"\1:", message)
    return re.sub(r"\s+", " ", plain).strip()


def literals(message: str) -> list[str]:
    """Return the values that a message lists as allowed, without duplicates."""
    groups = re.findall(r"Literal\[([^\]]+)\]", message)
    return list(dict.fromkeys(name for group in groups for name in re.findall(r"'([^']+)'", group)))


def unknown_option(parser: ArgumentParser, option: str) -> str:
    """Return the error for an unknown option, with the nearest option. There are too many options to list all."""
    known = [string for action in parser._actions for string in action.option_strings if string.startswith("--")]
    short = option.removeprefix("--").split("=")[0]
    sections = [each for each in (*known, *OF_CLASSES) if each.rpartition(".")[2] == short]
    if "." not in short and sections:
        return f"There is no option --{short}. Did you mean {' or '.join(sections)}? All options: {parser.prog} --help"
    nearest = difflib.get_close_matches(option, known, n=1, cutoff=0.6)
    hint = f" Did you mean {nearest[0]}?" if nearest else ""
    return f"There is no option {option}.{hint} All options: {parser.prog} --help"


def subclass_names(base: type[Any]) -> Iterator[str]:
    """Yield the names of fedkd's exported classes that are allowed where ``base`` is expected."""
    for subclass in base.__subclasses__():
        parts = subclass.__module__.split(".")
        packages = [".".join(parts[:end]) for end in range(1, len(parts))]  # a public class is exported by one of these
        hidden = parts[0] == "fedkd" and not any(hasattr(sys.modules[each], subclass.__name__) for each in packages)
        if not inspect.isabstract(subclass) and not hidden:
            yield subclass.__name__
        yield from subclass_names(subclass)


def parameters_of(class_path: str) -> list[str]:
    """Return the names of a class's constructor arguments."""
    module, _, name = class_path.rpartition(".")
    built: Any = getattr(importlib.import_module(module), name)
    return [parameter for parameter in inspect.signature(built).parameters]


def own_error(error: BaseException) -> FedKDError:
    """Return the FedKDError that caused an error, because jsonargparse wraps the errors of a constructor."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, FedKDError):
            return cause
        cause = cause.__cause__
    return FedKDError(" ".join(str(error).split()))
