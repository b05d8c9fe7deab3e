"""``fedkd compare``: the runs of a grid. Besides its own options it takes those of ``fedkd fit``, for every run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fedkd.cli.plain import PlainParser
from fedkd.core.errors import FedKDError, unknown_name
from fedkd.core.stopping import Terminated
from fedkd.study.compare import compare

OWN = ("out", "jobs", "only", "set")
OF_FIT = ("config", "data", "federation", "model", "trainer")
"""The options and sections of ``fedkd fit`` that may be given for every run."""

OF_A_RUN = ("ckpt_path", "run_dir", "seed_everything")
"""The options of ``fedkd fit`` with a different value in each run."""

EPILOG = """The grid is a YAML file with these sections:
  config       a configuration of fedkd fit, relative to the grid's folder
  arguments    options for every run, {data.batch_size: 32}
  seeds        a list, [0, 1, 2]
  partitions   options by name, {NAME: {data.partitioner: IID}}
  methods      options by name; each runs at every partition
  references   methods that no partition changes, such as one client that has all the images (optional)
  names        values for ${NAME} in a value of the sections above, not in a key; --set replaces them (optional)
  base         another grid, whose sections these replace (optional)

Options of fedkd fit, such as --data.dataset.root PATH, go to every run. They override the grid's arguments; the options
of a partition or a method override them.

Runs are saved in OUT/PARTITION/METHOD/seed-N. If the command is run again, it skips finished runs, resumes interrupted
runs, and starts runs that are new in the grid. A finished run whose options are others in the grid now ends the command
before any run starts. OUT/results.csv has one row per run, OUT/table.md the means over the seeds, OUT/curves.png the
accuracy by round, OUT/comparison.html all of it as a page. The exit status is 1 if a run failed."""


def run(args: Sequence[str]) -> None:
    """Parse the arguments after ``fedkd compare`` and run the grid.

    Raises:
        FedKDError: If an argument or the grid is wrong.
        SystemExit: With status 1 if a run failed, with 130 if Ctrl-C ended the command, with 143 if SIGTERM did.
    """
    parser = make_parser()
    options, further = parser.parse_known_args(list(args))
    check_further(further)
    try:
        failures = compare(
            options.grid,
            options.out,
            jobs=options.jobs,
            only=options.only,
            names=options.set,
            further=further,
            log=lambda line: print(line, flush=True),
            parse=parse,
        )
    except (KeyboardInterrupt, Terminated):
        print("fedkd: interrupted. Finished rounds are saved; the same command resumes from them.", file=sys.stderr)
        raise
    table = options.out / "table.md"
    if table.is_file():
        print(table.read_text())
    if failures:
        raise SystemExit(1)


def parse(arguments: Sequence[str]) -> None:
    """Parse the arguments of ``fedkd fit``; nothing is made of them.

    Raises:
        FedKDError: If they are wrong.
    """
    from fedkd.cli.arguments import expand  # with all that a run needs
    from fedkd.cli.commands import parsers

    parsers(["fit"])["fit"].parse_args(expand(["fit", *arguments])[1:])


def make_parser() -> PlainParser:
    """Return the parser of ``fedkd compare``."""
    parser = PlainParser(
        "compare",
        usage="fedkd compare GRID --out DIR [--jobs N] [--only REGEX] [--set NAME=VALUE] [--SECTION.OPTION VALUE ...]",
        epilog=EPILOG,
    )
    parser.add_argument("grid", type=Path, metavar="GRID", help="YAML file; its sections are below")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of all runs and of the results")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    parser.add_argument("--only", default="", metavar="REGEX", help="run what has a match in 'PARTITION, METHOD'")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="value of a name of the grid; can be repeated"
    )
    return parser


def check_further(further: Sequence[str]) -> None:
    """Raise unless every run accepts ``further``. With a misspelled option all runs would fail, one after the other.

    Raises:
        FedKDError: If a value has no option, or an option belongs neither to ``compare`` nor to a section of ``fit``.
    """
    if further and not further[0].startswith("-"):
        raise FedKDError(f"compare takes one grid, but {further[0]!r} has no option before it.")
    for option in further:
        name = option.removeprefix("--").split("=")[0].split(".")[0].rstrip("+")
        if option.startswith("--") and name in OF_A_RUN:
            raise FedKDError(f"compare takes no --{name}: --out and the grid's seeds set it for each run.")
        if option.startswith("--") and name not in OF_FIT:
            raise unknown_name("option of compare", f"--{name}", [f"--{each}" for each in (*OWN, *OF_FIT)])
