"""The options that a run of a grid is made with: kept beside the run, and compared with what the grid says later."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml

from fedkd.core.command_line import put_classes_first
from fedkd.core.sealed import read_record, with_checksum
from fedkd.core.storage import write_atomically
from fedkd.core.yaml_file import read_yaml
from fedkd.runs.layout import ELSEWHERE

NAME = "options.json"

NO_RESULT = ("ckpt_path", "data.eval_batch_size", "federation.backend", "run_dir")
"""Options that change no result, with all options below them. So do those of the Trainer in `ELSEWHERE`."""

ABSENT = "(none)"
"""What stands for the value of an option that is not given."""


def options_of(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the options that decide a run's result, those in its configuration included.

    Options of a class are written as on the command line, ``data.partitioner.alpha``, and go when a later option names
    another class.

    Args:
        arguments: Those of ``fedkd fit``.
    """
    found: dict[str, Any] = {}
    for name, text in _pairs(put_classes_first(arguments)):
        if name == "config":
            path = Path(text)
            content = read_yaml(path, "configuration") if path.is_file() else {}
            given = _flat("", content) if isinstance(content, dict) else {}
        else:
            given = _flat(name, typed(text))
        for key, value in given.items():
            if found.get(key, ABSENT) != value:
                found = {each: old for each, old in found.items() if not each.startswith(f"{key}.")}
            found[key] = value
    kept = {name: value for name, value in found.items() if _counts(name)}
    return dict(json.loads(json.dumps(kept, default=str)))  # as it is read from a file


def difference(made: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first option that differs, with both values; None if there is none.

    An absolute path counts as moved if its last part is the same and nothing is at the old place any more. A class of
    fedkd is the same with its module and without.

    Args:
        made: The options of a finished run.
        now: Those that the grid has for it.
    """
    for name in dict.fromkeys([*now, *made]):
        old, new = made.get(name, ABSENT), now.get(name, ABSENT)
        if _plain_name(old) != _plain_name(new) and not _is_moved(old, new):
            return name, old, new
    return None


def write_options(folder: Path, arguments: Sequence[str]) -> None:
    """Write the options of a run into its folder."""
    write_atomically(folder / NAME, json.dumps(with_checksum(options_of(arguments)), indent=2) + "\n")


def read_options(folder: Path) -> dict[str, Any] | None:
    """Return the options that a run was made with; None if they are not there, as in an older run."""
    return read_record(folder / NAME) if (folder / NAME).is_file() else None


def typed(text: str) -> Any:
    """Return the number, truth value, null, list or mapping that a text stands for in YAML; else the text as it is.

    YAML would also cut off a comment, make a mapping of a text with a colon, and read a date.
    """
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, list | dict):
        return value if text.lstrip()[0] in "[{" else text
    if isinstance(value, bool | int | float) or text in ("null", "~"):
        return value
    try:
        return float(text)  # YAML takes 1e-3 for a text
    except ValueError:
        return text


def _pairs(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Return the options of a command line, each with its value."""
    pairs = []
    for i, argument in enumerate(arguments):
        name, separator, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and separator:
            pairs.append((name, value))
        elif argument.startswith("--") and i + 1 < len(arguments):
            pairs.append((name, arguments[i + 1]))
    return pairs


def _flat(name: str, value: Any) -> dict[str, Any]:
    """Return a value as options: a mapping has one for each of its entries, a class has its name and its arguments."""
    if not isinstance(value, dict) or not value:
        return {name: value}
    found: dict[str, Any] = {name: value["class_path"]} if "class_path" in value else {}
    for key, item in value.items():
        if key == "init_args" and (item is None or isinstance(item, dict)):
            found |= _flat(name, item) if item else {}
        elif key != "class_path":
            found |= _flat(f"{name}.{key}" if name else str(key), item)
    return found


def _counts(name: str) -> bool:
    """Whether an option may change a result."""
    section, _, rest = name.partition(".")
    if section == "trainer" and rest.split(".")[0].rstrip("+") in ELSEWHERE:
        return False
    return not any(name == each or name.startswith(f"{each}.") for each in NO_RESULT)


def _plain_name(value: Any) -> Any:
    """Return the name of a class of fedkd without its module; every other value as it is."""
    return value.rpartition(".")[2] if isinstance(value, str) and value.startswith("fedkd.") else value


def _is_moved(old: Any, new: Any) -> bool:
    """Whether two values are paths to what is likely the same in another place."""
    if not (isinstance(old, str) and isinstance(new, str)):
        return False
    paths = [PurePath(each) for each in (old, new)]
    is_path = any(path.is_absolute() for path in paths) and paths[0].name == paths[1].name
    return is_path and not Path(old).expanduser().exists()
