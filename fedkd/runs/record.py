"""A run on disk, finished or not, read without torch: its rounds, settings and results."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.core.errors import FedKDError, MissingResourceError
from fedkd.core.sealed import read_record
from fedkd.runs import metrics_file
from fedkd.runs.layout import RECORD, round_checkpoints

if TYPE_CHECKING:
    from fedkd.core.messages import Metrics


@dataclass(frozen=True, eq=False)
class RunRecord:
    """What a run directory holds.

    Attributes:
        folder: The run directory, as it was given.
        rows: The metrics of each finished round; at least one.
        summary: ``summary.json``; empty if the run has none, or went on since it was written.
        settings: The run's settings by name. Those of an unfinished run are what its checkpoint has, which are fewer.
        notes: What is missing or wrong, a sentence each.
    """

    folder: Path
    rows: Sequence[Metrics]
    summary: Mapping[str, Any]
    settings: Mapping[str, Any]
    notes: Sequence[str] = ()

    @property
    def is_finished(self) -> bool:
        """Whether the summary is that of the last round."""
        return bool(self.summary)

    @property
    def teacher(self) -> Mapping[str, Any]:
        """The teacher's results; empty without a teacher, and before the run is finished."""
        return self.summary.get("teacher") or {}

    @property
    def validation(self) -> float | None:
        """The final student's accuracy on the images that all clients hold out; None if none does.

        An older or unfinished run has only that of its last round, on what the clients of this round hold out.
        """
        return final_validation(self.summary, self.rows)

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in order."""
        return [name.removeprefix("accuracy/") for name in self.rows[-1] if name.startswith("accuracy/")]

    @property
    def per_class(self) -> dict[str, float | None]:
        """Each class's accuracy after the last round; None for a class without test images."""
        last = self.rows[-1]
        return {name: finite(last.get(f"accuracy/{name}")) for name in self.classes}

    def column(self, name: str) -> list[float | None]:
        """Return a number for each round; None where the round has none."""
        return [finite(row.get(name)) for row in self.rows]

    @property
    def worst_class(self) -> list[float | None]:
        """Each round's lowest accuracy of a class."""
        of_classes = zip(*(self.column(f"accuracy/{name}") for name in self.classes), strict=True)
        return [min((v for v in values if v is not None), default=None) for values in of_classes]

    @property
    def clients(self) -> dict[int, list[float | None]]:
        """Each client's accuracy by round, on what it holds out; None for a round that it was not in."""
        by_round = [read_each_client(str(row.get("client_val_accuracy", ""))) for row in self.rows]
        found = sorted({client for values in by_round for client in values})
        return {client: [values.get(client) for values in by_round] for client in found}

    def json(self, name: str) -> dict[str, Any]:
        """Return a JSON file of the run; empty if there is none."""
        return read_json(self.folder / name)

    def failures(self) -> list[dict[str, str]]:
        """Return the rows of ``failures.csv``."""
        path = self.folder / "failures.csv"
        if not path.is_file():
            return []
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            return [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(file)]

    def student(self) -> dict[str, Any]:
        """Return what is in the header of ``student.safetensors``; empty if it is not there, or cannot be read."""
        content = _header(self.folder / "student.safetensors").get("fedkd", "{}")
        return json.loads(content)


def read_run(run_dir: str | Path) -> RunRecord:
    """Read a run.

    Args:
        run_dir: The run directory. The run may be finished, stopped, or still running.

    Raises:
        MissingResourceError: If there is no run.
        FedKDError: If no round is finished, or a file is damaged.
    """
    folder = Path(run_dir).expanduser()
    if not (folder / "metrics.csv").is_file():
        if folder.is_dir() and (folder / "checkpoints").is_dir():
            raise FedKDError(f"The run {str(folder)!r} has no finished round yet.")
        raise MissingResourceError(f"No run at {str(folder)!r}: there is no {str(folder / 'metrics.csv')!r}.")
    summary, checkpoints, notes = read_json(folder / "summary.json"), round_checkpoints(folder), []
    # A row that was written shortly before a kill does not count without its checkpoint, nor does a checkpoint without
    # its row.
    num_lines = (folder / "metrics.csv").read_bytes().count(b"\n") - 1
    finished = max([summary.get("rounds") or 0, *(each for each in checkpoints if each <= num_lines)]) or None
    is_of_summary = summary.get("rounds") == finished
    fingerprint = (
        summary.get("metrics_sha256") if is_of_summary else _metrics_fingerprint(checkpoints.get(finished or 0))
    )
    rows = metrics_file.read(folder / "metrics.csv", finished, fingerprint)
    if not rows:
        raise FedKDError(f"The run {str(folder)!r} has no finished round yet.")
    settings = dict(summary.get("settings") or {})
    if summary and summary.get("rounds") != len(rows):
        notes.append(f"The run went on after round {summary.get('rounds')}, when summary.json was written.")
        summary = {}
    if summary.get("stopped"):
        notes.append(f"A callback ended the run early: {summary['stopped']}. Without it the run goes on.")
    if not summary:
        notes.append(f"The run is not finished: {len(rows)} rounds are on disk.")
    if not settings:
        settings, unread = _identity(checkpoints)
        notes += [f"{path.name} cannot be read." for path in unread]
        if not settings:
            notes.append("Its settings are not known: they are in summary.json and in the checkpoints.")
    return RunRecord(folder, rows, summary, settings, tuple(notes))


def final_validation(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the accuracy on held-out images that settings are chosen by: see `RunRecord.validation`.

    Args:
        summary: Of the run; it may be empty.
        rows: Its metrics, at least one round.
    """
    return finite(summary.get("val_accuracy", rows[-1].get("val_accuracy")))


def read_json(path: Path) -> dict[str, Any]:
    """Return what a file of a run holds; empty if there is no such file.

    Raises:
        DamagedFileError: If it is damaged.
    """
    return read_record(path) if path.is_file() else {}


def read_each_client(cell: str) -> dict[int, float]:
    """Return what `fedkd.runs.summary.each_client` wrote."""
    pairs = (pair.partition("=") for pair in cell.split())
    try:
        return {int(client): float(value) for client, _, value in pairs}
    except ValueError as error:
        raise FedKDError(f"metrics.csv is damaged: {cell!r} is no list of clients and accuracies.") from error


def finite(value: Any) -> float | None:
    """Return a number; None for what is none, is NaN or is infinite."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def _identity(checkpoints: Mapping[int, Path]) -> tuple[dict[str, Any], list[Path]]:
    """Return the settings in the newest checkpoint that can be read, and those that cannot."""
    unread: list[Path] = []
    for path in reversed(list(checkpoints.values())):
        if record := _header(path).get(RECORD):
            return dict(json.loads(record).get("identity", {})), unread
        unread.append(path)
    return {}, unread


def _metrics_fingerprint(checkpoint: Path | None) -> str | None:
    """Return the fingerprint of the rows that belong to a checkpoint; None if it is not known."""
    record = {} if checkpoint is None else json.loads(_header(checkpoint).get(RECORD, "{}"))
    return record.get("metrics")


def _header(path: Path) -> Mapping[str, str]:
    """Return the metadata of a safetensors file; empty if it is not there, or cannot be read."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return {}
    try:
        with safe_open(path, framework="np") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}
