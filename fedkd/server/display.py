"""Show a run's rounds: a live table on a terminal or in a notebook, elsewhere a line of logging each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from fedkd.core.messages import Metrics
from fedkd.core.progress import as_bar, can_redraw
from fedkd.core.units import format_bytes

ROWS = 8
"""The table shows so many of the last rounds."""
BLOCKS = "▁▂▃▄▅▆▇█"
SPARKS = 40
"""The curve shows so many of the last rounds."""


class RoundsDisplay:
    """Shows rounds as they end.

    Args:
        rounds: How many the run has.
        history: The rows of those that are finished.
        run_dir: Where the run is kept.
        console: Where to.
    """

    def __init__(self, rounds: int, history: Sequence[Metrics], run_dir: Path, console: Console) -> None:
        self.rounds, self.history, self.run_dir = rounds, list(history), run_dir
        self.is_live = can_redraw(console)
        self.bar = as_bar(console)
        self.task = self.bar.add_task("Rounds", total=rounds, completed=len(history), note="")

    def add(self, row: Metrics) -> None:
        """Show a finished round."""
        self.history.append(row)
        self.bar.update(self.task, advance=1, note=f"balanced accuracy {row['balanced_accuracy']:.1%}")
        if not self.is_live:
            rank_zero_info(round_line(row, self.rounds, self.run_dir))

    def __rich__(self) -> Group:
        """Return the last rounds above the bar, with the curve of the balanced accuracy."""
        if not self.history:
            return Group(self.bar)
        has_validation = "val_accuracy" in self.history[-1]
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        names = (
            "round",
            "balanced",
            "worst class",
            *(["validation"] if has_validation else []),
            "loss",
            "clients",
            "sent up",
        )
        for name in (*names, "seconds"):
            table.add_column(name, justify="right")
        for row in self.history[-ROWS:]:
            _, worst = worst_class(row)
            shares = [row["balanced_accuracy"], worst, *([row.get("val_accuracy", math.nan)] if has_validation else [])]
            table.add_row(
                str(row["round"] + 1),
                *("" if math.isnan(share) else f"{share:.1%}" for share in shares),
                f"{row['loss']:.4g}",
                str(num_clients(row)),
                format_bytes(row["bytes_up"]),
                f"{row['seconds']:.1f}",
            )
        curve = sparkline([row["balanced_accuracy"] for row in self.history[-SPARKS:]])
        return Group(table, f"balanced accuracy {curve}", self.bar)


@contextmanager
def show_rounds(rounds: int, history: Sequence[Metrics], run_dir: Path) -> Iterator[RoundsDisplay]:
    """Show rounds on standard error while the block runs.

    Args:
        rounds: How many the run has.
        history: The rows of those that are finished.
        run_dir: Where the run is kept.

    Yields:
        The display, to add rounds to.
    """
    console = Console(stderr=True)
    display = RoundsDisplay(rounds, history, run_dir, console)
    if not display.is_live:
        yield display
        return
    with Live(display, console=console, refresh_per_second=4) as live:
        yield display
        live.refresh()  # in a notebook rich does not show the last change by itself


def round_line(row: Metrics, rounds: int, run_dir: Path) -> str:
    """Return a round in a line, such as ``round 3 of 10: balanced accuracy 84.2%, ...``."""
    name, worst = worst_class(row)
    parts = [f"balanced accuracy {row['balanced_accuracy']:.1%}"]
    if name:
        parts.append(f"worst class {worst:.1%} ({name})")
    if "val_accuracy" in row:
        parts.append(f"validation {row['val_accuracy']:.1%}")
    parts += [
        f"loss {row['loss']:.4g}",
        f"{num_clients(row)} clients",
        f"{format_bytes(row['bytes_up'])} up",
        f"{format_bytes(row['bytes_down'])} down",
        f"{row['seconds']:.1f} s",
        str(run_dir),
    ]
    return f"round {row['round'] + 1} of {rounds}: {', '.join(parts)}"


def worst_class(row: Metrics) -> tuple[str, float]:
    """Return the class with the lowest test accuracy, and that; no name and NaN if no class has test images."""
    known = {
        name.removeprefix("accuracy/"): value
        for name, value in row.items()
        if name.startswith("accuracy/") and not math.isnan(value)
    }
    if not known:
        return "", math.nan
    name = min(known, key=known.__getitem__)
    return name, known[name]


def num_clients(row: Metrics) -> int:
    """Return how many clients trained in a round."""
    return len(row["cohort"].split())


def sparkline(values: Sequence[float]) -> str:
    """Return a curve of one line, from the lowest value to the highest; NaN is a space."""
    known = [value for value in values if not math.isnan(value)]
    low, span = (min(known), max(known) - min(known)) if known else (0.0, 0.0)
    steps = len(BLOCKS) - 1
    return "".join(
        " " if math.isnan(value) else BLOCKS[round((value - low) / span * steps) if span else steps // 2]
        for value in values
    )
