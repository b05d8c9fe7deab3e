"""The results of finished runs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedkd.core.sealed import DamagedFileError, read_record
from fedkd.core.storage import write_atomically
from fedkd.runs import metrics_file
from fedkd.runs.record import final_validation
from fedkd.study.grid import REFERENCES, Run

Row = dict[str, Any]


def row_of(run: Run) -> Row:
    """Read a finished run's results. Accuracies are in [0, 1]; ``validation`` is that of all held-out client images."""
    path = run.folder / "summary.json"
    summary = read_summary(path)
    rows = _rows(run, summary)
    try:
        per_class, teacher = summary["per_class_accuracy"], summary["teacher"] or {}
        return {
            "partition": run.partition,
            "method": run.method,
            "seed": run.seed,
            "rounds": summary["rounds"],
            "final": summary["balanced_accuracy"],
            "best": summary["best"]["balanced_accuracy"],
            "validation": final_validation(summary, rows),
            "worst_class": min(value for value in per_class.values() if value is not None),
            "teacher": teacher.get("balanced_accuracy"),
            "bytes_up": summary["bytes_up"],
            "minutes": summary["round_seconds"] / 60,
        }
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise DamagedFileError(f"{str(path)!r} is not the summary of a run: {error!r}.") from error


def curve_of(run: Run) -> list[float]:
    """Read the balanced accuracy after each round."""
    rows = _rows(run, read_summary(run.folder / "summary.json"))
    try:
        return [float(row["balanced_accuracy"]) for row in rows]
    except (KeyError, ValueError) as error:
        path = run.folder / "metrics.csv"
        raise DamagedFileError(f"{str(path)!r} has no balanced accuracy for every round.") from error


def _rows(run: Run, summary: Mapping[str, Any]) -> list[Row]:
    """Read the rows of a finished run's ``metrics.csv``."""
    return metrics_file.read(run.folder / "metrics.csv", summary.get("rounds"), summary.get("metrics_sha256"))


def read_summary(path: Path) -> dict[str, Any]:
    """Read a run's ``summary.json``.

    Raises:
        DamagedFileError: If it is damaged. Without the file a run is not finished, so the study would finish it again.
    """
    try:
        return read_record(path)
    except DamagedFileError as error:
        raise DamagedFileError(f"{error} Delete it, and it is written again from the run's last round.") from error


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write one row per run; ``rows`` must not be empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def partitions_of(names: Iterable[str]) -> list[str]:
    """Return the partitions in their order. That of the references is included only if there is no other."""
    return [name for name in dict.fromkeys(names) if name != REFERENCES] or [REFERENCES]


def seeds_of(rows: Sequence[Row], partition: str, method: str) -> list[Row]:
    """Return a method's rows for a partition. The rows of a reference count for every partition."""
    return [row for row in rows if row["method"] == method and row["partition"] in (partition, REFERENCES)]
