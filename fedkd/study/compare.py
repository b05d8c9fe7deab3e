"""Run the missing runs of a grid, then write its results."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from fedkd.core.errors import FedKDError, check_range
from fedkd.study.comparison import NAME, compare_grid
from fedkd.study.grid import Run, read_grid, runs_of
from fedkd.study.options import difference, options_of, read_options
from fedkd.study.plots import plot_curves
from fedkd.study.report import write_tables
from fedkd.study.results import read_summary, row_of, write_csv
from fedkd.study.runner import Runner

ROUNDS = "federation.rounds"


def compare(
    grid: Path,
    out: Path,
    *,
    jobs: int = 1,
    only: str = "",
    names: Sequence[str] = (),
    further: Sequence[str] = (),
    log: Callable[[str], None] = print,
    parse: Callable[[Sequence[str]], None] | None = None,
) -> int:
    """Run the missing runs of a grid. Write ``results.csv``, ``table.md``, ``curves.png`` and ``comparison.html``.

    Runs are saved in ``OUT/PARTITION/METHOD/seed-N``, each with its options in ``options.json``. If it is called again,
    it skips finished runs, resumes interrupted runs, and starts runs that are new in the grid. The results are those of
    all finished runs. If it is interrupted, it ends the running processes and writes the results of the finished runs.

    Args:
        grid: The grid's YAML file; see `fedkd.study.grid.read_grid`.
        out: The folder of all runs and of the results.
        jobs: Runs at a time, >= 1.
        only: A regular expression. Only runs with a match in "PARTITION, METHOD" start. The results include all runs.
        names: Values of the grid's names, as ``NAME=VALUE``.
        further: Options for every run, such as ``["--data.dataset", "ImageFolder"]``.
        log: Called with the number of runs, then with one line for each run that ends.
        parse: Called with a run's arguments of ``fedkd fit``, before any run starts. It raises a FedKDError if they are
            wrong.

    Returns:
        The number of runs that failed.

    Raises:
        FedKDError: If the grid or an argument is wrong, or a finished run was made with other options than the grid has
            now. Then no run starts.
    """
    check_range("--jobs", jobs, low=1, whole=True)
    try:
        pattern = re.compile(only)
    except re.error as error:
        raise FedKDError(f"--only must be a regular expression, got {only!r}: {error}.") from error
    runs = list(runs_of(read_grid(grid, names), out, further))
    check_done([run for run in runs if run.is_done])
    missing = [run for run in runs if not run.is_done and pattern.search(run.name)]
    if parse is not None:
        check_missing(missing, parse)
    log(f"{len(runs)} runs, {sum(run.is_done for run in runs)} of them done")
    failures = 0
    try:
        with closing(Runner(jobs)(missing)) as ended:
            for run, failure in ended:
                failures += failure is not None
                log(f"{run.name}, seed {run.seed}: {failure or format(row_of(run)['final'], '.1%')}")
    finally:
        write_results([run for run in runs if run.is_done], out)
    return failures


def check_missing(missing: Sequence[Run], parse: Callable[[Sequence[str]], None]) -> None:
    """Raise if no run can start: a misspelled option that all have would fail in one run after the other.

    A mistake of one method or partition is left to its runs. So the first run is parsed, and only if its arguments are
    wrong also the last, which has another method and partition where there are several.

    Args:
        missing: The runs that would start.
        parse: See `compare`.

    Raises:
        FedKDError: The error of the first run, if the last has the same.
    """
    errors = []
    for run in (*missing[:1], *missing[-1:]):
        try:
            parse(run.arguments)
            return
        except FedKDError as error:
            errors.append(error)
    if errors and str(errors[0]) == str(errors[-1]):
        raise errors[0]


def check_done(done: Sequence[Run]) -> None:
    """Raise if a finished run was made with other options than the grid has now: its results are not the grid's.

    A run without a record of its options is taken as it is, but for the number of its rounds.

    Raises:
        FedKDError: If one was. The message names the first run that differs, and its first option that does.
    """
    differing = [(run, each) for run in done if (each := changed(run)) is not None]
    if not differing:
        return
    run, (name, *values) = differing[0]
    old, new = (value if isinstance(value, str) else json.dumps(value) for value in values)
    others = f" So do {len(differing) - 1} more." if len(differing) > 1 else ""
    raise FedKDError(
        f"The finished run {run.name!r}, seed {run.seed}, differs from the grid: {name} is {old}, not {new}."
        f"{others} Give another --out, rename the method or partition, or delete {str(run.folder)!r}."
    )


def changed(run: Run) -> tuple[str, Any, Any] | None:
    """Return the first option of a finished run that is another in the grid, with both values; None if there is none.

    The number of rounds counts too: the learning rate and what a strategy does in the last round follow it.
    """
    now, made = options_of(run.arguments), read_options(run.folder)
    made = dict(now if made is None else made)
    summary = read_summary(run.folder / "summary.json")
    if ROUNDS in now and not summary.get("stopped"):
        made[ROUNDS] = summary.get("rounds", now[ROUNDS])  # not its option: a run may have gone on by hand
    return difference(made, now)


def write_results(done: Sequence[Run], out: Path) -> None:
    """Write the results of finished runs, if there are any."""
    if done:
        rows = [row_of(run) for run in done]
        write_csv(rows, out / "results.csv")
        write_tables(rows, out / "table.md")
        plot_curves(done, out / "curves.png")
        compare_grid(done, out / NAME)
