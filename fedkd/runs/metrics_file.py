"""`MetricsFile`: ``metrics.csv``, a row a round, to which a round's row is appended.

A run that goes on takes the rows of the rounds before from this file, so a checkpoint has their fingerprint.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.core.errors import FedKDError
from fedkd.core.storage import write_atomically, writing

if TYPE_CHECKING:  # `fedkd report` reads the file without torch
    from fedkd.core.messages import Metrics

TEXTS = ("cohort", "client_val_accuracy")
"""Columns that are text, even if they look like a number: a cohort of one client."""


class MetricsFile:
    """A CSV file whose rows are rounds.

    Args:
        path: The file.

    Attributes:
        fingerprint: Of the rows that this object wrote; see `fingerprint_of`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fingerprint = ""
        self._columns: list[str] | None = None  # of the file as it is; None before this object wrote it

    def write(self, rows: Sequence[Metrics]) -> None:
        """Write the file anew."""
        columns = list(dict.fromkeys(name for row in rows for name in row))
        write_atomically(self.path, as_csv(columns, rows, header=True) if rows else "")
        self._columns, self.fingerprint = columns, fingerprint_of(rows)

    def append(self, row: Metrics) -> None:
        """Append a round's row. The file is written anew only if the row has a column that those before had not."""
        if self._columns is None or not set(row) <= set(self._columns):
            self.write([*(read(self.path, fingerprint=self.fingerprint) if self._columns else []), row])
            return
        with writing(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            file.write(as_csv(self._columns, [row], header=False))
            file.flush()
            os.fsync(file.fileno())
        self.fingerprint = fingerprint_of([row], self.fingerprint)


def fingerprint_of(rows: Iterable[Metrics], before: str = "") -> str:
    """Return a hash of rows, "" for none: of their cells' texts by column, so that it is the same once they are read.

    Args:
        rows: The rows.
        before: The fingerprint of the rows before them.
    """
    for row in rows:
        cells = {name: str(value) for name, value in row.items() if value not in ("", None)}
        before = hashlib.sha256((before + json.dumps(cells, sort_keys=True)).encode()).hexdigest()
    return before


def read(path: Path, count: int | None = None, fingerprint: str | None = None) -> list[Metrics]:
    """Return the rows of the first rounds.

    Args:
        path: A file that `MetricsFile` wrote.
        count: How many; None is all. What follows them, of a round that was not committed, is not read.
        fingerprint: Theirs; None is not known.

    Raises:
        FedKDError: If the file has not so many rows, or others.
    """
    if count == 0:
        return []
    try:
        text = path.read_bytes().decode()
    except (OSError, ValueError) as error:
        rounds = "finished rounds" if count is None else f"{count} finished rounds"
        raise FedKDError(f"{str(path)!r}, with the rows of {rounds}, cannot be read: {error}") from error
    rows: list[Metrics] = []
    try:
        for number, found in enumerate(csv.DictReader(io.StringIO(text, newline=""))):
            if number == count:
                break
            if found.get("round") != str(number) or None in found:  # None: more cells than columns
                raise FedKDError(f"{str(path)!r} is damaged in line {number + 2}, the row of round {number}.")
            rows.append({name: _value(name, value) for name, value in found.items() if value not in ("", None)})
    except csv.Error as error:
        raise FedKDError(f"{str(path)!r} is damaged after the row of round {len(rows) - 1}: {error}.") from error
    if count is not None and len(rows) < count:
        raise FedKDError(f"{str(path)!r} has the rows of {len(rows)} rounds; the checkpoint is of round {count}.")
    if fingerprint is not None and fingerprint_of(rows) != fingerprint:
        raise FedKDError(f"{str(path)!r} is damaged, or was changed: its rows are not those that fedkd wrote.")
    return rows


def as_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, header: bool) -> str:
    """Return rows as the text of a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _value(name: str, text: str) -> str | int | float:
    """Return what a cell held: a number if that is written just so, so that writing it again gives the same text."""
    if name not in TEXTS:
        for kind in (int, float):
            try:
                value = kind(text)
            except ValueError:
                continue
            if str(value) == text:
                return value
    return text
