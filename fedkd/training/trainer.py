"""Lightning's Trainer as fedkd uses it: made in one place, quiet, with one local epoch by default."""

from __future__ import annotations

import copy
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from fedkd.core.errors import FedKDError
from fedkd.data.loader import BatchLoader
from fedkd.training.lean_trainer import LeanTrainer, has_plain_optimizer, reason_for_lightning

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


def with_defaults(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a Trainer's arguments over `TRAINER_DEFAULTS`.

    Who bounds the steps or the time and says nothing of epochs gets as many epochs as that takes.
    """
    given = {**TRAINER_DEFAULTS, **arguments}
    if arguments.get("max_epochs") is None:
        is_bounded = arguments.get("max_steps", -1) not in (None, -1) or arguments.get("max_time") is not None
        given["max_epochs"] = -1 if is_bounded else TRAINER_DEFAULTS["max_epochs"]
    return given


NOTICES = (
    ".*You defined a `validation_step` but have no `val_dataloader`",  # the test set is the server's
    ".*isinstance\\(treespec, LeafSpec\\)",  # between Lightning and torch
    ".*GPU available but not used",
)


COMPUTATION = ("accelerator", "benchmark", "deterministic", "devices", "inference_mode", "plugins", "precision")
"""The Trainer's arguments that decide how to compute; the others are for training."""


def evaluation_arguments(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a Trainer's arguments that count in evaluation, `COMPUTATION`."""
    return {key: value for key, value in trainer.items() if key in COMPUTATION}


def evaluator_for(module: LightningModule, arguments: Mapping[str, Any]) -> Trainer:
    """Return the Trainer for a module's next test or prediction, as `trainer_for` does.

    Args:
        module: The module.
        arguments: As for `make_trainer`. Only those of `evaluation_arguments` count.
    """
    arguments, last = evaluation_arguments(arguments), module._trainer
    if isinstance(last, LeanTrainer) and evaluation_arguments(last.arguments) == {"devices": 1, **arguments}:
        return last
    complete = with_defaults(arguments)
    with quiet_lightning():
        return make_trainer(arguments) if reason_for_lightning(module, complete) else LeanTrainer(complete)


def trainer_for(module: LightningModule, arguments: Mapping[str, Any], callbacks: Sequence[Callback] = ()) -> Trainer:
    """Return the Trainer for a module's next fit.

    It is a `LeanTrainer` where that does the same as Lightning's own loops (`reason_for_lightning`): the one that the
    module had before, if its arguments were the same. Else it is a fresh Trainer of Lightning's.

    Args:
        module: The module.
        arguments: As for `make_trainer`.
        callbacks: Further callbacks, after the configured ones.
    """
    complete = with_defaults(arguments)
    last: Any = module._trainer
    known = isinstance(last, LeanTrainer) and last.arguments == complete
    if reason_for_lightning(module, complete, callbacks) or not (known or has_plain_optimizer(module)):
        return make_trainer(arguments, callbacks)
    if not known:
        with quiet_lightning():
            last = LeanTrainer(complete)
    last.callbacks = list(callbacks)
    return last


def make_trainer(arguments: Mapping[str, Any], callbacks: Sequence[Callback] = ()) -> Trainer:
    """Make a fresh Trainer. Objects among the arguments are copied: Lightning's callbacks and plugins keep state.

    Args:
        arguments: Arguments of Lightning's Trainer, over `TRAINER_DEFAULTS`.
        callbacks: Further callbacks, after the configured ones.

    Returns:
        The Trainer.
    """
    arguments = with_defaults(copy.deepcopy(dict(arguments)))
    configured = configured_callbacks(arguments)
    arguments.pop("callbacks", None)
    with quiet_lightning():
        return Trainer(callbacks=[*configured, *callbacks], **arguments)


def configured_callbacks(arguments: Mapping[str, Any]) -> list[Callback]:
    """Return the callbacks among a Trainer's arguments, which takes one or a list of them."""
    configured = arguments.get("callbacks") or []
    return list(configured) if isinstance(configured, Sequence) else [configured]


def warn_of_lost_state(arguments: Mapping[str, Any], trainer: Any) -> None:
    """Warn of callbacks of the user's that keep something in themselves: it ends with the copy that was used.

    Args:
        arguments: With the callbacks as they were configured.
        trainer: After its fit, with the copies.
    """
    seen: Counter[type] = Counter()
    for given in configured_callbacks(arguments):
        seen[type(given)] += 1
        if type(given).__module__.split(".")[0] in ("lightning", "pytorch_lightning"):
            continue
        used = [callback for callback in trainer.callbacks if type(callback) is type(given)][seen[type(given)] - 1]
        before, after = vars(given), vars(used)
        changed = [name for name, value in after.items() if _grew(before.get(name), value)]
        if changed:
            rank_zero_warn(
                f"trainer.callbacks: each client trains with a copy of {type(given).__name__}, so what it keeps "
                f"({', '.join(changed)}) is lost. Log it as 'train/NAME', for metrics.csv, or write it to a file."
            )


def _grew(before: Any, after: Any) -> bool:
    """Whether a number or text is another one, or a container has another size."""
    if isinstance(after, list | dict | set | tuple):
        return type(before) is not type(after) or len(before) != len(after)
    return isinstance(after, int | float | str) and after != before


def fit(trainer: Trainer, module: LightningModule, loader: BatchLoader) -> None:
    """Train a module: the one call of ``Trainer.fit``, for clients and for the server. The loader is released."""
    with _using(trainer, loader):
        trainer.fit(module, train_dataloaders=loader)


def test(trainer: Trainer, module: LightningModule, loader: BatchLoader) -> dict[str, float]:
    """Return what a module's test finds, by name: the one call of ``Trainer.test``. The loader is released."""
    with _using(trainer, loader):
        return dict(trainer.test(module, dataloaders=loader, verbose=False)[0])


def predict(trainer: Trainer, module: LightningModule, loader: BatchLoader) -> Tensor:
    """Return what a module predicts, batches joined: the one call of ``Trainer.predict``. The loader is released."""
    with _using(trainer, loader):
        batches: Any = trainer.predict(module, dataloaders=loader)
    return torch.cat(batches)


@contextmanager
def _using(trainer: Trainer, loader: BatchLoader) -> Iterator[None]:
    """Release a loader afterwards, keep Lightning's own loops quiet, and explain BatchNorm's error."""
    try:
        with nullcontext() if isinstance(trainer, LeanTrainer) else quiet_lightning():
            yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning makes an exit of status 1 of Ctrl-C
            raise KeyboardInterrupt from error
        raise
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise FedKDError(
            f"A BatchNorm of the student got a batch of one image ({error}). Choose a batch_size that leaves none, a "
            "student by name with norm: batch or group, or fedkd.students.replace_batch_norms."
        ) from error
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
