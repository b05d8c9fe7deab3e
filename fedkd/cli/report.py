"""``fedkd report``: the page of a run, or one that compares several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedkd.cli.plain import PlainParser
from fedkd.core.storage import claim

EPILOG = """With one run the page is RUN/report.html, which a finished run has already: settings, partition, curves by
round, accuracy by class, confusion matrix, bytes and seconds, and how to load the student. A run that was stopped gets
a page of the rounds that it has. With several runs it is comparison.html in the current folder: a table of the results,
the curves, and the settings that differ. A page is one file that loads nothing.
These pages hold only what is in the runs, so they are written again. A FILE that you name is not written over."""


def make_parser() -> PlainParser:
    """Return the parser of ``fedkd report``."""
    parser = PlainParser(
        "report",
        usage="fedkd report RUN [RUN ...] [--out FILE.html] [--overwrite]",
        epilog=EPILOG,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run directory")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the page (default: RUN/report.html; for several runs comparison.html in the current folder)",
    )
    parser.add_argument("--overwrite", action="store_true", help="write over a FILE that is there")
    return parser


def run(args: Sequence[str]) -> None:
    """Parse the arguments after ``fedkd report``, write the page and print where it is.

    Raises:
        FedKDError: If an argument is wrong, or a run is not there.
    """
    from fedkd.study.comparison import report

    options = make_parser().parse_args(list(args))
    if options.out is not None:
        claim(options.out.expanduser(), options.overwrite)
    print(report(*options.runs, out=options.out))
