"""``fedkd init``: a configuration with comments, to start from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedkd.cli.plain import PlainParser
from fedkd.core.errors import unknown_name
from fedkd.core.storage import claim, write_atomically

FOLDER = Path(__file__).parent / "templates"


def templates() -> list[str]:
    """Return the names of the templates."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def make_parser() -> PlainParser:
    """Return the parser of ``fedkd init``."""
    parser = PlainParser(
        "init",
        usage="fedkd init [--template NAME] [--output FILE] [--overwrite]",
        epilog="digits runs as it is and downloads nothing. folder and medical are for your own images.",
    )
    names = ", ".join(templates())
    parser.add_argument("--template", default="digits", metavar="NAME", help=f"{names} (default: digits)")
    parser.add_argument("--output", type=Path, default=Path("run.yaml"), metavar="FILE", help="default: run.yaml")
    parser.add_argument("--overwrite", action="store_true", help="write over a file that is there")
    return parser


def run(args: Sequence[str]) -> None:
    """Parse the arguments after ``fedkd init`` and write the file.

    Raises:
        FedKDError: If there is no such template, or the file exists.
    """
    options = make_parser().parse_args(list(args))
    if options.template not in templates():
        raise unknown_name("template", options.template, templates())
    claim(options.output, options.overwrite)
    text = (FOLDER / f"{options.template}.yaml").read_text()
    write_atomically(options.output, text.replace("{output}", str(options.output)))
    print(f"{options.output}: change it as you like, then: fedkd fit --config {options.output}")
