"""`TaughtClassifier`: the half of a `DistillationModule` that asks a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedkd import teachers
from fedkd.core.errors import FedKDError
from fedkd.losses import DistillationLoss, FeatureMoments, FrozenHead, Outputs, feature_moments
from fedkd.students import ProjectedStudent
from fedkd.teachers import Teacher, TeacherSignal
from fedkd.teachers.teacher import overrides_forward
from fedkd.training.classifier import Classifier


class TaughtClassifier(Classifier):
    """Keeps the teacher, outside of the module's state, and fits the loss to it.

    Args:
        teacher: A `Teacher`, or what `fedkd.teachers.create` takes; None is no teacher.
        loss: What is to be fitted to the teacher.
    """

    def __init__(self, teacher: Teacher | str | None, loss: DistillationLoss) -> None:
        super().__init__()
        self.loss = loss
        # in a tuple, nn.Module does not register it
        self._teacher = (teachers.create(teacher) if isinstance(teacher, str) else teacher,)

    @property
    def teacher(self) -> Teacher | None:
        """The frozen teacher, kept outside of ``state_dict``, ``parameters`` and ``to``."""
        return self._teacher[0]

    def calibrate(self, logits: Tensor, moments: FeatureMoments | None = None) -> None:
        """Fix what the loss takes from the teacher: a temperature, the features' scale, the frozen head.

        Args:
            logits: The teacher's on the clients' images, (n, K).
            moments: Of its features there (`fedkd.losses.feature_moments`), for a loss that has a projector.

        Raises:
            FedKDError: If the loss needs more than it is given, or a head that the teacher does not have.
        """
        self.loss.calibrate(logits, moments)
        if isinstance(self.loss, FrozenHead):
            head = None if self.teacher is None or overrides_forward(self.teacher) else self.teacher.head
            if head is None or moments is None:
                raise FedKDError(f"FrozenHead needs a teacher with a head; {type(self.teacher).__name__} has none.")
            assert isinstance(self.student, ProjectedStudent)
            self.student.freeze_head(*self.loss.classifier(head, moments), unit=self.loss.unit)

    def calibrate_to(self, signal: TeacherSignal, shards: Sequence[np.ndarray]) -> None:
        """`calibrate` to what `fedkd.teachers.prepare_teacher` returned, on the images of these shards."""
        moments = None
        if self.loss.needs_projector:
            assert signal.feature_file is not None
            moments = feature_moments(np.load(signal.feature_file, mmap_mode="r"), np.concatenate(shards))
        self.calibrate(signal.logits_of(shards), moments)

    @property
    def is_calibrated(self) -> bool:
        """Whether `calibrate` has done all that the loss asks for."""
        has_head = isinstance(self.student, ProjectedStudent) and self.student.has_head
        return self.loss.calibrated and (has_head or not isinstance(self.loss, FrozenHead))

    def teacher_outputs(self, batch: Any) -> Outputs | None:
        """Return what the teacher says of a batch: as it was cached, else live; None without a teacher."""
        needs_features = self.loss.needs_features
        logits, features = (getattr(batch, name, None) for name in ("teacher_logits", "teacher_features"))
        if logits is not None:
            if needs_features and features is None:
                raise FedKDError(f"{type(self.loss).__name__} needs the teacher's features, which the batch lacks.")
            return Outputs(logits, features)
        if self.teacher is None:
            return None
        images = batch[0]
        if self.teacher.device != images.device:  # Lightning moves only what is part of the module
            self.teacher.to(images.device)
        if not needs_features:
            return Outputs(self.teacher(images))
        with torch.no_grad():
            features, head = self.teacher.features(images), self.teacher.head
            if head is None or overrides_forward(self.teacher):
                return Outputs(self.teacher(images), features)
            return Outputs(head(features).float(), features)
