"""A grid: which methods run on which partitions with which seeds, read from YAML."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from fedkd.core.errors import FedKDError, MissingResourceError, unknown_name
from fedkd.core.yaml_file import read_yaml
from fedkd.study.options import typed

REFERENCES = "any partition"
"""The partition name of methods that do not depend on the partition."""

SECTIONS = ("base", "names", "config", "arguments", "seeds", "partitions", "methods", "references")
NEEDED = ("config", "seeds", "partitions", "methods")


@dataclass(frozen=True)
class Run:
    """One method on one partition with one seed, and its run directory.

    Args:
        partition: The partition's name in the grid.
        method: The method's name.
        seed: The seed.
        folder: The run directory.
        arguments: The options of ``fedkd fit``, without the run directory.
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
        """Whether all rounds of the run are on disk."""
        return (self.folder / "summary.json").is_file()

    @property
    def is_begun(self) -> bool:
        """Whether some rounds of the run are on disk."""
        return (self.folder / "metrics.csv").is_file()


def read_grid(path: Path, given: Sequence[str] = ()) -> dict[str, Any]:
    """Read a grid from YAML, check it, and replace its names by their values.

    Sections:

    - ``config``: a configuration of ``fedkd fit``, relative to the grid's folder;
    - ``arguments``: options for every run, as ``{data.batch_size: 32}``;
    - ``seeds``: a list of integers >= 0;
    - ``partitions`` and ``methods``: options by name, ``{NAME: {OPTION: VALUE}}``; every pair is one run per seed;
    - ``references``: methods that do not depend on the partition, such as one client with all images. Each runs once
      per seed, and the tables repeat it for every partition;
    - ``names``: values for ``${NAME}``, which may occur in every value of the sections above, not in keys;
    - ``base``: another grid, relative to the grid's folder. The sections of this grid replace those of the base;
      ``arguments`` are merged, option by option. The base's ``config`` stays relative to the folder of the base.

    Args:
        path: The file.
        given: Values of names, as ``NAME=VALUE``; they replace those in ``names``. VALUE is text, as it is; where a
            value of the grid consists only of ``${NAME}``, it may be a number, ``true``, ``null`` or a list.

    Returns:
        The sections. ``arguments``, ``partitions``, ``methods`` and ``references`` always exist, and every set of
        options is a dictionary. ``config`` is the configuration's path.

    Raises:
        MissingResourceError: If the grid, its base or its configuration does not exist.
        FedKDError: If the grid is not valid, or a name is unknown.
    """
    grid, folder = _load(path)
    for section in NEEDED:
        if not grid.get(section):
            raise FedKDError(f"The grid {str(path)!r} has no section {section!r}: it needs {', '.join(NEEDED)}.")
    names = _mapping(path, "names", grid.get("names"))
    chosen = _chosen(path, names, given)
    values = {name: typed(text) for name, text in chosen.items()}
    grid = _put_in(grid, {**names, **chosen}, {**names, **values}, path)
    grid["arguments"] = _mapping(path, "arguments", grid.get("arguments"))
    for section in ("partitions", "methods", "references"):
        named = _mapping(path, section, grid.get(section))
        grid[section] = {name: _mapping(path, f"{section}: {name}", options) for name, options in named.items()}
    _check_seeds(path, grid["seeds"])
    _check_folders(path, "partition", [*grid["partitions"], REFERENCES])
    _check_folders(path, "method", [*grid["methods"], *grid["references"]])
    grid["config"] = str(folder / str(grid["config"]))
    if not Path(grid["config"]).is_file():
        raise MissingResourceError(f"The grid {str(path)!r} needs the configuration {grid['config']!r}: no such file.")
    return grid


def runs_of(grid: Mapping[str, Any], out: Path, further: Sequence[str] = ()) -> Iterator[Run]:
    """Yield all runs of a grid: all runs of one seed, then those of the next.

    Args:
        grid: The sections from `read_grid`.
        out: The folder of all runs.
        further: Options for every run, such as ``["--data.dataset", "ImageFolder"]``.
    """
    config = ["--config", grid["config"]]
    for seed in grid["seeds"]:
        for partition, changes in {**grid["partitions"], REFERENCES: {}}.items():
            methods = grid["references"] if partition == REFERENCES else grid["methods"]
            for method, own in methods.items():
                folder = out / slug(partition) / slug(method) / f"seed-{seed}"
                kept, changed = without_replaced(grid["arguments"], changes, own), without_replaced(changes, own)
                own_options = (*as_options(changed), *as_options(own), "--seed_everything", str(seed))
                options = (*config, *as_options(kept), *further, *own_options)
                yield Run(partition, method, seed, folder, options)


