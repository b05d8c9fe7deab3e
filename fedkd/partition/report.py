"""What a partition looks like: counts of client x class as a value, a table and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd.errors import FedKDError, unknown_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

MAX_ROWS = 100  # a table of more clients shows the first HEAD_ROWS and sums up the rest
HEAD_ROWS = 50
MAX_COLUMNS = 10  # a table of more classes names each client's largest ones: it fits 80 characters


@dataclass(frozen=True, eq=False)
class PartitionReport:
    """How many images of each class each client holds.

    Args:
        counts: Images by client and class, int64 (num_clients, num_classes).
        classes: The name of each class.
        public: Images that belong to no client.

    Raises:
        FedKDError: If ``counts`` is not a matrix with a column for each class.
    """

    counts: np.ndarray
    classes: tuple[str, ...]
    public: int = 0

    def __post_init__(self) -> None:
        """Check that the counts fit the classes."""
        if self.counts.ndim != 2 or self.counts.shape[1] != len(self.classes):
            raise FedKDError(
                f"counts must be (clients, {len(self.classes)}), a column a class, got shape {self.counts.shape}."
            )

    @classmethod
    def from_shards(
        cls, shards: Sequence[np.ndarray], targets: np.ndarray | Sequence[int], classes: Sequence[str], public: int = 0
    ) -> PartitionReport:
        """Count the images of each client and class.

        Args:
            shards: Each client's positions in ``targets``.
            targets: The class of every image, integers (N,); a CPU tensor will do.
            classes: The name of each class, in the order of the targets.
            public: Images that belong to no client.

        Raises:
            FedKDError: If an image of a client has a target that no class name stands for.
        """
        targets, num_classes = np.asarray(targets), len(classes)
        owned = [targets[np.asarray(shard, dtype=np.int64)] for shard in shards]
        for client, labels in enumerate(owned):
            if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
                raise FedKDError(
                    f"targets must lie between 0 and {num_classes - 1}, one for each class name; client {client} holds "
                    f"{labels.min()} to {labels.max()}."
                )
        rows = [np.bincount(labels, minlength=num_classes) for labels in owned]
        counts = np.array(rows, dtype=np.int64).reshape(len(rows), num_classes)
        return cls(counts, tuple(str(name) for name in classes), int(public))

    @property
    def num_clients(self) -> int:
        """How many clients there are, those without images included."""
        return len(self.counts)

    @property
    def sizes(self) -> np.ndarray:
        """Images of each client, int64 (num_clients,)."""
        return self.counts.sum(axis=1)

    @property
    def empty_clients(self) -> tuple[int, ...]:
        """The clients without images."""
        return tuple(np.flatnonzero(self.sizes == 0).tolist())

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain lists and numbers, ready for JSON."""
        return {
            "num_clients": self.num_clients,
            "classes": list(self.classes),
            "counts": self.counts.tolist(),
            "sizes": self.sizes.tolist(),
            "empty_clients": list(self.empty_clients),
            "public": self.public,
        }

    def summary(self) -> str:
        """Return one line: how many clients, images and classes, and what is empty or public."""
        counts = {
            "client": self.num_clients,
            "image": int(self.counts.sum()),
            "class": len(self.classes),
            "empty client": len(self.empty_clients),
            "public image": self.public,
        }
        plural = {name: name + ("es" if name == "class" else "s") for name in counts}
        parts = [f"{n:,} {name if n == 1 else plural[name]}" for name, n in counts.items() if n]
        return ", ".join(parts)

    def table(self) -> Table:
        """Return a Rich table with a row a client and totals.

        Up to 10 classes have a column each; with more, every row names its three largest classes. Beyond 100 clients
        the first 50 are shown and one row sums up the rest.
        """
        from rich import box
        from rich.table import Table
        from rich.text import Text

        wide = len(self.classes) > MAX_COLUMNS
        headers = ["classes", "largest"] if wide else list(self.classes)
        table = Table(
            box=box.SIMPLE_HEAD, padding=0, title="Images by client and class", caption=self.summary(), min_width=60
        )
        table.add_column("client", justify="right", no_wrap=True)
        for column, header in enumerate(headers):
            # A number is never broken over lines, a long class name may be.
            width = None if wide else len(f"{self.counts[:, column].sum():,}")
            justify = "left" if header == "largest" and wide else "right"
            table.add_column(Text(header), justify=justify, min_width=width, overflow="fold")  # type: ignore[arg-type]
        table.add_column("total", justify="right", no_wrap=True, style="bold")

        def add(name: str, row: np.ndarray, *, style: str | None = None, end_section: bool = False) -> None:
            cells = [Text(cell) for cell in (self._brief(row) if wide else [f"{n:,}" if n else "·" for n in row])]
            for cell in cells:
                cell.stylize("dim" if cell.plain == "·" else "")
            table.add_row(name, *cells, f"{row.sum():,}", style=style, end_section=end_section)

        shown = self.num_clients if self.num_clients <= MAX_ROWS else HEAD_ROWS
        for client, row in enumerate(self.counts[:shown]):
            last = client == self.num_clients - 1
            add(str(client), row, style=None if row.any() else "dim", end_section=last)
        if shown < self.num_clients:
            add(f"{self.num_clients - shown:,} more", self.counts[shown:].sum(axis=0), end_section=True)
        add("all", self.counts.sum(axis=0), style="bold")
        return table

    def _brief(self, row: np.ndarray) -> list[str]:
        """Return how many classes a row of counts has, and its three largest by name."""
        largest = [k for k in np.argsort(-row, kind="stable")[:3] if row[k]]
        return [str(np.count_nonzero(row)), ", ".join(f"{self.classes[k]} {row[k]:,}" for k in largest) or "·"]

    def figure(self) -> Figure:
        """Return a matplotlib figure: images by class and client as a heat map, under a bar a client for its size."""
        from fedkd.partition.figure import draw

        return draw(self)

    def plot(self, path: str | Path) -> Path:
        """Write `figure` to a file and return its path; folders that are not there are made.

        Args:
            path: Where to; the suffix names the format, PNG if there is none.

        Raises:
            FedKDError: If matplotlib does not write that format.
        """
        path = Path(path)
        path = path if path.suffix else path.with_suffix(".png")
        figure = self.figure()
        formats = figure.canvas.get_supported_filetypes()
        if path.suffix[1:].lower() not in formats:
            raise unknown_name("plot format", path.suffix[1:], formats)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160)
        return path
