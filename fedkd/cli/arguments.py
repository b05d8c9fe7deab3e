"""Expand the short forms of the command line into options for the parser."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from fedkd.cli.subcommands import SECTIONS
from fedkd.core.command_line import by_option, is_option, put_classes_first
from fedkd.core.errors import FedKDError, MissingResourceError
from fedkd.core.yaml_file import read_yaml
from fedkd.runs.layout import run_of
from fedkd.training.trainer import COMPUTATION

POSITIONAL = {"test": "RUN_DIR", "predict": "RUN_DIR", "export": "RUN_DIR", "teachers": "[NAME]"}
"""The positional argument of each subcommand that has one."""

RUN_COMMANDS = ("test", "predict", "export")
"""The subcommands whose positional argument is a run directory."""

USED_OPTIONS = {"model": ("student", "student_options"), "trainer": COMPUTATION}
"""What the subcommands in `RUN_COMMANDS` use of a section; of others they use all."""

WITH_CONFIG = ("fit", "check", "partition")
"""The subcommands whose configuration may be given without ``--config``."""


FLAGS = {
    "--clear-cache": "--clear_cache=true",
    "--clear_cache": "--clear_cache=true",
    "--overwrite": "--overwrite=true",
}
"""Options that may be given without a value."""

TRUTH = ("true", "false", "yes", "no")
"""The values that they take."""

MAX_SHOWN = 60
"""Characters of a wrong value that an error shows."""


def check_config(path: Path) -> None:
    """Raise if a configuration is no YAML, a key stands in it twice, or a class in it has not the form of one.

    Args:
        path: The file. One that is not there is left to the parser.

    Raises:
        FedKDError: If it is wrong; the message names the line, or the key.
    """
    if not path.is_file():
        return
    content = read_yaml(path, "configuration")
    if not isinstance(content, dict):
        raise FedKDError(
            f"The configuration {str(path)!r} must hold sections such as data: and model:, got {_short(content)}."
        )
    for section in ("data", "federation", "model", "trainer"):
        if not isinstance(content.get(section, {}), dict):
            raise FedKDError(f"{section} must be a mapping of its options, got {_short(content[section])}.")
        for name, value in content.get(section, {}).items():
            check_classes(f"{section}.{name}", value)


CLASS_KEYS = ("class_path", "init_args")


def check_classes(place: str, value: Any) -> None:
    """Raise if a class below a place of the configuration has a key beside `CLASS_KEYS`, or no mapping of arguments.

    Args:
        place: The place, such as ``data.partitioner``.
        value: What stands there.

    Raises:
        FedKDError: If it does; the parser would list all forms that a class can have.
    """
    if isinstance(value, list):
        for number, item in enumerate(value):
            check_classes(f"{place}[{number}]", item)
    if not isinstance(value, dict):
        return
    for key in value:
        nearest = difflib.get_close_matches(str(key), CLASS_KEYS, n=1, cutoff=0.8)
        if key not in CLASS_KEYS and nearest:
            raise FedKDError(f"{place}: Unknown key {key!r}. Did you mean {nearest[0]!r}?")
        if "class_path" in value and key not in (*CLASS_KEYS, "dict_kwargs"):
            raise FedKDError(f"{place}: the option {key!r} stands beside class_path. Put it below init_args.")
        if key == "init_args" and not isinstance(value[key] or {}, dict):
            raise FedKDError(f"{place}.init_args must be a mapping of the class's options, got {_short(value[key])}.")
        check_classes(place if key == "init_args" else f"{place}.{key}", value[key])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def put_run_first(args: Sequence[str]) -> list[str]:
    """Put the run directory behind the subcommand, where it stands between the options or is given as ``--run_dir``.

    ``test --which best RUN_DIR`` and ``test --which best --run_dir RUN_DIR`` become ``test RUN_DIR --which best``.
    Beside a ``--config`` the option is left as it is: then the data set is not that of the run.

    Args:
        args: Of a subcommand that takes a RUN_DIR.
    """
    groups = by_option(args[1:])
    if groups and not is_option(groups[0][0]):
        return list(args)
    found: list[str] = []
    given = [group for group in groups if group[0].split("=")[0] == "--run_dir"]
    for group in groups:
        if len(group) > (1 if "=" in group[0] else 2) and not found and not given:
            found.append(group.pop())
    if not found and not any(group[0].split("=")[0] in ("--config", "-c") for group in groups):
        for group in given[-1:]:  # a later option replaces an earlier one
            found = group[1:] or [group[0].partition("=")[2]]
        groups = [group for group in groups if not any(group is each for each in given)]
    return [args[0], *found, *(each for group in groups for each in group)]


def inference_config(path: Path, command: str) -> str:
    """Return what a subcommand uses of a run's configuration, as YAML.

    The rest may name classes that are not on this machine, such as that of the teacher: the parser would import them.

    Args:
        path: The run's configuration.
        command: One of `RUN_COMMANDS`.
    """
    config = read_yaml(path, "configuration")
    if not isinstance(config, dict):
        return str(path)  # the parser says what is wrong
    used = {name: config[name] for name in ("seed_everything", *SECTIONS[command]) if name in config}
    for name, options in USED_OPTIONS.items():
        if isinstance(used.get(name), dict):
            used[name] = {option: value for option, value in used[name].items() if option in options}
    return yaml.safe_dump(used, sort_keys=False, allow_unicode=True)


def expand(args: Sequence[str]) -> list[str]:
    """Turn the positional argument of a subcommand into options.

    - ``test RUN_DIR ...`` becomes ``test --config YAML --run_dir RUN_DIR ...``, where YAML is what it uses of
      RUN_DIR/config.yaml: see `inference_config`; ``predict`` and ``export`` likewise. RUN_DIR may stand elsewhere: see
      `put_run_first`. A run that was made from Python has no configuration. For one of several students, in
      RUN_DIR/clients/K, the configuration is that of the whole run;
    - ``teachers NAME ...`` becomes ``teachers --name NAME ...``;
    - ``fit FILE.yaml ...`` becomes ``fit --config FILE.yaml ...``; ``check`` and ``partition`` likewise;
    - ``--clear-cache`` becomes ``--clear_cache=true``, and ``--overwrite`` likewise;
    - a class is chosen before its options: see `put_classes_first`.

    Raises:
        MissingResourceError: If there is no run at RUN_DIR.
        FedKDError: If a configuration is no YAML, or a key stands in it twice.
    """
    args = [arg if following.lower() in TRUTH else FLAGS.get(arg, arg) for arg, following in pairwise([*args, "--"])]
    if args[:1] and args[0] in RUN_COMMANDS:
        args = put_run_first(args)
    args = put_classes_first(args)
    if len(args) > 1 and args[0] in WITH_CONFIG and not args[1].startswith("-") and args[1].endswith((".yaml", ".yml")):
        args = [args[0], "--config", *args[1:]]
    for option, value in pairwise([*args, ""]):
        if option in ("--config", "-c") and value:
            check_config(Path(value))
        elif option.startswith("--config="):
            check_config(Path(option.removeprefix("--config=")))
    if len(args) < 2 or args[0] not in POSITIONAL or args[1].startswith("-"):
        return args
    command, name, *rest = args
    if command == "teachers":
        return [command, "--name", name, *rest]
    folder = Path(name)
    config = run_of(folder) / "config.yaml"
    if not config.is_file():
        if not any(folder.glob("*.safetensors")):
            raise MissingResourceError(f"No run at {name!r}: there is no student in it.")
        reads_data = command == "test" or (command == "predict" and not any(a.startswith("--images") for a in rest))
        if reads_data and not any(arg.startswith(("--data", "--config", "-c")) for arg in rest):
            raise FedKDError(
                f"The run {name!r} was made from Python, so its data set is not known here: give --config FILE, or "
                "--data.dataset CLASS."
            )
        return [command, "--run_dir", name, *rest]
    return [command, "--config", inference_config(config, command), "--run_dir", name, *rest]
