"""`GradientCorrection`: what a correction on the client adds to the gradients, as a Lightning callback."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer


class GradientCorrection(Callback, ABC):
    """Changes the gradients of a client's student once before each optimizer step.

    At that point gradients are accumulated over batches and unscaled; clipping comes later. So an addition here has the
    effect of a term in the loss, in every precision, with accumulation and clipping. It covers the student's trainable
    parameters that have a gradient.

    `prepare` returns what the steps need, and `correct` is a function of gradients, parameters and this memory, entry
    by entry. So it does the same for the stacked tensors of several clients (`fedkd.Stacked`).
    """

    runs_lean: ClassVar[bool] = True
    runs_stacked: ClassVar[bool] = True
    parameters: dict[str, nn.Parameter]
    """The trainable parameters, by name."""
    memory: dict[str, list[Tensor]]
    """What `prepare` returned: under each name a tensor for each parameter."""
    num_corrections: int
    """Steps that were corrected."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the parameters, where they are trained."""
        student: Any = pl_module.student
        self.parameters = {name: value for name, value in student.named_parameters() if value.requires_grad}
        self.num_corrections = 0
        self.memory = self.prepare(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Correct the gradients."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        # a fused optimizer divides by the scale of float16 in its own step, after this
        scaled = scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False)
        present = [value.grad is not None for value in self.parameters.values()]
        parameters = [value for value in self.parameters.values() if value.grad is not None]
        gradients = [value.grad for value in parameters if value.grad is not None]
        with torch.no_grad():
            if scaler is None or all_finite(gradients):  # else the scaler leaves this step out
                scale = scaler.get_scale() if scaled and scaler is not None else 1.0
                memory = {name: list(compress(tensors, present)) for name, tensors in self.memory.items()}
                self.correct(gradients, parameters, memory, scale * window_share(trainer))
                self.num_corrections += 1

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, list[Tensor]]:
        """Return what every step needs, on the parameters' device; nothing by default.

        Returns:
            Under each name a tensor for each of ``parameters``, of its shape. A name that is not there stands for
            zeros.
        """
        return {}

    @abstractmethod
    def correct(
        self,
        gradients: list[Tensor],
        parameters: Sequence[Tensor],
        memory: Mapping[str, list[Tensor]],
        scale: float,
    ) -> None:
        """Change the gradients in place, and in the memory what follows from them.

        Args:
            gradients: One for each parameter that has one.
            parameters: Those that have a gradient.
            memory: What `prepare` returned, for these parameters.
            scale: By which gradients are multiplied.
        """

    def like_parameters(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Copy named tensors to the device and dtype of the parameters of these names, in the parameters' order."""
        return [torch.empty_like(value).copy_(tensors[name]) for name, value in self.parameters.items()]


def window_share(trainer: Trainer) -> float:
    """Return which share of a full accumulation window the step has, in (0, 1].

    Lightning divides each batch's loss by the size of a full window; so the gradients of an epoch's last step, where
    fewer batches are left, are smaller by this factor, and a correction must be too.
    """
    full = trainer.accumulate_grad_batches
    return (trainer.fit_loop.epoch_loop.batch_idx % full + 1) / full


def all_finite(tensors: list[Tensor]) -> bool:
    """Whether no entry of any tensor is infinite or NaN."""
    return not tensors or bool(torch.stack(torch._foreach_norm(tensors)).isfinite().all())
