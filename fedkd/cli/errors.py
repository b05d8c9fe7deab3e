"""Turn the parser's error messages into one line: the value, the allowed values, the nearest match."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import re
import sys
import typing
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from torch import Tensor, nn

from fedkd.cli.subcommands import SECTIONS, SUBCOMMANDS
from fedkd.core.errors import FedKDError, in_one_line, unknown_name

OF_CLASSES = ("--model.optimizer.lr", "--model.optimizer.weight_decay", "--data.partitioner.alpha")
"""Options of classes, which no parser lists, that people give without their section."""

UNTOLD = re.compile(
    r"Expected an? (?:<class|typing\.|path but|dot import|List|tuple|list)|Not a valid|Subclass types expect"
    r"|an? (?:class|dict)"
)
"""How a line begins that only says that a value is not of one of several types."""


def explain(parser: ArgumentParser, message: str) -> str:
    """Return the parser's error message in one line.

    Args:
        parser: The parser that reports the error: a value that is a class has one of its own.
        message: Its message, of one or many lines.

    Returns:
        One line that names the option and the value, and if they are known the allowed values and the nearest match.
    """
    if found := re.match(r"argument subcommand: invalid choice: '([^']*)' \(choose from (.*)\)", message):
        return str(unknown_name("subcommand", found[1], SUBCOMMANDS))
    if found := re.match(r"unrecognized arguments: (--[^\s=]+)", message):
        return unknown_option(parser, found[1])
    if found := re.match(r"unrecognized arguments: (\S*)", message):
        return f"{found[1]!r} has no option before it. A configuration is a YAML file: fedkd fit RUN.yaml"
    if found := re.match(r"Subcommand '(\w+)' does not accept option '([^']+)'", message):  # a key of a YAML file
        commands: Any = parser._subcommands_action
        return unknown_option(commands._name_parser_map[found[1]], f"--{found[2]}")
    if found := re.match(r'Linked "([^"]+)" must be given via "([^"]+)"', message):
        return f"{found[1]} follows {found[2]}: set --{found[2]} instead."
    if found := re.match(r"the following arguments are required: (.*)", message):
        return f"{found[1]} must be set."
    found = re.match(r'[Pp]arser key "([^"]+)":?\s*', message)
    key, body = (found[1], message[found.end() :]) if found else ("", message)
    if key == "config" and re.match(rf"(?:{'|'.join(SECTIONS['fit'])})\b", body):  # of a configuration that is no file
        return " ".join(body.split())
    return explain_value(parser, key, body) if key else explain_option(parser, body)


def explain_option(parser: ArgumentParser, message: str) -> str:
    """Return an error that is about no key: an option that the class of a value does not have, or another one."""
    if not (found := re.search(r"(?:class_path '([^']+)':\s+)?Option '([^']+)' is not accepted", message)):
        return " ".join(message.split())
    own = [each.dest for each in parser._actions if not re.search(r"help$|^config$|^print_", each.dest)]
    told = unknown_name("option", found[2], parameters_of(found[1]) if found[1] else own)
    # the parser of a class's options has one group, with the name of the class
    name = found[1].rpartition(".")[2] if found[1] else next(iter(getattr(parser, "groups", None) or {}), "")
    return f"{told} The class is {name}." if name[:1].isupper() else str(told)


def explain_value(parser: ArgumentParser, key: str, message: str) -> str:
    """Return an error about the value of a key.

    Args:
        parser: The parser that has the key.
        key: The key, such as ``data.partitioner``.
        message: What is wrong with its value.
    """
    classes = classes_of(parser, key)
    names = {*literals(message), *(name for each in classes for name in subclass_names(each))}
    value = found[1] if (found := re.search(r"(?:Given|Got) value: (.*)", message)) else ""
    if found := re.search(r"Expected a dot import path string: (\S+)", message):
        if found[1] in literals(message):  # the default, where an option of a class was given
            return f"{key} has no class yet, it is {found[1]!r}; set it before its options, with --{key} CLASS."
        if classes and (found[1].isidentifier() or not re.search("Subtypes: .*<class 'str'>", message)):
            return f"{key}: {unknown_name('class', found[1], names)}"
    if found := re.search(r"[Ii]mport path (?:(\S+) )?does not correspond to a subclass of (\w+)", message):
        return f"{key}: {found[1] or value} is no {found[2]}. Choose one of: {', '.join(sorted(names))}."
    if found := re.search(r"Expected '(\S+)' to be a subclass of <class '(\w+)'>", message):
        return f"{key}: {found[1]} is no {found[2]}. Choose one of: {', '.join(sorted(names))}."
    if value and "Expected a <class 'collections.abc.Sequence'>" in message:
        return f"{key}: {value!r} is no list. Write it in brackets: [{value}]."
    found = re.search(r"Expected an instantiatable class, but (\S+) is abstract", message)
    if found and (missing := missing_methods(found[1], classes)):
        return f"{key}: {found[1]} is abstract: it needs {', '.join(missing)}."
    if found:
        return f"{key} has no class yet. Set its class, then its options. Choose one of: {', '.join(sorted(names))}."
    if "is not accepted" in message:
        return f"{key}: {explain_option(parser, message)}"
    if found := re.search(
        r"Problem with given class_path '([^']+)':\s+(.*?)(?:\n\s*- |\n\s*Given value|$)", message, re.DOTALL
    ):
        return f"{key}: {unusable_class(found[1], ' '.join(found[2].split()), classes)}"
    if found := re.search(r"Unable to load config '(.*)'", message):
        return f"{key}: {found[1]!r} is no file with its options. Give them one by one, --{key}.OPTION VALUE."
    # the class exists, and its own parser reported the error, which is one line
    told = [line.strip(" -") for line in message.splitlines() if not UNTOLD.match(line.strip(" -"))]
    reasons = [line for line in told if line and not re.match(r"Does not|Subtypes:|Errors:|Given value|Got", line)]
    if reasons and ("Errors:" in message or len(told) == 1):
        inner = reasons[0]
        return f"{key}.{inner}" if re.match(r"[\w.]+(?:: | must be | has no class)", inner) else f"{key}: {inner}"
    if found := re.search(r"NestedArg\(key='(\w+)', val=(.*)\)", message):
        return f"{key}.{found[1]} {found[2]}: {key} has no class yet; set it first with --{key} CLASS."
    if literals(message) and value:
        number = " A number is also allowed." if re.search(r"Subtypes: \[.*<class '(?:int|float)'>", message) else ""
        return f"{key}: {unknown_name('value', value, set(literals(message)))}{number}"
    if found := re.search(r"Not a valid subclass of (\w+). Got value: (.*)", message):
        return f"{key}: {found[2]} is no {found[1]}. Choose one of: {', '.join(sorted(names))}."
    if found := re.search(r"Subtypes: \[(.*)\]\n", message):
        kinds = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", found[1]).replace("NoneType", "null")
        return f"{key}: {value!r} is none of {re.sub(r'(?:[a-z_]+[.])+', '', kinds)}."
    if found := re.search(r"Expected a <class '(\w+)'>\. Got value: (.*)", message):
        return f"{key}: {found[2]!r} is not of type {found[1]}."
    return f"{key}: {' '.join(message.split())}"


def unusable_class(class_path: str, reason: str, bases: Sequence[type]) -> str:
    """Return the error about a class that cannot be imported, or is not in its module.

    Args:
        class_path: What the user gave.
        reason: Python's message.
        bases: The classes one of whose subclasses is expected.
    """
    module, _, name = class_path.rpartition(".")
    if not reason.endswith(f"module {module!r} has no attribute {name!r}"):
        return f"{class_path!r} cannot be imported: {reason.removesuffix('.')}."
    known = importlib.import_module(module)
    found = {each: value for each in dir(known) if inspect.isclass(value := getattr(known, each, None))}
    fitting = [
        each for each, value in found.items() if issubclass(value, tuple(bases)) and not inspect.isabstract(value)
    ]
    own = [each for each, value in found.items() if value.__module__ == module]
    return f"{module}: {unknown_name('class', name, fitting or own)}"


def refuse_class_path(key: str, value: Any, base: type) -> None:
    """Raise if a name is the path of a class that cannot be had: the parser took it for the name of a checkpoint.

    Args:
        key: The option, such as ``model.teacher``.
        value: Its value.
        base: The class one of whose subclasses is expected.

    Raises:
        FedKDError: If the module is there, but cannot be imported or has no such class.
    """
    is_path = isinstance(value, str) and re.fullmatch(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+", value)
    if not is_path or Path(value).exists() or importlib.util.find_spec(value.split(".")[0]) is None:
        return
    module, _, name = value.rpartition(".")
    try:
        getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the user's own module raises
        reason = with_type(in_one_line(error), error)
        raise FedKDError(f"{key}: {unusable_class(value, reason, [base])}") from error
    raise FedKDError(f"{key}: {value} is no {base.__name__}.")


def missing_methods(class_path: str, bases: Sequence[type]) -> list[str]:
    """Return the methods that a class of the user's own must define yet; none for what is expected itself."""
    module, _, name = class_path.rpartition(".")
    built = getattr(importlib.import_module(module), name)
    return [] if built in bases else sorted(built.__abstractmethods__)