def without_replaced(options: Mapping[str, Any], *later: Mapping[str, Any]) -> dict[str, Any]:
    """Return options without those of a class that later ones put another in place of, or nothing.

    ``{"teacher": "A", "teacher.size": 3}`` before ``{"teacher": None}`` is ``{"teacher": "A"}``.
    """
    chosen = [(key, value) for each in later for key, value in each.items()]
    replaced = [f"{key}." for key, value in chosen if value is None or value != options.get(key)]
    return {key: value for key, value in options.items() if not key.startswith(tuple(replaced))}


def as_options(changes: Mapping[str, Any]) -> list[str]:
    """Turn ``{"data.views": 4}`` into ``["--data.views", "4"]``."""
    pairs = ((f"--{key}", value if isinstance(value, str) else json.dumps(value)) for key, value in changes.items())
    return [text for pair in pairs for text in pair]


def slug(name: str) -> str:
    """Turn a name into the name of a folder: ``"KD, T = 2"`` becomes ``"kd-t-2"``."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def _load(path: Path, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], Path]:
    """Read a grid and its bases; ``above`` are the grids that this grid is a base of.

    Returns:
        The sections, and the folder of the grid that names the configuration.
    """
    if path.resolve() in above:
        raise FedKDError(f"The grid {str(path)!r} is its own base, directly or through another grid.")
    if not path.is_file():
        raise MissingResourceError(f"There is no grid at {str(path)!r}.")
    grid = read_yaml(path, "grid")
    if not isinstance(grid, dict):
        raise FedKDError(f"The grid {str(path)!r} must have sections {', '.join(NEEDED)}, got {grid!r}.")
    for section in grid:
        if section not in SECTIONS:
            raise unknown_name(f"section of the grid {path.name}", section, SECTIONS)
    if "base" not in grid:
        return grid, path.parent
    base, folder = _load(path.parent / str(grid.pop("base")), (*above, path.resolve()))
    arguments = [_mapping(path, "arguments", each.get("arguments")) for each in (base, grid)]
    merged = {**base, **grid, "arguments": {**arguments[0], **arguments[1]}}
    return merged, path.parent if "config" in grid else folder


def _chosen(path: Path, names: Mapping[str, Any], given: Sequence[str]) -> dict[str, str]:
    chosen = {}
    for pair in given:
        name, separator, value = pair.partition("=")
        if not separator:
            raise FedKDError(f"--set takes NAME=VALUE, got {pair!r}.")
        if name not in names:
            raise unknown_name(f"name of the grid {path.name}", name, names)
        chosen[name] = value
    return chosen


def _mapping(path: Path, section: str, value: Any) -> dict[str, Any]:
    """Return a section's mapping with strings as keys. An empty section gives an empty mapping."""
    if value is not None and not isinstance(value, dict):
        raise FedKDError(f"The grid {str(path)!r}: {section} must be a mapping, got {value!r}.")
    return {str(key): item for key, item in (value or {}).items()}


def _check_seeds(path: Path, seeds: Any) -> None:
    valid = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not valid or len(set(seeds)) < len(seeds):
        raise FedKDError(f"The grid {str(path)!r}: seeds must be a list of distinct integers >= 0, got {seeds!r}.")


def _check_folders(path: Path, kind: str, names: Sequence[str]) -> None:
    """Raise unless every name has its own folder: two runs in one folder would resume each other."""
    owners: dict[str, str] = {}
    for name in names:
        folder = slug(name)
        if not folder.strip("."):
            raise FedKDError(f"The grid {str(path)!r}: the {kind} {name!r} needs a letter a-z or a digit in its name.")
        if folder in owners:
            both = f"{owners[folder]!r} and {name!r}"
            raise FedKDError(f"The grid {str(path)!r}: two {kind}s, {both}, have the folder {folder!r}. Rename one.")
        owners[folder] = name


def _put_in(value: Any, texts: Mapping[str, Any], values: Mapping[str, Any], path: Path) -> Any:
    """Replace ``${NAME}`` at any depth.

    Args:
        value: A part of the grid.
        texts: What stands for a name within a text.
        values: What stands for a name where a value consists only of ``${NAME}``.
        path: The grid's file, for an error.
    """
    if isinstance(value, dict):
        return {key: _put_in(item, texts, values, path) for key, item in value.items()}
    if isinstance(value, list):
        return [_put_in(item, texts, values, path) for item in value]
    if not isinstance(value, str) or "$" not in value:
        return value
    whole = re.fullmatch(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))", value)
    try:
        return values[whole[1] or whole[2]] if whole else Template(value).substitute(texts)
    except KeyError as error:
        raise unknown_name(f"name in the grid {path.name}", str(error.args[0]), texts) from error
    except ValueError as error:
        raise FedKDError(f"The grid {str(path)!r}: {value!r} is not valid; write ${{NAME}}, or $$ for a $.") from error
