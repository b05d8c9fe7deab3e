"""`MetricsFile`: ``metrics.csv``, a row a round, to which a round's row is appended."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedkd.core.errors import FedKDError
from fedkd.core.storage import write_atomically

if TYPE_CHECKING:  # `fedkd report` reads the file without torch
    from fedkd.core.messages import Metrics

TEXTS = ("cohort", "client_val_accuracy")
"""Columns that are text, even if they look like a number: a cohort of one client."""


class MetricsFile:
    """A CSV file whose rows are rounds.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] | None = None  # of the file as it is; None before this object wrote it

    def write(self, rows: Sequence[Metrics]) -> None:
        """Write the file anew."""
        columns = list(dict.fromkeys(name for row in rows for name in row))
        write_atomically(self.path, _as_csv(columns, rows, header=True) if rows else "")
        self._columns = columns

    def append(self, row: Metrics) -> None:
        """Append a round's row. The file is written anew only if the row has a column that those before had not."""
        if self._columns is None or not set(row) <= set(self._columns):
            self.write([*(read(self.path) if self._columns else []), row])
            return
        with self.path.open("a", newline="") as file:
            file.write(_as_csv(self._columns, [row], header=False))
            file.flush()
            os.fsync(file.fileno())


def read(path: Path, count: int | None = None) -> list[Metrics]:
    """Return the rows of the first rounds.

    Args:
        path: A file that `MetricsFile` wrote.
        count: How many; None is all. What follows them, of a round that was not committed, is not read.

    Raises:
        FedKDError: If the file has not so many rows, or others.
    """
    try:
        text = path.read_text()
    except OSError as error:
        if count == 0:
            return []
        raise FedKDError(f"{str(path)!r}, with the rows of {count} finished rounds, cannot be read: {error}") from error
    rows = []
    for number, found in enumerate(csv.DictReader(io.StringIO(text))):
        if number == count:
            break
        if found.get("round") != str(number) or None in found:  # None: more cells than columns
            raise FedKDError(f"{str(path)!r} is damaged in line {number + 2}, the row of round {number}.")
        rows.append({name: _value(name, value) for name, value in found.items() if value not in ("", None)})
    if count is not None and len(rows) < count:
        raise FedKDError(f"{str(path)!r} has the rows of {len(rows)} rounds; the checkpoint is of round {count}.")
    return rows


def _as_csv(columns: Sequence[str], rows: Iterable[Metrics], *, header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _value(name: str, text: str) -> str | int | float:
    """Return what a cell held."""
    if name in TEXTS:
        return text
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text
