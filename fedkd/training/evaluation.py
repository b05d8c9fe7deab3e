"""Evaluation of a student with Lightning, in the clients' precision and on their device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedkd.core.messages import Metrics, Weights
from fedkd.core.tensors import load_state
from fedkd.data.loader import BatchLoader
from fedkd.data.rows import Rows
from fedkd.training.module import DistillationModule
from fedkd.training.trainer import make_trainer, quiet_lightning

COMPUTATION = ("accelerator", "benchmark", "deterministic", "devices", "inference_mode", "plugins", "precision")
"""The Trainer's arguments that decide how to compute; the others are for training."""


def evaluation_arguments(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a Trainer's arguments that count in evaluation, `COMPUTATION`."""
    return {key: value for key, value in trainer.items() if key in COMPUTATION}


def evaluate(
    module: DistillationModule, weights: Weights, rows: Rows, trainer: Mapping[str, Any], batch_size: int = 512
) -> Metrics:
    """Test a student.

    Args:
        module: Its student has the architecture. Its weights are overwritten.
        weights: The student's.
        rows: Images with their labels.
        trainer: Arguments of a Lightning Trainer; see `evaluation_arguments`.
        batch_size: Images in a batch.

    Returns:
        ``loss``, ``accuracy``, ``balanced_accuracy`` and ``accuracy/<class>``, as floats.
    """
    load_state(module.student, weights.parameters, weights.buffers)
    with quiet_lightning():
        tester = make_trainer(evaluation_arguments(trainer))
        loader = BatchLoader(rows, batch_size=batch_size, device=tester.strategy.root_device)
        metrics = tester.test(module, dataloaders=loader, verbose=False)[0]
        loader.release()
    return {name.removeprefix("test/"): value for name, value in metrics.items()}


def predict_classes(
    module: DistillationModule, rows: Rows, trainer: Mapping[str, Any], batch_size: int = 512
) -> Tensor:
    """Return the class that a module's student predicts for each image, int64 (n,) on the CPU.

    Args:
        module: With the weights to use.
        rows: n >= 1 images.
        trainer: As for `evaluate`.
        batch_size: Images in a batch.
    """
    with quiet_lightning():
        predictor = make_trainer(evaluation_arguments(trainer))
        loader = BatchLoader(rows, batch_size=batch_size, device=predictor.strategy.root_device)
        batches: Any = predictor.predict(module, dataloaders=loader)
        loader.release()
    return torch.cat(batches).argmax(dim=1).cpu()
