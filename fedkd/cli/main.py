"""The ``fedkd`` command: LightningCLI with a section for the federation, and subcommands without sections.

``fedkd fit --config run.yaml --data.num_clients 20 --federation.rounds 3 --trainer.precision bf16-mixed``
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from fedkd.cli.subcommands import PLAIN, quick_parser
from fedkd.core.errors import FedKDError
from fedkd.core.stopping import SIGINT_STATUS, terminable


def main(args: Sequence[str] | None = None) -> None:
    """Run the ``fedkd`` command. A wrong argument prints one line on standard error and gives exit status 2.

    Ctrl-C gives exit status 130, SIGTERM 143.

    With ``--debug`` anywhere among the arguments it raises with the traceback instead, also that of a worker process.
    """
    given = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in given
    given = [each for each in given if each != "--debug"]
    here = str(Path.cwd())
    sys.path.append(here)  # so that class_path finds a module in the current folder, as it does with python -m
    try:
        run(given)
    except (FedKDError, OSError) as error:
        if debug:
            raise
        print(f"fedkd: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        if debug:
            raise
        raise SystemExit(SIGINT_STATUS) from None
    finally:
        sys.path.remove(here)


def run(given: Sequence[str]) -> None:
    """Run a command. SIGTERM ends it as Ctrl-C does, and with status 143."""
    with terminable():
        # what needs no torch imports none, and is there at once
        if given[:1] in (["--help"], ["-h"], ["--version"]):
            quick_parser().parse_args(given[:1])
        elif given == ["teachers"]:
            from fedkd.cli.display import print_teachers

            print_teachers()
        elif given == ["completion"]:
            from fedkd.cli.completion import completion_script

            print(completion_script(), end="")
        elif given and given[0] in PLAIN:
            importlib.import_module(PLAIN[given[0]]).run(given[1:])
        else:
            from fedkd.cli.commands import run_command

            run_command(given)


if __name__ == "__main__":
    main()
