"""A study's tables, in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from fedkd.core.storage import write_atomically
from fedkd.study.results import Row, partitions_of, seeds_of


def write_tables(rows: Sequence[Row], path: Path) -> None:
    """Write Markdown in the order of the grid: a table of all partitions, then a table of all measures for each."""
    partitions = partitions_of(row["partition"] for row in rows)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [f"| last round | {' | '.join(partitions)} |", "|---" * (len(partitions) + 1) + "|"]
    for method in methods:
        cells = [mean_percent([row["final"] for row in seeds_of(rows, partition, method)]) for partition in partitions]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    for partition in partitions:
        lines += ["", f"### {partition}", "", "| method | last round | best round | worst class | teacher | seeds |"]
        lines += ["|---|---|---|---|---|---|"]
        for method in methods:
            if own := seeds_of(rows, partition, method):
                cells = [mean_percent([row[key] for row in own]) for key in ("final", "best", "worst_class")]
                teacher = [row["teacher"] for row in own if row["teacher"] is not None]
                cells += [f"{100 * statistics.mean(teacher):.1f}" if teacher else "", str(len(own))]
                lines.append(f"| {method} | {' | '.join(cells)} |")
    write_atomically(path, "\n".join([*lines, ""]))


def mean_percent(values: Sequence[float]) -> str:
    """Return the mean in percent, with the standard deviation if there are several values; "" without values."""
    if not values:
        return ""
    text = f"{100 * statistics.mean(values):.1f}"
    return text if len(values) < 2 else f"{text} ± {100 * statistics.stdev(values):.1f}"
