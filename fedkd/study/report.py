"""A study's tables, in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from fedkd.core.storage import write_atomically
from fedkd.study.results import Row, partitions_of, seeds_of


def write_tables(rows: Sequence[Row], path: Path) -> None:
    """Write Markdown in the order of the grid: a table of all partitions, then a table of all measures for each.

    Where clients hold images out, a table of the accuracy on these comes first: settings are chosen by it, and not by
    the test set.
    """
    partitions = partitions_of(row["partition"] for row in rows)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    measures = {"final": "last round", "best": "best round", "worst_class": "worst class"}
    lines = []
    if any(row["validation"] is not None for row in rows):
        lines += [*_overview("validation, last round", "validation", rows, partitions, methods), ""]
        measures = {"validation": "validation", **measures}
    lines += _overview("last round", "final", rows, partitions, methods)
    for partition in partitions:
        header = ["method", *measures.values(), "teacher", "seeds"]
        lines += ["", f"### {partition}", "", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
        for method in methods:
            if own := seeds_of(rows, partition, method):
                cells = [mean_percent(known(row[key] for row in own)) for key in measures]
                teacher = known(row["teacher"] for row in own)
                cells += [f"{100 * statistics.mean(teacher):.1f}" if teacher else "", str(len(own))]
                lines.append(f"| {method} | {' | '.join(cells)} |")
    write_atomically(path, "\n".join([*lines, ""]))


def _overview(
    title: str, key: str, rows: Sequence[Row], partitions: Sequence[str], methods: Sequence[str]
) -> list[str]:
    """Return the lines of a table of one measure: a row a method, a column a partition."""
    lines = [f"| {title} | {' | '.join(partitions)} |", "|---" * (len(partitions) + 1) + "|"]
    for method in methods:
        cells = [mean_percent(known(row[key] for row in seeds_of(rows, partition, method))) for partition in partitions]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def known(values: Iterable[float | None]) -> list[float]:
    """Return the numbers among values."""
    return [value for value in values if value is not None]


def mean_percent(values: Sequence[float]) -> str:
    """Return the mean in percent, with the standard deviation if there are several values; "" without values."""
    if not values:
        return ""
    text = f"{100 * statistics.mean(values):.1f}"
    return text if len(values) < 2 else f"{text} ± {100 * statistics.stdev(values):.1f}"
