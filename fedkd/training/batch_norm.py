"""BatchNorm statistics measured anew, on images without labels that belong to no client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedkd.core.messages import Weights
from fedkd.core.modes import let_train
from fedkd.core.tensors import load_state, split_state
from fedkd.data.pool import Pool
from fedkd.training.trainer import evaluation_arguments, make_trainer, predict
from fedkd.training.unlabeled import Predictor, like

BATCH_SIZE = 512
"""Images in a batch where none is configured: the statistics depend on it, so it is the same on every device."""


def reestimate_batch_norm(student: nn.Module, model: Weights, pool: Pool, trainer: Mapping[str, Any]) -> Weights:
    """Measure a model's BatchNorm statistics: the mean over the batches of one pass, with equal weights.

    Args:
        student: A student of the model's kind. Its weights are overwritten.
        model: The model. Its parameters stay as they are.
        pool: The images, not augmented, in batches of its ``eval_batch_size``, or of `BATCH_SIZE`.
        trainer: As for `fedkd.training.unlabeled.distill`.

    Returns:
        The model in its own dtypes. A layer's ``num_batches_tracked`` counts the batches of this pass.
    """
    load_state(student, model.parameters, model.buffers)
    let_train(student)
    layers = batch_norms(student)
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the cumulative mean
        predictor = make_trainer(evaluation_arguments(trainer))
        predict(predictor, Measured(student, layers), pool.loader(predictor.strategy.root_device, BATCH_SIZE))
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    return Weights(model.parameters, like(Weights(*split_state(student)), model).buffers)


class Measured(Predictor):
    """A student of which some layers, and no others, are in training mode while it predicts.

    Args:
        student: The student.
        layers: The layers.
    """

    def __init__(self, student: nn.Module, layers: list[_BatchNorm]) -> None:
        super().__init__(student)
        self.layers = layers  # a list, so that they stay parts of the student alone

    def on_predict_epoch_start(self) -> None:
        """Let the layers use and record their batches' statistics. Lightning restores all modes afterwards."""
        for layer in self.layers:
            layer.train()


def batch_norms(student: nn.Module) -> list[_BatchNorm]:
    """Return the layers that keep running statistics, but for those that are frozen in evaluation mode."""
    return [m for m in student.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and m.training]
