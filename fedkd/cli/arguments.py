"""Expand the short forms of the command line into options for the parser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedkd.core.errors import MissingResourceError

POSITIONAL = {"test": "RUN_DIR", "predict": "RUN_DIR", "teachers": "[NAME]"}
"""The positional argument of each subcommand that has one."""


def expand(args: Sequence[str]) -> list[str]:
    """Turn the positional argument of a subcommand into options.

    - ``test RUN_DIR ...`` becomes ``test --config RUN_DIR/config.yaml --run_dir RUN_DIR ...``; ``predict`` likewise.
      For one of several students, in RUN_DIR/clients/K, the configuration is that of the whole run;
    - ``teachers NAME ...`` becomes ``teachers --name NAME ...``;
    - ``--clear-cache`` becomes ``--clear_cache=true``.

    Raises:
        MissingResourceError: If there is no run at RUN_DIR.
    """
    args = ["--clear_cache=true" if arg in ("--clear-cache", "--clear_cache") else arg for arg in args]
    if len(args) < 2 or args[0] not in POSITIONAL or args[1].startswith("-"):
        return args
    command, name, *rest = args
    if command == "teachers":
        return [command, "--name", name, *rest]
    folder = Path(name)
    config = (folder.parents[1] if folder.parent.name == "clients" else folder) / "config.yaml"
    if not config.is_file():
        raise MissingResourceError(f"No run at {name!r}: there is no {str(config)!r}. 'fedkd fit' writes it.")
    return [command, "--config", str(config), "--run_dir", name, *rest]
