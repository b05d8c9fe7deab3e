"""Keep the best student of a run."""

from __future__ import annotations

from typing import Literal

from fedkd.server.callbacks.base import Monitor, RoundCallback, RoundEvent, RunEvent


class SaveBest(RoundCallback):
    """Writes ``best.safetensors`` after each round that is the best so far: ``load_student(run_dir, which="best")``.

    In a run that branches off another run's checkpoint, that run's rounds count too, and its best student stays in its
    own directory.

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

    def on_run_start(self, event: RunEvent) -> None:
        """Write the student of a run that was killed before it could."""
        self._column.check(event)
        self._save(event)

    def on_round_end(self, event: RoundEvent) -> None:
        """Write the student if it is the best."""
        self._save(event)

    def _save(self, event: RunEvent) -> None:
        if event.history and self._column.best(event.history) == len(event.history) - 1:
            event.save_student("best", **{self.monitor: event.history[-1][self.monitor]})
