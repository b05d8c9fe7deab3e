"""Evaluation of a student with Lightning, in the clients' precision and on their device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedkd.core.messages import Metrics, Weights
from fedkd.core.tensors import load_state
from fedkd.data.loader import BatchLoader
from fedkd.data.rows import Rows
from fedkd.training.module import DistillationModule
from fedkd.training.trainer import evaluator_for, predict, test


def evaluate(
    module: DistillationModule, weights: Weights, rows: Rows, trainer: Mapping[str, Any], batch_size: int | None = None
) -> Metrics:
    """Test a student.

    Args:
        module: Its student has the architecture. Its weights are overwritten.
        weights: The student's.
        rows: Images with their labels.
        trainer: Arguments of a Lightning Trainer; see `fedkd.training.trainer.evaluation_arguments`.
        batch_size: Images in a batch; None suits the device.

    Returns:
        ``loss``, ``accuracy``, ``balanced_accuracy`` and ``accuracy/<class>``, as floats.
    """
    load_state(module.student, weights.parameters, weights.buffers)
    tester = evaluator_for(module, trainer)
    metrics = test(tester, module, BatchLoader(rows, batch_size=batch_size, device=tester.strategy.root_device))
    return {name.removeprefix("test/"): value for name, value in metrics.items()}


def predict_classes(
    module: DistillationModule, rows: Rows, trainer: Mapping[str, Any], batch_size: int | None = None
) -> Tensor:
    """Return the class that a module's student predicts for each image, int64 (n,) on the CPU.

    Args:
        module: With the weights to use.
        rows: n >= 1 images.
        trainer: As for `evaluate`.
        batch_size: Images in a batch; None suits the device.
    """
    predictor = evaluator_for(module, trainer)
    loader = BatchLoader(rows, batch_size=batch_size, device=predictor.strategy.root_device)
    return predict(predictor, module, loader).argmax(dim=1).cpu()
