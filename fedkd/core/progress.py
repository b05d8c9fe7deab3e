"""Progress bars, shown only on a terminal or in a notebook."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

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


class ProgressBar:
    """A bar that the caller advances.

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


@contextmanager
def progress_bar(description: str, total: int, done: int = 0) -> Iterator[ProgressBar]:
    """Show a bar on standard error while the block runs. Without a terminal, nothing is written.

    Args:
        description: The text before the bar.
        total: The number of steps.
        done: Steps that an earlier, interrupted run has completed.

    Yields:
        The bar.
    """
    with as_bar(Console(stderr=True)) as progress:
        yield ProgressBar(progress, progress.add_task(description, total=total, completed=done, note=""))


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
