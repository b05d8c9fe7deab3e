"""What a run says of itself: its partition, its rounds, its summary, and what tells it from other runs."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from torch.optim import Optimizer

from fedkd.core.messages import ClientTask, ClientUpdate, Metrics
from fedkd.core.tensors import split_state
from fedkd.data import FederatedDataModule
from fedkd.teachers import TeacherSignal
from fedkd.teachers.outputs.fingerprint import settings
from fedkd.training.module import DistillationModule
from fedkd.training.trainer import TRAINER_DEFAULTS

LEARNING = {
    "max_epochs": TRAINER_DEFAULTS["max_epochs"],
    "max_steps": -1,
    "precision": "32-true",
    "accumulate_grad_batches": 1,
    "gradient_clip_val": None,
    "gradient_clip_algorithm": None,
}
"""The Trainer's arguments that decide what is learnt, and what they are where they are not given."""

PACKAGES = ("fedkd", "lightning", "torch", "torchvision", "transformers", "numpy")


def partition_record(datamodule: FederatedDataModule) -> dict[str, Any]:
    """Return what ``partition.json`` holds: the report and every client's indices into the training images."""
    indices = {"indices": datamodule.shards, "val_indices": datamodule.val_shards}
    lists = {name: [np.asarray(shard).tolist() for shard in shards] for name, shards in indices.items()}
    shared = {"shared_images": 0 if datamodule.shared_images is None else len(datamodule.shared_images)}
    return {**datamodule.partition_report().to_dict(), **shared, **lists}


def round_row(
    tasks: Sequence[ClientTask], updates: Sequence[ClientUpdate], metrics: Metrics, seconds: float
) -> Metrics:
    """Gather one row of ``metrics.csv``: test metrics, training terms weighted by examples, cohort, bytes, seconds."""
    total = sum(update.num_examples for update in updates)
    names = sorted({name for update in updates for name in update.metrics if name.startswith("train/")})
    terms = {name: sum(u.metrics.get(name, 0.0) * u.num_examples for u in updates) / total for name in names}
    return {
        "round": tasks[0].round,
        **metrics,
        **terms,
        "cohort": " ".join(str(task.client) for task in tasks),
        "num_examples": total,
        "num_steps": sum(update.num_steps for update in updates),
        "bytes_up": sum(update.num_bytes for update in updates),
        "bytes_down": sum(task.num_bytes for task in tasks),
        "seconds": round(seconds, 3),
    }


def run_identity(
    module: DistillationModule, datamodule: FederatedDataModule, trainer: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a checkpoint must agree on with the run that goes on from it; each value can be shown in a line.

    Args:
        module: Built; its teacher has not seen the data yet.
        datamodule: Set up.
        trainer: Arguments of the clients' Trainers; those count that decide what is learnt, `LEARNING`.
    """
    assert module.student is not None
    parameters, buffers = split_state(module.student)
    shapes = {name: tuple(value.shape) for name, value in {**parameters, **buffers}.items()}
    shards = hashlib.sha256(b"|".join(shard.tobytes() for shard in datamodule.shards))
    training = {name: default if trainer.get(name) is None else trainer[name] for name, default in LEARNING.items()}
    batches = {name: getattr(datamodule, name) for name in ("batch_size", "augmentation", "views")}
    return {
        "teacher": module.teacher.identity() if module.teacher else None,
        "shared images": shared_identity(datamodule),
        "label loss": settings(module.label_loss),
        "loss": " ".join(repr(module.loss).split()) if module.loss.extra_repr() else settings(module.loss),
        "optimizer": optimizer_settings(module.configure_optimizers()),
        "trainer": ", ".join(f"{name}={value}" for name, value in training.items() if value is not None),
        "data set": datamodule.train.fingerprint[:16],
        "batches": ", ".join(f"{name}={value!r}" for name, value in batches.items()),
        "partition": shards.hexdigest()[:16],
        "student": hashlib.sha256(repr(shapes).encode()).hexdigest()[:16],
    }


def shared_identity(datamodule: FederatedDataModule) -> str | None:
    """Write down which images clients share, and how they train on them."""
    images = datamodule.shared_images
    return None if images is None else f"{datamodule.shared!r}, {len(images)} images {images.fingerprint[:16]}"


def optimizer_settings(optimizer: Any) -> str:
    """Write down what an optimizer does, as in ``SGD(lr=0.05, momentum=0.9)``; what is off or zero is left out."""
    if not isinstance(optimizer, Optimizer):  # Lightning takes lists and dictionaries too
        return type(optimizer).__qualname__
    groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    texts = [", ".join(f"{name}={value}" for name, value in group.items() if value) for group in groups]
    return f"{type(optimizer).__qualname__}({'; '.join(dict.fromkeys(texts))})"


def summarise(
    module: DistillationModule,
    history: list[Metrics],
    signal: TeacherSignal | None,
    identity: Mapping[str, Any],
    seconds: float,
    run_dir: Path,
) -> dict[str, Any]:
    """Gather ``summary.json``.

    Args:
        module: The trained module.
        history: One row a round.
        signal: What the teacher gave, if there was one.
        identity: What the run is.
        seconds: Wall-clock time of this call; rounds before a resume are in ``round_seconds``.
        run_dir: The run's folder.

    Returns:
        JSON-able values. Accuracies are fractions; ``best`` is picked by balanced accuracy on the test set, so it is
        optimistic: quote ``final``.
    """
    best = max(history, key=lambda row: row["balanced_accuracy"])
    final = history[-1]
    head_up, head_down = (signal.head_bytes, signal.head_bytes_down) if signal else (0, 0)
    return {
        "run_dir": str(run_dir),
        "rounds": len(history),
        "strategy": identity["strategy"],
        "accuracy": final["accuracy"],
        "balanced_accuracy": final["balanced_accuracy"],
        "per_class_accuracy": {name: final[f"accuracy/{name}"] for name in module.classes},
        "best": {key: best[key] for key in ("round", "accuracy", "balanced_accuracy")},
        "teacher": describe_teacher(module, signal),
        "bytes_up": sum(row["bytes_up"] for row in history) + head_up,
        "bytes_down": sum(row["bytes_down"] for row in history) + head_down,
        "round_seconds": round(sum(row["seconds"] for row in history), 3),
        "seconds": round(seconds, 3),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }


def describe_teacher(module: DistillationModule, signal: TeacherSignal | None) -> dict[str, Any] | None:
    """Return the teacher's own results on the test set and what was fitted to it, or None without a teacher."""
    if signal is None:
        return None
    return {
        "name": str(getattr(module.teacher, "checkpoint", type(module.teacher).__qualname__)),
        "accuracy": signal.accuracy,
        "balanced_accuracy": signal.balanced_accuracy,
        "per_class_accuracy": dict(zip(module.classes, signal.per_class_accuracy, strict=True)),
        "head": signal.chosen,
        "loss": module.loss.resolved(),
        "clients_send": signal.sends,
        "head_bytes_up": signal.head_bytes,
        "head_bytes_down": signal.head_bytes_down,
        "shared_images": signal.num_shared,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
