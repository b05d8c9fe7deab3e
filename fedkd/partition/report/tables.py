"""The tables of a partition. rich is imported on use, because the rest of the package needs only numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedkd.partition.report.counts import PartitionCounts

if TYPE_CHECKING:
    from rich.table import Table

MAX_ROWS = 100  # with more clients, the table shows the first HEAD_ROWS and the sum of the others
HEAD_ROWS = 50
MAX_COLUMNS = 10  # with more classes, the table names each client's largest ones, to fit 80 characters


def counts_table(report: PartitionCounts) -> Table:
    """Return a table with one row per client, and the totals.

    Up to 10 classes have one column each. With more classes, every row names its three largest ones. With more than 100
    clients, the table shows the first 50 and one row with the sum of the others.
    """
    from rich.text import Text

    wide = len(report.classes) > MAX_COLUMNS
    headers = ["classes", "largest"] if wide else list(report.classes)
    table = _table("Images by client and class", report.summary())
    for column, header in enumerate(headers):
        # Only long class names may wrap, numbers never.
        width = None if wide else len(f"{report.counts[:, column].sum():,}")
        justify = "left" if header == "largest" and wide else "right"
        table.add_column(Text(header), justify=justify, min_width=width, overflow="fold")  # type: ignore[arg-type]
    table.add_column("total", justify="right", no_wrap=True, style="bold")

    def add(name: str, row: np.ndarray, *, style: str | None = None, end_section: bool = False) -> None:
        texts = _largest(row, report.classes) if wide else [f"{n:,}" if n else "·" for n in row]
        cells = [Text(text, style="dim" if text == "·" else "") for text in texts]
        table.add_row(name, *cells, f"{row.sum():,}", style=style, end_section=end_section)

    shown = _shown(report)
    for client, row in enumerate(report.counts[:shown]):
        last = client == report.num_clients - 1
        add(str(client), row, style=None if row.any() else "dim", end_section=last)
    if shown < report.num_clients:
        add(f"{report.num_clients - shown:,} more", report.counts[shown:].sum(axis=0), end_section=True)
    add("all", report.counts.sum(axis=0), style="bold")
    return table


def skew_table(report: PartitionCounts) -> Table:
    """Return each client's size, classes, effective classes and distance, and their median and mean over clients.

    With more than 100 clients, the table shows the first 50. Median and mean are over all clients.
    """
    table = _table("Skew of each client", "JS distance to all clients together: 0 the same, 1 disjoint")
    for header in ("images", "classes", "effective classes", "JS distance"):
        table.add_column(header, justify="right", no_wrap=True)
    held = np.count_nonzero(report.counts, axis=1)  # (J,)
    effective, distance = report.effective_classes, report.js_distance
    shown = _shown(report)
    for client in range(shown):
        empty = not held[client]
        last = ["·", "·"] if empty else [f"{effective[client]:.2f}", f"{distance[client]:.3f}"]
        end = client == shown - 1
        cells = [f"{report.sizes[client]:,}", f"{held[client]}", *last]
        table.add_row(str(client), *cells, style="dim" if empty else None, end_section=end)
    skew = report.skew()
    for name, of in (("median", np.median), ("mean", np.mean)):
        numbers = [skew["sizes"][name], of(held) if len(held) else None]
        numbers += [skew["effective_classes"][name], skew["js_distance"][name]]
        cells = [
            "·" if n is None else f"{n:{form}}" for n, form in zip(numbers, (",.1f", ".1f", ".2f", ".3f"), strict=True)
        ]
        table.add_row(name, *cells, style="bold")
    return table


def _table(title: str, caption: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=0, title=title, caption=caption, min_width=60)
    table.add_column("client", justify="right", no_wrap=True)
    return table


def _shown(report: PartitionCounts) -> int:
    return report.num_clients if report.num_clients <= MAX_ROWS else HEAD_ROWS


def _largest(row: np.ndarray, classes: tuple[str, ...]) -> list[str]:
    """Return the number of classes in a row of counts, and its three largest classes by name."""
    largest = [k for k in np.argsort(-row, kind="stable")[:3] if row[k]]
    return [str(np.count_nonzero(row)), ", ".join(f"{classes[k]} {row[k]:,}" for k in largest) or "·"]