def with_type(text: str, error: BaseException | None) -> str:
    """Put the type of what the user's own module raised before it: the message alone may say nothing.

    Args:
        text: The parser's error in one line.
        error: What it was made of.
    """
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    own = (ValueError, TypeError, ImportError, AttributeError, ArgumentError)  # the parser's, and those it words itself
    if error is None or isinstance(error, own) or type(error).__module__.startswith("jsonargparse"):
        return text
    told = in_one_line(error)
    return f"{text.removesuffix(told)}{type(error).__name__}: {told}" if text.endswith(told) else text


def literals(message: str) -> list[str]:
    """Return the values that a message lists as allowed, without duplicates."""
    groups = re.findall(r"Literal\[([^\]]+)\]", message)
    return list(dict.fromkeys(name for group in groups for name in re.findall(r"'([^']+)'", group)))


def unknown_option(parser: ArgumentParser, option: str) -> str:
    """Return the error for an unknown option, with the nearest option. There are too many options to list all."""
    more = f"All options: {parser.prog.replace(' [options]', '')} --help"
    known = [
        string
        for action in parser._actions
        for string in action.option_strings
        if string.startswith("--") and not string.endswith(".help")
    ]
    short = option.removeprefix("--").split("=")[0]
    first, tops = short.split(".")[0], {each[2:].split(".")[0] for each in known}
    if "." in short and first not in tops:
        return str(unknown_name("section", first, {each[2:].split(".")[0] for each in known if "." in each}))
    sections = [each for each in (*known, *OF_CLASSES) if each.rpartition(".")[2] == short]
    if "." not in short and sections:
        return f"There is no option --{short}. Did you mean {' or '.join(sections)}? {more}"
    nearest = difflib.get_close_matches(option, known, n=1, cutoff=0.6)
    hint = f" Did you mean {nearest[0]}?" if nearest else ""
    return f"There is no option {option}.{hint} {more}"


