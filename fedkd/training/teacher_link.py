"""`TeacherLink`: the teacher of a module, kept outside of the module's state."""

from __future__ import annotations

from typing import Any

import torch

from fedkd.core.errors import FedKDError
from fedkd.losses import Outputs
from fedkd.teachers import Teacher, create


class TeacherLink:
    """Gives a module the teacher's outputs: those in the batch if it has them, else by running the teacher.

    It is no ``nn.Module``, so the teacher is in no ``state_dict``, in no ``parameters()``, and in no checkpoint.

    Args:
        teacher: A `Teacher`, or an argument of `fedkd.teachers.create`; None is no teacher.
    """

    def __init__(self, teacher: Teacher | str | None) -> None:
        if teacher == "":
            raise FedKDError("teacher is empty: give a short name, a folder or a hub id, or None for no teacher.")
        self.teacher = create(teacher) if isinstance(teacher, str) else teacher

    def outputs(self, batch: Any, needs_features: bool) -> Outputs | None:
        """Return the teacher's outputs for a batch, None without a teacher.

        Args:
            batch: A `fedkd.data.Batch`, or ``(images, targets)``, for which the teacher runs now.
            needs_features: Whether features (B, D) are needed beside logits (B, K).

        Raises:
            FedKDError: If the batch has logits but lacks the features.
        """
        logits, features = (getattr(batch, name, None) for name in ("teacher_logits", "teacher_features"))
        if logits is not None:
            if needs_features and features is None:
                raise FedKDError("The loss needs the teacher's features, and the batch has its logits alone.")
            return Outputs(logits, features)
        teacher = self.teacher
        if teacher is None:
            return None
        images = batch[0]
        if teacher.device != images.device:  # Lightning moves only what is part of the module
            teacher.to(images.device)
        if not needs_features:
            return Outputs(teacher(images))
        with torch.no_grad():
            features = teacher.features(images)
            if teacher.head is None or teacher.overrides_forward:
                return Outputs(teacher(images), features)
            return Outputs(teacher.head(features).float(), features)
