"""The base of callbacks, and what they are given."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedkd.core.config import Configured
from fedkd.core.errors import FedKDError, unknown_name
from fedkd.core.messages import Metrics, ServerState

MODES = ("max", "min")


@dataclass(frozen=True, eq=False)
class RunEvent:
    """What a callback is given when a run starts or ends.

    Attributes:
        state: After the last finished round.
        history: The rows of ``metrics.csv`` of all finished rounds, those before a resume included.
        rounds: How many rounds the run is to have in all.
        run_dir: The run directory.
        save: Writes the student under a name, with a note; `save_student` checks the name.
        reasons: What `stop` was given so far.
    """

    state: ServerState = field(repr=False)
    history: Sequence[Metrics] = field(repr=False)
    rounds: int
    run_dir: Path
    save: Callable[[str, Mapping[str, Any]], None] = field(repr=False)
    reasons: list[str] = field(default_factory=list)

    def stop(self, reason: str) -> None:
        """End the run after this round. It is then a finished run: its student and its summary are written.

        In `on_run_start` it ends a run that goes on, before another round. A fresh run has a first round in any case.

        Args:
            reason: Why, for the summary's ``stopped``.
        """
        self.reasons.append(reason)

    def save_student(self, name: str, /, **note: Any) -> None:
        """Write the student of `state` into the run directory, for ``fedkd.load_student(run_dir, which=name)``.

        Args:
            name: The file's name, without ``.safetensors``.
            **note: Plain values to keep with it, as ``note`` beside its ``round`` in `read_spec`.

        Raises:
            FedKDError: If the name is no plain file name, or that of the last round's student.
        """
        if not re.fullmatch(r"\w[\w.-]*", name) or name in ("last", "student"):
            raise FedKDError(f"A student cannot be saved as {name!r}: give a plain file name other than 'student'.")
        self.save(name, {"round": self.state.round - 1, "note": note})


@dataclass(frozen=True, eq=False, kw_only=True)
class RoundEvent(RunEvent):
    """What a callback is given after a round, once it is on disk.

    Attributes:
        row: The round's row of ``metrics.csv``; ``row["round"]`` is the round, 0-based.
        clients: The numbers that each client of the cohort reported, by client: ``num_examples``, ``num_steps``,
            ``seconds``, the training terms, and ``val_accuracy`` where it holds images out. Their weights are not among
            them: some strategies protect single updates.
    """

    row: Metrics
    clients: Mapping[int, Metrics]


class RoundCallback(Configured):
    """Watches the rounds of a run, and may stop it: for ``Federation(callbacks=[...])`` or ``federation.callbacks``.

    A callback changes nothing that a run computes, so a run may go on with others. What it needs of earlier rounds it
    reads from ``event.history``: then a resumed run does as one that was not interrupted. Between a round's commit and
    its `on_round_end` a run may be killed; `on_run_start` is the place to make up for that.
    """

    def check(self, has_validation: bool) -> None:
        """Raise a `fedkd.FedKDError` if the run lacks what the callback needs. It is called before any work.

        Args:
            has_validation: Whether clients hold images out.
        """

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise a `fedkd.FedKDError` if ``metrics.csv`` will lack what the callback reads: before any work.

        Args:
            columns: The names of the columns of numbers; one that ends in ``*`` stands for all that begin so.
        """

    def on_run_start(self, event: RunEvent) -> None:
        """Is called before the first round of this call of `fit`, also if none is left."""

    def on_round_end(self, event: RoundEvent) -> None:
        """Is called after each round, once it is on disk."""

    def on_run_end(self, event: RunEvent) -> None:
        """Is called after the last round, before student and summary are written; also if the run was stopped."""


class Monitor:
    """A column of ``metrics.csv`` that is to become high or low.

    Args:
        name: The column.
        mode: "max" or "min".

    Raises:
        FedKDError: If there is no such mode.
    """

    def __init__(self, name: str, mode: Literal["max", "min"]) -> None:
        if mode not in MODES:
            raise unknown_name("mode", mode, MODES)
        self.name, self.sign = name, 1 if mode == "max" else -1

    def check(self, has_validation: bool) -> None:
        """Raise a `fedkd.FedKDError` if rows will have no such column, as far as that is known before a round."""
        if self.name == "val_accuracy" and not has_validation:
            raise FedKDError(
                "monitor 'val_accuracy' needs images that clients hold out: set data.val_fraction, or monitor another "
                "column of metrics.csv, such as 'loss'."
            )

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise a `fedkd.FedKDError` if rows will have no such column.

        Args:
            columns: As for `RoundCallback.check_columns`.
        """
        if not any(self.name == each or (each[-1] == "*" and self.name.startswith(each[:-1])) for each in columns):
            hint = "What a strategy of your own adds to a row it declares in its columns."
            raise FedKDError(f"{unknown_name('monitor', self.name, columns)} {hint}")

    def scores(self, history: Sequence[Metrics]) -> dict[int, float]:
        """Return the column's values by row, the higher the better. NaN is minus infinity.

        A row without a value is left out: in a round whose cohort holds no image out there is no ``val_accuracy``.
        """
        values = {index: row.get(self.name) for index, row in enumerate(history)}
        return {
            index: -math.inf if math.isnan(value) else self.sign * value
            for index, value in values.items()
            if isinstance(value, int | float)
        }

    def best(self, history: Sequence[Metrics], min_delta: float = 0.0) -> int | None:
        """Return the index of the best row: the first that none after it beats by more than ``min_delta``.

        Args:
            history: Rows of ``metrics.csv``.
            min_delta: >= 0. A row counts as better only if it beats the best one before it by more.

        Returns:
            None if no row has a value.
        """
        scores = self.scores(history)
        best = min(scores, default=None)
        for index, score in scores.items():
            if best is None or score > scores[best] + min_delta:
                best = index
        return best


def check_callbacks(callbacks: list[RoundCallback] | RoundCallback | None) -> tuple[RoundCallback, ...]:
    """Return the callbacks.

    Raises:
        FedKDError: If one is not a `RoundCallback`.
    """
    found = tuple(callbacks) if isinstance(callbacks, list | tuple) else () if callbacks is None else (callbacks,)
    for callback in found:
        if not isinstance(callback, RoundCallback):
            name = callback.__name__ if isinstance(callback, type) else type(callback).__name__
            hint = (
                f"make it: {name}()"
                if isinstance(callback, type) and issubclass(callback, RoundCallback)
                else ("callbacks of the clients' Trainers belong in trainer={'callbacks': [...]}")
            )
            raise FedKDError(f"callbacks: must be fedkd.server.callbacks.RoundCallback, got {name}; {hint}.")
    return found
