"""The results of finished runs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fedkd.core.storage import write_atomically
from fedkd.study.grid import REFERENCES, Run

Row = dict[str, Any]


def row_of(run: Run) -> Row:
    """Read a finished run's results. Accuracies are in [0, 1]."""
    summary = json.loads((run.folder / "summary.json").read_text())
    per_class, teacher = summary["per_class_accuracy"], summary["teacher"] or {}
    return {
        "partition": run.partition,
        "method": run.method,
        "seed": run.seed,
        "rounds": summary["rounds"],
        "final": summary["balanced_accuracy"],
        "best": summary["best"]["balanced_accuracy"],
        "worst_class": min(value for value in per_class.values() if value is not None),
        "teacher": teacher.get("balanced_accuracy"),
        "bytes_up": summary["bytes_up"],
        "minutes": summary["round_seconds"] / 60,
    }


def curve_of(run: Run) -> list[float]:
    """Read the balanced accuracy after each round."""
    with (run.folder / "metrics.csv").open() as file:
        return [float(row["balanced_accuracy"]) for row in csv.DictReader(file)]


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
