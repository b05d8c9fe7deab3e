"""Lightning's Trainer as fedkd uses it: made in one place, quiet, with one local epoch by default."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from fedkd.data.loader import BatchLoader

TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": 1,
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
"""How a client's Trainer differs from Lightning's: one local epoch, and nothing printed or saved."""


NOTICES = (
    ".*You defined a `validation_step` but have no `val_dataloader`",  # the test set is the server's
    ".*isinstance\\(treespec, LeafSpec\\)",  # between Lightning and torch
    ".*GPU available but not used",
)


def make_trainer(arguments: Mapping[str, Any], callbacks: Sequence[Callback] = ()) -> Trainer:
    """Make a fresh Trainer. Objects among the arguments are copied: Lightning's callbacks and plugins keep state.

    Args:
        arguments: Arguments of Lightning's Trainer, over `TRAINER_DEFAULTS`.
        callbacks: Further callbacks, after the configured ones.

    Returns:
        The Trainer.
    """
    arguments = {**TRAINER_DEFAULTS, **copy.deepcopy(dict(arguments))}
    configured = arguments.pop("callbacks", None) or []
    configured = list(configured) if isinstance(configured, Sequence) else [configured]
    return Trainer(callbacks=[*configured, *callbacks], **arguments)


def fit(trainer: Trainer, module: LightningModule, loader: BatchLoader) -> None:
    """Train a module: the one call of ``Trainer.fit``, for clients and for the server. The loader is released."""
    try:
        trainer.fit(module, train_dataloaders=loader)
    finally:
        loader.release()


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's notices (devices found, epochs reached), which would repeat for every client."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        with warnings.catch_warnings():
            for notice in NOTICES:
                warnings.filterwarnings("ignore", notice)
            yield
    finally:
        logger.setLevel(level)
