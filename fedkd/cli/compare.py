"""``fedkd compare``: many runs of a grid. It takes any option of ``fedkd fit`` besides its own, for every run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from fedkd.core.errors import FedKDError
from fedkd.study.compare import compare

SUMMARY = "Run a grid of partitions, methods and seeds, and tabulate it."

EPILOG = """Any other option goes to every run, such as --data.dataset.root PATH.
Runs are kept in OUT/PARTITION/METHOD/seed-N. Started again, the command leaves what is finished, goes on with what was
interrupted, and runs what is new in the grid. OUT/results.csv has a row a run, OUT/table.md the means over the seeds,
OUT/curves.png the accuracy by round. The exit status is 1 if a run failed."""


class Parser(argparse.ArgumentParser):
    """Reports a wrong value in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise the error for `fedkd.cli.main.main` to print."""
        raise FedKDError(f"compare: {message}. See: fedkd compare --help")


def run_compare(args: Sequence[str]) -> None:
    """Parse the arguments behind ``fedkd compare`` and run it."""
    parser = Parser(
        "fedkd compare",
        usage="fedkd compare GRID --out DIR [--jobs N] [--only REGEX] [--set NAME=VALUE] [--SECTION.OPTION VALUE ...]",
        description=SUMMARY,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("grid", type=Path, help="YAML: config, arguments, seeds, partitions, methods, references")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of all runs and of the results")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    parser.add_argument("--only", default="", metavar="REGEX", help="run what has a match in 'PARTITION, METHOD'")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a value of a grid's name")
    options, further = parser.parse_known_args(list(args))
    failures = compare(
        options.grid,
        options.out,
        jobs=options.jobs,
        only=options.only,
        names=options.set,
        further=further,
        say=lambda line: print(line, flush=True),
    )
    table = options.out / "table.md"
    if table.is_file():
        print(table.read_text())
    if failures:
        raise SystemExit(1)
