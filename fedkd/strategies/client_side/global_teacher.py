"""`GlobalTeacher`: an objective that runs a frozen copy of the student, as it was when the fit began."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from fedkd.losses import Outputs
from fedkd.training.objective import Objective, frozen_copy


class GlobalTeacher(Objective):
    """Base of objectives that compare the student in training with the global student that it started from.

    The copy is made once a fit, on the training device, in evaluation mode: its BatchNorm uses the global statistics.
    It costs one more forward pass a batch.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the student before its first step."""
        module: Any = pl_module
        self.global_student: nn.Module = frozen_copy(module.student)

    def outputs(self, module: Any, batch: Any, student: nn.Module | None = None) -> Outputs:
        """Return the outputs of the global student, or of another frozen one, for a batch."""
        with torch.no_grad():
            return module.student_outputs(batch[0], self.global_student if student is None else student)
