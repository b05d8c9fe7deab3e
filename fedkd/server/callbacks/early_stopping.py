"""Stop a run that no longer improves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from fedkd.core.errors import check_range
from fedkd.server.callbacks.base import Monitor, RoundCallback, RoundEvent, RunEvent


class EarlyStopping(RoundCallback):
    """Stops a run after ``patience`` rounds in a row without a new best value.

    A round without a value, such as one whose cohort holds no image out, does not count.
    The run then counts as finished. To go on with it, take a longer patience or leave the callback out.

    Args:
        monitor: A column of ``metrics.csv``. Columns without ``val_`` or ``train/`` are of the test set: what is chosen
            by them is too good by some points.
        patience: >= 1.
        mode: Whether the column is to become high or low.
        min_delta: By how much a value must beat the best one to count, >= 0.

    Raises:
        FedKDError: For values out of range.
    """

    def __init__(
        self,
        monitor: str = "val_accuracy",
        patience: int = 5,
        mode: Literal["max", "min"] = "max",
        min_delta: float = 0.0,
    ) -> None:
        check_range("patience", patience, low=1, whole=True)
        check_range("min_delta", min_delta, low=0)
        self.monitor, self.patience, self.mode, self.min_delta = monitor, patience, mode, min_delta
        self._column = Monitor(monitor, mode)

    def check(self, has_validation: bool) -> None:
        """Raise if there will be no such column."""
        self._column.check(has_validation)

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise if there will be no such column."""
        self._column.check_columns(columns)

    def on_run_start(self, event: RunEvent) -> None:
        """Stop a run that was killed when it was about to stop."""
        self._stop(event)

    def on_round_end(self, event: RoundEvent) -> None:
        """Stop if the best round is long ago."""
        self._stop(event)

    def _stop(self, event: RunEvent) -> None:
        best = self._column.best(event.history, self.min_delta)
        if best is None:
            return
        if sum(index > best for index in self._column.scores(event.history)) >= self.patience:
            value = event.history[best][self.monitor]
            event.stop(f"{self.monitor} is no better than {value:.4g} of round {best + 1} after {self.patience} more")