def classes_of(parser: ArgumentParser, key: str) -> list[type]:
    """Return the classes one of whose subclasses a key's value may be; not those of torch, too many to list."""
    hints = [getattr(action, "_typehint", None) for action in parser._actions if action.dest == key]
    return [
        each for hint in hints for each in _classes(hint) if each.__subclasses__() and each not in (nn.Module, Tensor)
    ]


def _classes(hint: Any) -> Iterator[type]:
    """Yield the classes in a type hint, at any depth."""
    if inspect.isclass(hint) and hint.__module__ not in ("builtins", "collections.abc", "pathlib"):
        yield hint
    for part in hint if isinstance(hint, list) else typing.get_args(hint):
        yield from _classes(part)


def subclass_names(base: type[Any]) -> list[str]:
    """Return the names of the exported classes that are allowed where ``base`` is expected."""
    return [subclass.__name__ for subclass in subclasses(base)]


def subclasses(base: type[Any]) -> Iterator[type[Any]]:
    """Yield the exported classes that are allowed where ``base`` is expected; no class of a function has a path."""
    for subclass in base.__subclasses__():
        parts = subclass.__module__.split(".")
        packages = [".".join(parts[:end]) for end in range(1, len(parts))]  # a public class is exported by one of these
        known = [each for each in packages if each in sys.modules]
        hidden = bool(packages) and not any(hasattr(sys.modules[each], subclass.__name__) for each in known)
        hidden = hidden or "<locals>" in subclass.__qualname__ or subclass.__name__.startswith("_")
        hidden = hidden or getattr(subclass, "is_remote", False)  # a backend that an app makes, not a file
        if not inspect.isabstract(subclass) and not hidden:
            yield subclass
        yield from subclasses(subclass)


def parameters_of(class_path: str) -> list[str]:
    """Return the names of a class's constructor arguments."""
    module, _, name = class_path.rpartition(".")
    built: Any = getattr(importlib.import_module(module), name)
    return [parameter for parameter in inspect.signature(built).parameters]
