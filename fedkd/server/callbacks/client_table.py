"""Each client's accuracy and loss, by round."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedkd.core.storage import write_atomically, writing
from fedkd.runs.metrics_file import as_csv
from fedkd.server.callbacks.base import RoundCallback, RoundEvent, RunEvent

NAME = "clients.csv"
COLUMNS = ("round", "client", "num_examples", "num_steps", "seconds", "val_accuracy")


class ClientTable(RoundCallback):
    """Writes ``clients.csv`` into the run directory: a row for each client of each round's cohort.

    Its columns are the round, the client, its training images, optimizer steps and seconds, the accuracy of the new
    global student on the images that the client holds out (empty without ``data.val_fraction``), and the mean of each
    training term over its last local epoch, such as ``train/loss``. A round whose process was killed right after its
    commit has no rows.
    """

    def on_run_start(self, event: RunEvent) -> None:
        """Drop the rows of rounds that were not finished."""
        path = event.run_dir / NAME
        if path.exists():
            columns, rows = read(path)
            write_atomically(
                path, as_csv(columns, [row for row in rows if int(row["round"]) < event.state.round], header=True)
            )

    def on_round_end(self, event: RoundEvent) -> None:
        """Add a row for each client."""
        rows: list[Mapping[str, Any]] = [
            {"round": event.row["round"], "client": client, **numbers} for client, numbers in event.clients.items()
        ]
        path = event.run_dir / NAME
        names = list(dict.fromkeys([*COLUMNS, *sorted({name for row in rows for name in row})]))
        columns = columns_of(path)
        if columns and set(names) <= set(columns):
            with writing(path), path.open("a", newline="", encoding="utf-8") as file:
                file.write(as_csv(columns, rows, header=False))
        else:  # the first rows, or a term that earlier rounds did not have
            before = read(path)[1] if columns else []
            write_atomically(path, as_csv(list(dict.fromkeys([*columns, *names])), [*before, *rows], header=True))


def columns_of(path: Path) -> list[str]:
    """Return the names of a CSV file's columns; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file), [])


def read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns and the rows of a table, without a row that a killed process wrote in part."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or [])
        whole = [row for row in reader if set(row) == set(columns) and None not in row.values()]
        return columns, [row for row in whole if row["round"].isdecimal()]
