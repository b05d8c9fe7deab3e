"""The subcommands of ``fedkd``: what each does, in a line, and which sections of the configuration it uses."""

from __future__ import annotations

import argparse

from fedkd import __version__

DESCRIPTION = "Federated distillation from foundation models."

SUBCOMMANDS = {
    "fit": "Run a federation.",
    "check": "Try all parts of a run, and tell its time, memory and bytes: fedkd check --config FILE.",
    "test": "Test a run's student on the global test set: fedkd test RUN_DIR.",
    "predict": "Write a run's predictions as CSV: fedkd predict RUN_DIR.",
    "export": "Export a run's student, as ONNX and others: fedkd export RUN_DIR.",
    "partition": "Show which client holds how many images of which class, and plot it; nothing trains.",
    "teachers": "List the teachers with a short name; or measure one on the data: fedkd teachers NAME --config FILE.",
    "students": "List the students with a short name, and what each costs: fedkd students [NAME or PATTERN ...].",
    "init": "Write a configuration with comments, to start from: fedkd init [--template NAME].",
    "compare": "Run a grid of partitions, methods and seeds, and tabulate it: fedkd compare GRID --out DIR.",
    "report": "Write a run's report.html again, or a page that compares runs: fedkd report RUN [RUN ...].",
    "completion": "Print a script that completes subcommands and options in bash and zsh.",
}

SECTIONS = {  # the sections of the configuration that each subcommand instantiates
    "fit": ("data", "model", "federation", "trainer"),
    "check": ("data", "model", "federation", "trainer"),
    "test": ("data", "model", "trainer"),
    "predict": ("data", "model", "trainer"),
    "export": ("model",),
    "partition": ("data",),
    "teachers": (),
}

PLAIN = {  # the subcommands without sections, each with the module whose ``run`` runs it
    "students": "fedkd.cli.students",
    "init": "fedkd.cli.init",
    "compare": "fedkd.cli.compare",
    "report": "fedkd.cli.report",
}


def quick_parser() -> argparse.ArgumentParser:
    """Return a parser for the help of ``fedkd`` itself, which needs no library."""
    parser = argparse.ArgumentParser(
        "fedkd",
        usage=f"fedkd {{{','.join(SUBCOMMANDS)}}} [--config FILE] [--SECTION.OPTION VALUE ...]",
        description=DESCRIPTION,
        epilog="fedkd SUBCOMMAND --help lists the options of one. --debug shows the traceback of an error.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fedkd {__version__}")
    group = parser.add_subparsers(title="subcommands", metavar="")
    for name, text in SUBCOMMANDS.items():
        group.add_parser(name, help=text)
    return parser
