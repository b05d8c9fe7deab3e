"""The parser of subcommands that have no sections: without LightningCLI, so they answer at once."""

from __future__ import annotations

import argparse
from typing import NoReturn

from fedkd.core.errors import FedKDError


class PlainParser(argparse.ArgumentParser):
    """Reports a wrong value in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise the error for `fedkd.cli.main.main` to print."""
        raise FedKDError(f"{self.prog.removeprefix('fedkd ')}: {message}. See: {self.prog} --help")
