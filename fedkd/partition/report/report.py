"""`PartitionReport`: the counts of a partition as tables, as a plot, and as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fedkd.core.errors import unknown_name
from fedkd.core.storage import make_parent
from fedkd.partition.report.counts import PartitionCounts
from fedkd.partition.report.tables import counts_table, skew_table

if TYPE_CHECKING:
    from rich.table import Table

    from fedkd.partition.report.figure import PartitionFigure


def plot_file(path: str | Path) -> Path:
    """Return the file for a plot, whose folder is there.

    Args:
        path: The file. Without a suffix it is PNG.

    Raises:
        FedKDError: If matplotlib does not write that format, or the file cannot be written there.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    path = Path(path) if Path(path).suffix else Path(path).with_suffix(".png")
    formats = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise unknown_name("plot format", path.suffix[1:], formats)
    make_parent(path)
    return path


@dataclass(frozen=True, eq=False)
class PartitionReport(PartitionCounts):
    """How many images of each class each client holds, with methods that show the counts.

    Args:
        counts: Images by client and class, int64 (num_clients, num_classes).
        classes: The name of each class.
        public: Images that belong to no client.
        validation: Images that clients hold out for validation; ``counts`` does not include them.

    Raises:
        FedKDError: If ``counts`` is not a matrix with a column for each class.
    """

    def table(self) -> Table:
        """Return a Rich table of images by client and class: see `fedkd.partition.report.tables.counts_table`."""
        return counts_table(self)

    def skew_table(self) -> Table:
        """Return a Rich table of each client's skew: see `fedkd.partition.report.tables.skew_table`."""
        return skew_table(self)

    def _repr_html_(self) -> str:
        """Show both tables in a notebook."""
        from fedkd.core.notebook import as_html

        return as_html(self.table(), self.skew_table())

    def figure(self, kind: Literal["heat", "bubble"] = "heat") -> PartitionFigure:
        """Return a matplotlib figure: images by class and client, and above them one bar per client for its size.

        Args:
            kind: ``heat`` shows a count as a cell's color, ``bubble`` as a bubble's area.

        Raises:
            FedKDError: If ``kind`` is neither.
        """
        from fedkd.partition.report.figure import draw

        return draw(self, kind)

    def plot(self, path: str | Path, kind: Literal["heat", "bubble"] = "heat") -> Path:
        """Write `figure` to a file and return its path. Missing folders are created.

        Args:
            path: The file. The suffix names the format; without a suffix it is PNG.
            kind: As for `figure`.

        Raises:
            FedKDError: If matplotlib does not write that format, or ``kind`` is unknown.
        """
        path = plot_file(path)
        self.figure(kind).savefig(path, dpi=160)
        return path

    def write_json(self, path: str | Path) -> Path:
        """Write `to_dict` to a file and return its path. Missing folders are created."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_dict()) + "\n", encoding="utf-8")
        return path
