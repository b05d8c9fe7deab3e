"""Keep the best student of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lightning.pytorch.utilities import rank_zero_warn

from fedkd.server.callbacks.base import Monitor, RoundCallback, RoundEvent, RunEvent


class SaveBest(RoundCallback):
    """Writes ``best.safetensors`` after each round that is the best so far: ``load_student(run_dir, which="best")``.

    In a run that branches off another run's checkpoint, that run's rounds count too, and its best student stays in its
    own directory; a warning says so.

    Args:
        monitor: A column of ``metrics.csv``. Columns without ``val_`` or ``train/`` are of the test set: what is chosen
            by them is too good by some points.
        mode: Whether the column is to become high or low.

    Raises:
        FedKDError: If there is no such mode.
    """

    def __init__(self, monitor: str = "val_accuracy", mode: Literal["max", "min"] = "max") -> None:
        self.monitor, self.mode = monitor, mode
        self._column = Monitor(monitor, mode)

    def check(self, has_validation: bool) -> None:
        """Raise if there will be no such column."""
        self._column.check(has_validation)

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise if there will be no such column."""
        self._column.check_columns(columns)

    def on_run_start(self, event: RunEvent) -> None:
        """Write the student of a run that was killed before it could."""
        self._save(event)
        best = self._column.best(event.history)
        if best is not None and best < len(event.history) - 1 and not _has_best(event.run_dir):
            rank_zero_warn(f"SaveBest: round {best + 1} is the best so far, and its student was not kept.")

    def on_round_end(self, event: RoundEvent) -> None:
        """Write the student if it is the best."""
        self._save(event)

    def _save(self, event: RunEvent) -> None:
        if self._column.best(event.history) == len(event.history) - 1:
            event.save_student("best", **{self.monitor: event.history[-1][self.monitor]})


def _has_best(run_dir: Path) -> bool:
    return any(True for folder in ("", "clients/*/") for _ in run_dir.glob(f"{folder}best.safetensors"))
