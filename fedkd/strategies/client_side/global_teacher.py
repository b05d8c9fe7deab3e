"""`GlobalTeacher`: an objective that looks at the batch through a frozen copy of the student, as the fit began."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from fedkd.losses import Outputs
from fedkd.training.objective import Objective, frozen_copy


class GlobalTeacher(Objective):
    """Base of objectives that compare the student that trains with the global one it started from.

    The copy is made once a fit, on the training device, in evaluation mode: its BatchNorm uses the global statistics.
    It costs one more forward pass a batch.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the student before its first step."""
        module: Any = pl_module
        self.global_student: nn.Module = frozen_copy(module.student)

    def outputs(self, module: Any, batch: Any, student: nn.Module | None = None) -> Outputs:
        """Return what the global student, or another frozen one, says of a batch."""
        with torch.no_grad():
            return module.student_outputs(batch[0], self.global_student if student is None else student)
