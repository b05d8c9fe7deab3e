"""BatchNorm statistics measured anew, on images without labels that belong to no client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedkd.core.tensors import Tensors, load_state, split_state
from fedkd.training.common_images import CommonImages
from fedkd.training.evaluation import evaluation_arguments
from fedkd.training.trainer import make_trainer, quiet_lightning
from fedkd.training.unlabelled import Asked, Model, like


def reestimate_batch_norm(
    student: nn.Module, model: Model, images: CommonImages, trainer: Mapping[str, Any]
) -> tuple[Tensors, Tensors]:
    """Measure a model's BatchNorm statistics anew: the mean over the batches of one pass, all of one weight.

    Args:
        student: Its weights are overwritten.
        model: What is measured; parameters stay as they are.
        images: What it looks at, not augmented, in batches of ``eval_batch_size``.
        trainer: As for `distill`.

    Returns:
        Parameters and buffers, in the dtypes of ``model``; a layer's ``num_batches_tracked`` counts these batches.
    """
    load_state(student, *model)
    layers = batch_norms(student)
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the cumulative mean
        with quiet_lightning():
            asker = make_trainer(evaluation_arguments(trainer))
            asker.predict(Measured(student), dataloaders=images.loader(asker.strategy.root_device))
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    return dict(model[0]), like(split_state(student), model)[1]


class Measured(Asked):
    """A student whose BatchNorm layers, and they alone, are in training mode while it is asked."""

    def on_predict_epoch_start(self) -> None:
        """Let the layers take their batches' statistics; Lightning gives all modes back afterwards."""
        for layer in batch_norms(self.student):
            layer.train()


def batch_norms(student: nn.Module) -> list[_BatchNorm]:
    """Return the layers that keep running statistics."""
    return [m for m in student.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
