"""A grid: which methods run on which partitions with which seeds, read from YAML."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import yaml

from fedkd.core.errors import FedKDError, MissingResourceError, unknown_name

REFERENCES = "any partition"
"""Where methods stand that no partition changes."""

SECTIONS = ("base", "names", "config", "arguments", "seeds", "partitions", "methods", "references")
NEEDED = ("config", "seeds", "partitions", "methods")


@dataclass(frozen=True)
class Run:
    """One method on one partition with one seed, and where it is kept.

    Args:
        partition: The partition's name in the grid.
        method: The method's name.
        seed: The seed.
        folder: The run directory.
        arguments: What ``fedkd fit`` is told, without the run directory.
    """

    partition: str
    method: str
    seed: int
    folder: Path
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return "PARTITION, METHOD"."""
        return f"{self.partition}, {self.method}"

    @property
    def is_done(self) -> bool:
        """Whether all its rounds are on disk."""
        return (self.folder / "summary.json").is_file()

    @property
    def is_begun(self) -> bool:
        """Whether some of its rounds are on disk."""
        return (self.folder / "metrics.csv").is_file()


def read_grid(path: Path, given: Sequence[str] = ()) -> dict[str, Any]:
    """Read a grid's YAML, with its names put in.

    A grid may start from another, ``base: FILE`` beside it; its own sections, and its own ``arguments``, replace those
    of the base. ``${NAME}`` is replaced by the name's value in ``given``, else in ``names``.

    Args:
        path: The file.
        given: Values of names, as ``NAME=VALUE``.

    Raises:
        MissingResourceError: If a file is not there.
        FedKDError: If the grid is not one, or a name is unknown.
    """
    grid = _load(path)
    if "base" in grid:
        base = _load(path.parent / str(grid.pop("base")))
        grid = {**base, **grid, "arguments": {**(base.get("arguments") or {}), **(grid.get("arguments") or {})}}
    for section in NEEDED:
        if not grid.get(section):
            raise FedKDError(f"The grid {str(path)!r} has no section {section!r}: it needs {', '.join(NEEDED)}.")
    names, chosen = grid.get("names") or {}, {}
    for pair in given:
        name, separator, value = pair.partition("=")
        if not separator:
            raise FedKDError(f"--set takes NAME=VALUE, got {pair!r}.")
        if name not in names:
            raise unknown_name(f"name of the grid {path.name}", name, names)
        chosen[name] = value
    return _put_in(grid, {**names, **chosen})


def runs_of(grid: Mapping[str, Any], beside: Path, out: Path, further: Sequence[str] = ()) -> Iterator[Run]:
    """Yield all runs of a grid, those of one seed before those of the next.

    Args:
        grid: As `read_grid` returns it.
        beside: The folder that ``config`` is relative to.
        out: The folder of all runs.
        further: Options for every run, such as ``["--data.dataset", "ImageFolder"]``.
    """
    common = ["--config", str(beside / grid["config"]), *as_options(grid.get("arguments") or {}), *further]
    for seed in grid["seeds"]:
        for partition, changes in {**grid["partitions"], REFERENCES: {}}.items():
            methods = grid["methods"] if partition != REFERENCES else grid.get("references") or {}
            for method, own in methods.items():
                folder = out / slug(partition) / slug(method) / f"seed-{seed}"
                options = (*common, *as_options(changes or {}), *as_options(own or {}), "--seed_everything", str(seed))
                yield Run(partition, method, seed, folder, options)


def as_options(changes: Mapping[str, Any]) -> list[str]:
    """Turn ``{"data.views": 4}`` into ``["--data.views", "4"]``."""
    pairs = ((f"--{key}", value if isinstance(value, str) else json.dumps(value)) for key, value in changes.items())
    return [text for pair in pairs for text in pair]


def slug(name: str) -> str:
    """Return a name as a folder's."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingResourceError(f"There is no grid at {str(path)!r}.")
    try:
        grid = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FedKDError(f"The grid {str(path)!r} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(grid, dict):
        raise FedKDError(f"The grid {str(path)!r} must have sections {', '.join(NEEDED)}, got {grid!r}.")
    for section in grid:
        if section not in SECTIONS:
            raise unknown_name(f"section of the grid {path.name}", section, SECTIONS)
    return grid


def _put_in(value: Any, names: Mapping[str, Any]) -> Any:
    """Replace ``${NAME}`` at any depth; a value that is nothing else takes the name's own type."""
    if isinstance(value, dict):
        return {key: _put_in(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_put_in(item, names) for item in value]
    if not isinstance(value, str) or "$" not in value:
        return value
    try:
        return yaml.safe_load(Template(value).substitute(names))
    except KeyError as error:
        raise unknown_name("name in the grid", str(error.args[0]), names) from error
