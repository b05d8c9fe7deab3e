"""Progress: a bar on a terminal or in a notebook, a line a minute elsewhere."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fedkd.core.units import format_seconds

LINE_EVERY = 60.0
"""Seconds between two lines of a log. Work that ends sooner writes none."""


class ProgressBar(Protocol):
    """What the caller advances."""

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Advance by ``steps``. ``note`` replaces the text at the end."""


class TerminalBar:
    """A bar of rich.

    Args:
        progress: The rich display that draws it.
        task: Its line in the display.
    """

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Advance by ``steps``. ``note`` replaces the text after the bar."""
        if note is not None:
            self._progress.update(self._task, note=note)
        self._progress.advance(self._task, steps)


class LogLines:
    """Lines of a log, such as ``teacher outputs: 6,400 of 50,000, about 9 min left``.

    Args:
        console: Where to write.
        description: The text before the count.
        total: The number of steps.
        done: Steps that an earlier, interrupted run has completed.
    """

    def __init__(self, console: Console, description: str, total: int, done: int) -> None:
        self._console, self._description, self._total = console, description, total
        self._first = self._done = done
        self._start = self._last = time.monotonic()
        self._note = ""

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Advance by ``steps``; write a line if the last is `LINE_EVERY` seconds old."""
        self._done += steps
        if note is not None:
            self._note = f", {note}"
        now = time.monotonic()
        if now - self._last < LINE_EVERY or not self._first < self._done < self._total:
            return
        self._last = now
        left = (now - self._start) / (self._done - self._first) * (self._total - self._done)
        count = f"{self._done:,} of {self._total:,}, about {format_seconds(left)} left"
        self._console.out(f"{self._description}: {count}{self._note}", highlight=False)


@contextmanager
def progress_bar(description: str, total: int, done: int = 0) -> Iterator[ProgressBar]:
    """Show progress on standard error while the block runs: a bar, or without a terminal a line a minute.

    Args:
        description: The text before the bar.
        total: The number of steps.
        done: Steps that an earlier, interrupted run has completed.

    Yields:
        What to advance.
    """
    console = Console(stderr=True)
    if not can_redraw(console):
        yield LogLines(console, description, total, done)
        return
    with as_bar(console) as progress:
        yield TerminalBar(progress, progress.add_task(description, total=total, completed=done, note=""))


def as_bar(console: Console) -> Progress:
    """Return rich's display of one bar, whose tasks have a ``note`` after it; disabled without a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=console, disable=not can_redraw(console))


def can_redraw(console: Console) -> bool:
    """Whether what is shown can be shown anew in its place: on a terminal, and in a notebook that has ipywidgets.

    In a notebook without them rich shows a warning for each change, and nothing else.
    """
    return console.is_terminal or (console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None)
