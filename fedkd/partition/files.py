"""One value for each image, read from a file: JSON, CSV, NPY or NPZ."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.core.errors import FedKDError, MissingResourceError, unknown_name

SUFFIXES = (".csv", ".json", ".npy", ".npz")


def read_file(path: str | Path) -> Any:
    """Read a file of values.

    Args:
        path: A ``.csv`` whose first line names the columns, a ``.json``, a ``.npy`` or a ``.npz``.

    Returns:
        An array (NPY), a JSON value, or a dictionary by column: of lists of strings (CSV) or of arrays (NPZ).

    Raises:
        MissingResourceError: If the file does not exist.
        FedKDError: If it has another suffix or cannot be read.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        raise FedKDError(f"{path}: the file must end in one of {', '.join(SUFFIXES)}.")
    if not path.is_file():
        raise MissingResourceError(f"{path} does not exist: it must hold a value for each image.")
    try:
        return _read(path)
    except RecursionError as error:
        raise FedKDError(f"{path} could not be read: its lists are nested too deeply.") from error
    except Exception as error:  # numpy and zipfile raise whatever their parts do for bytes that are no such file
        raise FedKDError(f"{path} could not be read ({error}).") from error


def choose_column(content: Any, column: str | None, name: str) -> Any:
    """Return the value of a dictionary under ``column``, or its only value. Return any other content unchanged.

    Args:
        content: The result of `read_file`.
        column: The name to choose; not needed if there is only one.
        name: The name of the content in an error.

    Raises:
        FedKDError: If there is no such column, or there are several columns and ``column`` is None.
    """
    if not isinstance(content, Mapping):
        return content
    if not content:
        raise FedKDError(
            f"{name} has no columns: the first line of a CSV names them, and each further line is an image."
        )
    if column is None and len(content) != 1:
        raise FedKDError(f"{name} has {len(content)} columns: name one with column, one of: {', '.join(content)}.")
    if column is not None and column not in content:
        raise unknown_name(f"column of {name}", column, content)
    return content[next(iter(content)) if column is None else column]


def values_by_image(content: Any, size: int, name: str) -> np.ndarray:
    """Return one integer or string per image, (size,). Strings that are all integers, as in a CSV, become integers.

    Raises:
        FedKDError: If the number of values is not ``size``, or a value is missing or of another type.
    """
    try:
        values = np.asarray(content)
    except ValueError:  # rows of different lengths
        values = np.empty((0, 0))
    if values.ndim != 1:
        raise FedKDError(f"{name} must hold one value for each image, as a list of integers or of strings.")
    if len(values) != size:
        raise FedKDError(
            f"{name} must hold one value for each of the {size:,} training images, public ones included, but has "
            f"{len(values):,} (the first line of a CSV names the columns)."
        )
    if values.dtype.kind == "U":
        if not np.all(filled := np.char.str_len(values) > 0):
            raise FedKDError(f"{name} has no value for the image at position {np.argmin(filled)}.")
        try:
            return values.astype(np.int64)
        except (ValueError, OverflowError):
            return values
    if values.dtype.kind not in "iu":
        raise FedKDError(f"{name} must hold integers or strings, got {values.dtype}.")
    return values


def _read(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    if suffix == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
        header, *rows = rows or [[]]
        for number, row in enumerate(rows, 1):
            if len(row) != len(header):
                raise ValueError(f"row {number} has {len(row)} values for {len(header)} columns")
        return {name: [row[i].strip() for row in rows] for i, name in enumerate(map(str.strip, header))}
    content = np.load(path, allow_pickle=False)
    if suffix == ".npy":
        return content
    with content:
        return {name: content[name] for name in content.files}
