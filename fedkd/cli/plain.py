"""The parser of subcommands that have no sections: without LightningCLI, so they answer at once."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from fedkd.cli.subcommands import SUBCOMMANDS
from fedkd.core.errors import FedKDError, unknown_name


class PlainParser(argparse.ArgumentParser):
    """Reports a wrong value in one line.

    Args:
        name: The subcommand.
        usage: How it is called; None is made from its arguments.
        epilog: What stands below them in the help.
    """

    def __init__(self, name: str, usage: str | None = None, epilog: str | None = None) -> None:
        super().__init__(
            f"fedkd {name}",
            usage=usage,
            description=SUBCOMMANDS[name],
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise the error for `fedkd.cli.main.main` to print."""
        if found := re.match(r"unrecognized arguments: (--[^\s=]+)", message):
            known = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
            raise unknown_name(f"option of {self.prog.removeprefix('fedkd ')}", found[1], known)
        raise FedKDError(f"{self.prog.removeprefix('fedkd ')}: {message}. See: {self.prog} --help")
