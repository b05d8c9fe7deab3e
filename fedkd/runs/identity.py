"""A run's identity: a checkpoint must agree with the run that goes on from it."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer

from fedkd.core.config import one_line
from fedkd.core.tensors import split_state
from fedkd.data import FederatedDataModule
from fedkd.runs.layout import ELSEWHERE
from fedkd.training.module import DistillationModule
from fedkd.training.trainer import with_defaults

ALWAYS = ("max_epochs", "max_steps", "precision", "accumulate_grad_batches")
"""Trainer arguments that are shown at their defaults, too."""

WHERE_NONE = {"precision": "32-true", "limit_train_batches": 1.0, "callbacks": []}
"""What Lightning makes of arguments whose default is None."""

PRECISIONS = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}
"""Short names that Lightning takes, and what they mean."""


_line = functools.partial(one_line, paths=True)


def run_identity(
    module: DistillationModule, datamodule: FederatedDataModule, trainer: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a checkpoint must agree on with the run that goes on from it; each value is one line.

    Args:
        module: Built. Its teacher has not seen the data yet.
        datamodule: Set up.
        trainer: Arguments of the clients' Trainers.
    """
    parameters, buffers = split_state(module.student)
    shapes = {name: tuple(value.shape) for name, value in {**parameters, **buffers}.items()}
    batches = {name: getattr(datamodule, name) for name in ("batch_size", "augmentation", "views")}
    return {
        "teacher": module.teacher.identity() if module.teacher else None,
        "shared images": shared_identity(datamodule),
        "label loss": _line(module.label_loss),
        "loss": _line(module.loss) if module.teacher else "cross-entropy",  # any loss is that without a teacher
        "optimizer": _line(module.try_optimizer() or module.optimizer),
        "trainer": trainer_identity(trainer),
        "data set": datamodule.data_fingerprint[:16],
        "batches": ", ".join(f"{name}={_line(value)}" for name, value in batches.items()),
        "partition": datamodule.partition_fingerprint[:16],
        # a module's text has its layers and their settings, such as a rate of dropout
        "student": hashlib.sha256(f"{shapes} {module.student}".encode()).hexdigest()[:16],
    }


def trainer_identity(trainer: Mapping[str, Any]) -> str:
    """Write down the Trainer's arguments that may change a result: all but `ELSEWHERE`, and what is at its default.

    Neither the order of the arguments nor the way in which a default is given makes a difference.
    """
    defaults = {name: each.default for name, each in inspect.signature(Trainer).parameters.items()}
    defaults |= {"max_epochs": with_defaults(trainer)["max_epochs"], **WHERE_NONE}
    given = {name: value for name, value in trainer.items() if value is not None}
    if "callbacks" in given:
        callbacks = given["callbacks"]
        given["callbacks"] = list(callbacks) if isinstance(callbacks, Sequence) else [callbacks]
    if "precision" in given:
        given["precision"] = PRECISIONS.get(str(given["precision"]), given["precision"])
    shown = {name: given.get(name, defaults[name]) for name in ALWAYS}
    for name in sorted(given.keys() - shown.keys() - ELSEWHERE):
        if _line(given[name]) != _line(defaults.get(name)):
            shown[name] = given[name]
    return ", ".join(f"{name}={value if isinstance(value, str) else _line(value)}" for name, value in shown.items())


def shared_identity(datamodule: FederatedDataModule) -> str | None:
    """Write down which images clients share, and how they train on them."""
    images = datamodule.shared_images
    return None if images is None else f"{_line(datamodule.shared)}, {len(images)} images {images.fingerprint[:16]}"
