"""`Objective`: a further term of a client's loss, as a Lightning callback."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from lightning.pytorch import Callback
from torch import Tensor, nn

from fedkd.losses import Outputs


class Objective(Callback, ABC):
    """Adds ``weight * term`` to the loss of a `fedkd.DistillationModule` while a Trainer that has it fits the module.

    It is added to the loss on labels and teacher outputs, so an algorithm that changes the client's objective
    (MOON, FedNTD, FedGKD) composes with every loss. The term is logged unweighted as ``train/<name>``.

    Args:
        weight: Of the term, >= 0.
    """

    name: ClassVar[str]
    """Under which the term is logged."""
    runs_lean: ClassVar[bool] = True
    runs_stacked: ClassVar[bool] = False
    """Whether the term of all clients of a round is the same function, so that `fedkd.Stacked` may use one for all."""
    needs_features: ClassVar[bool] = False
    """Whether `term` reads the student's features."""
    needs_targets: ClassVar[bool] = True
    """Whether `term` reads the batch's targets. Of mixed images it is then computed for the classes of both."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    @abstractmethod
    def term(self, module: Any, batch: Any, student: Outputs) -> Tensor:
        """Return the unweighted term, a scalar.

        Args:
            module: The `fedkd.DistillationModule` that trains.
            batch: ``(images, targets, ...)``.
            student: Its student's outputs for the batch.
        """


def frozen_copy(student: nn.Module) -> nn.Module:
    """Return a copy of a student as it is now, in eval mode and without gradients."""
    return copy.deepcopy(student).eval().requires_grad_(False)
