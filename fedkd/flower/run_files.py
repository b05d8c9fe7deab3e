"""The run that a Flower app names: its YAML file and further arguments, as for ``fedkd fit``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedkd.cli.arguments import expand
from fedkd.cli.commands import FedKDCLI
from fedkd.core.errors import FedKDError
from fedkd.data import FederatedDataModule
from fedkd.server.federation import Federation
from fedkd.training.module import DistillationModule

CONFIG = "run.yaml"


@dataclass(frozen=True)
class Run:
    """What a configuration describes.

    Args:
        federation: With the configuration's own backend.
        module: With the teacher.
        data: Not set up.
        ckpt_path: What to go on from.
    """

    federation: Federation
    module: DistillationModule
    data: FederatedDataModule
    ckpt_path: str | None


class _Reader(FedKDCLI):
    """Reads the configuration of ``fedkd fit``, and runs nothing."""

    def fit(self) -> None:
        self.federation.config = self.reproducing_config()


def load_run(config: Mapping[str, Any]) -> Run:
    """Return the run that an app's configuration names.

    Args:
        config: ``[tool.flwr.app.config]`` of the app, with what ``flwr run --run-config`` replaces: ``config``, the
            YAML file in the app's folder; ``arguments``, further arguments of ``fedkd fit``.

    Raises:
        FedKDError: If the file is not there, or something in it is wrong.
    """
    path = find_file(str(config.get("config", CONFIG)))
    given = ["fit", "--config", str(path), *shlex.split(str(config.get("arguments", "")))]
    made = _Reader(expand(given))
    return Run(made.federation, made.model, made.datamodule, made.chosen.ckpt_path)


def find_file(name: str) -> Path:
    """Return a file of the app, whose folder Flower has put in the import path.

    Raises:
        FedKDError: If there is none.
    """
    folders = [Path.cwd(), *(Path(folder) for folder in sys.path if folder)]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise FedKDError(
        f"The app has no file {name!r}: put it beside the app's pyproject.toml, or name another in "
        "[tool.flwr.app.config], config."
    )
