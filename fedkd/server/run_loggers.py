"""A run's loggers: they get its settings, a row a round, and figures if they take them."""

from __future__ import annotations

import importlib.util
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from fedkd.core.errors import FedKDError
from fedkd.core.messages import Metrics
from fedkd.core.storage import make_parent, writing
from fedkd.runs.summary import versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

MLFLOW_LENGTH = 240
"""Characters of a name for MLflow, which takes 250; the rest is for a number."""

WITH_FIGURES = (CSVLogger, TensorBoardLogger, WandbLogger, MLFlowLogger)


class RunLoggers:
    """Loggers of a run.

    Args:
        logger: The Trainer's argument: one logger or several, None or False for none, True for the default one.
        run_dir: Where the default one writes: a `TensorBoardLogger` into ``tensorboard``, or without TensorBoard a
            `CSVLogger` into ``csv``.
    """

    def __init__(self, logger: Logger | Sequence[Logger] | bool | None, run_dir: Path) -> None:
        if logger is True:
            self.loggers: list[Logger] = [default_logger(run_dir)]
        else:
            self.loggers = [logger] if isinstance(logger, Logger) else list(logger or [])

    def start(self, settings: Mapping[str, Any], history: Sequence[Metrics]) -> None:
        """Log the settings, the versions, and the rounds before a run that goes on."""
        for logger in self.loggers:
            logger.log_hyperparams({**settings, **versions()})
        for row in history:
            self.log(row)

    def log(self, row: Metrics) -> None:
        """Log a round's numbers."""
        numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
        for logger in self.loggers:
            named = numbers
            if isinstance(logger, MLFlowLogger):
                named = {name: numbers[given] for given, name in mlflow_names(numbers).items()}
            logger.log_metrics(named, step=row["round"])
            logger.save()

    def log_figure(self, name: str, draw: Callable[[], Figure], step: int) -> None:
        """Log a figure, where a logger takes figures; else it is not drawn.

        Args:
            name: Of the figure.
            draw: Makes it.
            step: The round.
        """
        takers = [logger for logger in self.loggers if isinstance(logger, WITH_FIGURES)]
        if not takers:
            return
        figure = draw()
        for logger in takers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure(name, figure, step)
            elif isinstance(logger, CSVLogger):
                path = Path(logger.log_dir) / f"{name}.png"
                make_parent(path)
                with writing(path):
                    figure.savefig(path, dpi=120)
            elif isinstance(logger, WandbLogger):
                logger.log_image(name, [as_image(figure)])
            else:
                logger.experiment.log_figure(logger.run_id, figure, f"{name}.png")

    @contextmanager
    def finalized(self) -> Iterator[None]:
        """Tell the loggers after the block how it ended."""
        status = "failed"
        try:
            yield
            status = "success"
        finally:
            for logger in self.loggers:
                logger.finalize(status)


def check_loggers(logger: Any) -> Any:
    """Return the Trainer's ``logger`` argument if it is one.

    Raises:
        FedKDError: If it is not a logger.
    """
    several = isinstance(logger, list | tuple)
    for one in logger if several else [logger]:
        if not (isinstance(one, Logger) or (not several and (one is None or isinstance(one, bool)))):
            raise FedKDError(f"trainer.logger: must be a Lightning logger, true, false or null, got {one!r}.")
    return logger


def default_logger(run_dir: Path) -> Logger:
    """Return the logger that ``logger: true`` stands for, as Lightning chooses it, in the run directory."""
    if importlib.util.find_spec("tensorboard") or importlib.util.find_spec("tensorboardX"):
        return TensorBoardLogger(run_dir, name="tensorboard", version="")
    return CSVLogger(run_dir, name="csv", version="")


def mlflow_names(names: Iterable[str]) -> dict[str, str]:
    """Return the names under which MLflow takes numbers, by the given ones.

    MLflow takes paths of ASCII letters, digits and ``_ . - /``, of up to 250 characters. Lightning drops what else
    stands in a name, which may leave none of a class's name, or the same of two.
    """
    found: dict[str, str] = {}
    for given in names:
        first, slash, rest = given.partition("/")
        rest = re.sub(r"[^a-zA-Z0-9_/. -]+", "_", rest)
        if slash and posixpath.normpath(f"{first}/{rest}") != f"{first}/{rest}":
            rest = rest.replace("/", "_").replace(".", "_") or "_"
        name = base = f"{first}{slash}{rest}"[:MLFLOW_LENGTH]
        number = 1
        while name in found.values():
            number += 1
            name = f"{base}_{number}"
        found[given] = name
    return found


def confusion_figure(confusion: Tensor, classes: Sequence[str]) -> Figure:
    """Return a figure of the shares of each true class (a row) by predicted class (a column).

    Args:
        confusion: Counts (K, K).
        classes: K names.
    """
    from matplotlib.figure import Figure

    shares = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    size = 2 + 0.3 * min(len(classes), 40)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.add_subplot(xlabel="predicted", ylabel="true")
    axes.imshow(shares.numpy(), vmin=0, vmax=1, cmap="Blues")
    if len(classes) <= 40:
        axes.set_xticks(range(len(classes)), classes, rotation=90, parse_math=False)
        axes.set_yticks(range(len(classes)), classes, parse_math=False)
    return figure


def as_image(figure: Figure) -> Any:
    """Return a figure's pixels (H, W, 3)."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
