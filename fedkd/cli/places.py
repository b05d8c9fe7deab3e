"""Name the place in the configuration of what an error is about, such as ``data.partitioner.alpha``.

An object knows the names of its arguments, but not where in the configuration it stands. The traceback has the objects,
and the configuration their places.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from jsonargparse import Namespace

from fedkd.core.errors import FedKDError, in_one_line
from fedkd.data import FederatedDataModule
from fedkd.server.federation import Federation
from fedkd.students import UnbuiltStudent
from fedkd.training.module import DistillationModule

SECTION_CLASSES: dict[str, type] = {"data": FederatedDataModule, "federation": Federation, "model": DistillationModule}
CHECKS = ("instantiate_classes", "plan_run", "prepare_data", "setup")
"""What fedkd's functions of these names raise is about the configuration: not about a client, or a file of the run."""
PLACED = re.compile(rf"(?:{'|'.join(SECTION_CLASSES)}|trainer|run_dir|ckpt_path)\b")
"""How an error begins that names its place already."""

Place = tuple[str, Mapping[str, Any]]
"""A place, with the arguments of the object there."""


def locate(error: ValueError, config: Namespace) -> FedKDError:
    """Return an error in one line that names the place of its value, if the configuration is what it is about.

    Args:
        error: The error, or what jsonargparse made of one that a constructor raised.
        config: The configuration of the subcommand.
    """
    chain: list[BaseException] = [error]
    while not isinstance(chain[-1], FedKDError) and chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    # around the error of a constructor jsonargparse lists all that a value could have been
    inner = isinstance(chain[-1], FedKDError) or "Does not validate against any" in str(error)
    text = named(chain[-1]) if inner else in_one_line(error)
    frames = [frame for each in chain for frame, _ in traceback.walk_tb(each.__traceback__)]
    if PLACED.match(text) or not any(frame.f_code.co_name in CHECKS for frame in frames):
        return FedKDError(text)
    for frame in reversed(frames):
        owner = frame.f_locals.get("self")
        if isinstance(owner, UnbuiltStudent) and frame.f_code.co_name == "check_source":
            return FedKDError(f"model.student: {text}")
        if found := list(places(type(owner), config)):
            return FedKDError(at_place(text, found))
    return FedKDError(text)


def named(error: BaseException) -> str:
    """Return an error in one line, after its type if it is one whose message alone may say nothing, as a KeyError's."""
    text = in_one_line(error)
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def at_place(text: str, found: list[Place]) -> str:
    """Put the place of an object before its error, or before the argument that the error begins with.

    Args:
        text: The error.
        found: Where objects of its class stand. If there are several, the one that has the value in the error counts.
    """
    name = re.sub(r"^(?:No|Unknown) ", "", text).split(" ")[0].split(".")[0].rstrip(":")
    exact = [each for each in found if name in each[1] and text.endswith(f"got {each[1][name]!r}.")]
    place, arguments = (exact or found)[0]
    if name not in arguments:
        return f"{place}: {text}"
    return f"{place}.{text}" if text.startswith(name) else f"{place}.{name}: {text}"


def places(kind: type, config: Namespace) -> Iterator[Place]:
    """Yield where in a configuration objects of a class stand."""
    for section, built in SECTION_CLASSES.items():
        if isinstance(config.get(section), Namespace):
            if kind is built:
                yield section, vars(config[section])
            for name, value in vars(config[section]).items():
                yield from _below(f"{section}.{name}", value, kind)


def _below(place: str, value: Any, kind: type) -> Iterator[Place]:
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from _below(f"{place}[{number}]", item, kind)
    elif isinstance(value, Namespace):
        path = value.get("class_path")
        arguments = vars(value.get("init_args") or Namespace()) if path else vars(value)
        # a dataclass that has no subclasses stands there without its class
        is_one = path.rpartition(".")[2] == kind.__name__ if path else _takes(kind, arguments)
        if is_one:
            yield place, arguments
        for name, item in arguments.items():
            yield from _below(f"{place}.{name}", item, kind)


def _takes(kind: type, arguments: Mapping[str, Any]) -> bool:
    return is_dataclass(kind) and {field.name for field in fields(kind)} == set(arguments)
