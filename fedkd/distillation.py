"""`DistillationModule`: an ordinary LightningModule that trains a student, with or without a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fedkd import students, teachers
from fedkd.classifier import Classifier
from fedkd.errors import FedKDError
from fedkd.losses import KD, DistillationLoss, FeatureMoments, FrozenHead, Outputs, feature_moments
from fedkd.students import ProjectedStudent
from fedkd.teachers import Teacher, TeacherSignal
from fedkd.teachers.base import overrides_forward

OptimizerFactory = Callable[[Iterable], Optimizer]


class DistillationModule(Classifier):
    """A student that learns from labels and from a frozen teacher.

    It works with a plain ``Trainer`` (all data in one place: the upper bound) and is what `fedkd.Federation` trains on
    every client. The teacher is not part of the module's state: it appears in no checkpoint and never travels. In a
    plain ``Trainer`` it runs live, on what the student sees; a federation caches what it says of each clean image.
    As with ``Trainer.fit``, a module that was trained goes on from its weights: make a new one for a fresh run.

    Args:
        student: A name out of ``fedkd.students`` (built to the data's classes and image shape when they are known) or
            any module from images (B, C, H, W) in [0, 1] to logits (B, K).
        teacher: A `Teacher`, or what `fedkd.teachers.create` takes: a short name, a HuggingFace hub id or a local
            folder. None is the plain federated baseline.
        loss: How labels and teacher combine. A loss on features gives the student a projector to the teacher's feature
            space, `fedkd.students.ProjectedStudent`, which is trained, averaged and saved with it.
        optimizer: From parameters to an optimizer.
        student_options: Options for a student given by name, such as ``{"norm": "group"}``.
    """

    def __init__(
        self,
        student: nn.Module | str = "resnet8",
        teacher: Teacher | str | None = None,
        loss: DistillationLoss = KD(),  # noqa: B008  (stateless, and readable by the command line)
        optimizer: OptimizerFactory = lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
        student_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if student_options and not isinstance(student, str):
            raise FedKDError("student_options go with a student given by name, not with a module.")
        if taken := {"num_classes", "in_channels", "image_size"} & set(student_options or {}):
            raise FedKDError(f"student_options: {', '.join(sorted(taken))} come from the data; leave them out.")
        if isinstance(student, str):
            students.students[student]  # an unknown name is said now, not after the data was read
        self.student = student if isinstance(student, nn.Module) else None
        self.student_spec = {"name": student, **(student_options or {})} if isinstance(student, str) else None
        self.loss = loss
        self.optimizer = optimizer
        self.image_shape: tuple[int, ...] = ()
        self.feature_layer: str | None = None
        # in a tuple, nn.Module does not register it
        self._teacher = (teachers.create(teacher) if isinstance(teacher, str) else teacher,)

    @property
    def teacher(self) -> Teacher | None:
        """The frozen teacher, kept outside of ``state_dict``, ``parameters`` and ``to``."""
        return self._teacher[0]

    def build(self, classes: Iterable[str], image_shape: tuple[int, int, int]) -> None:
        """Fit the module to the data: build a named student, size the metrics. A second call changes nothing.

        Args:
            classes: Names of the K classes.
            image_shape: (C, H, W) of the images.

        Raises:
            FedKDError: If the student does not give (B, K) logits on such images.
        """
        classes = tuple(classes)
        if self.student is not None and self.confusion is not None:
            if (classes, tuple(image_shape)) == (self.classes, self.image_shape):
                return
            if self.student_spec is not None:
                raise FedKDError(
                    f"The student was built for classes {list(self.classes)} and images of {self.image_shape}, not for "
                    f"{list(classes)} and {tuple(image_shape)}: make a new DistillationModule."
                )
        self.classes, self.image_shape = classes, tuple(image_shape)
        if self.student is None:
            assert self.student_spec is not None
            channels, height, _ = image_shape
            self.student_spec |= {"num_classes": len(classes), "in_channels": channels, "image_size": height}
            self.student = students.create(**self.student_spec)
        students.check(self.student, len(classes), image_shape)
        if self.teacher is not None and self.loss.needs_features:
            base = self.student.student if isinstance(self.student, ProjectedStudent) else self.student
            self.feature_layer = students.feature_layer(base, len(classes), image_shape)
            if self.loss.needs_projector and base is self.student:
                with torch.no_grad():
                    seen = self.teacher.features(torch.zeros(1, *image_shape, device=self.teacher.device))
                self.student = ProjectedStudent(base, self.feature_layer, feature_dim=seen.shape[1])
        self.student.to(memory_format=torch.channels_last)
        self.count_classes(len(classes))

    def describe(self) -> dict[str, Any]:
        """Return what is needed to build the student again, JSON-able; see `fedkd.load_student`."""
        return {
            "student": self.student_spec,
            "projection": self.student.describe() if isinstance(self.student, ProjectedStudent) else None,
            "classes": list(self.classes),
            "image_shape": list(self.image_shape),
            "loss": self.loss.resolved(),
        }

    def constants(self) -> dict[str, Tensor]:
        """Return the student's tensors that never travel, a frozen head's, to be saved beside its state."""
        return self.student.constants() if isinstance(self.student, ProjectedStudent) else {}

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

    def setup(self, stage: str) -> None:
        """Build from the attached datamodule and prepare the teacher; `Federation` has done both before."""
        data = getattr(self.trainer, "datamodule", None)
        if data is not None and hasattr(data, "image_shape"):
            self.build(data.classes, data.image_shape)
        if self.student is None or self.confusion is None:
            raise FedKDError("Call module.build(classes, image_shape) first, or pass a FederatedDataModule.")
        if stage != "fit" or self.teacher is None or (self.teacher.head is not None and self.is_calibrated):
            return
        if data is not None:
            device, features = self.trainer.strategy.root_device, self.loss.needs_features
            signal = teachers.prepare_teacher(
                self.teacher,
                data.train,
                data.test,
                data.shards,
                public=data.public_indices,
                features=features,
                cache=None,
                device=device,
            )
            self.calibrate_to(signal, data.shards)
        elif not self.is_calibrated:
            raise FedKDError(
                f"{type(self.loss).__name__} takes something from the teacher's outputs on all images: call "
                "module.calibrate(logits, moments) first, or pass a FederatedDataModule."
            )

    @property
    def is_calibrated(self) -> bool:
        """Whether `calibrate` has done all that the loss asks for."""
        has_head = isinstance(self.student, ProjectedStudent) and self.student.has_head
        return self.loss.calibrated and (has_head or not isinstance(self.loss, FrozenHead))

    def check_optimizer(self) -> None:
        """Make an optimizer once, so that a wrong argument is said before any work.

        Raises:
            FedKDError: If torch refuses the arguments.
        """
        try:
            self.configure_optimizers()
        except (TypeError, ValueError) as error:
            raise FedKDError(f"The optimizer refuses its arguments: {error}") from error

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep beside the weights what is needed to build the student."""
        checkpoint["fedkd"] = self.describe()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the student before its weights come."""
        spec = checkpoint["fedkd"]
        self.build(spec["classes"], tuple(spec["image_shape"]))

    def on_train_epoch_start(self) -> None:
        """Log the numbers that the loss found for itself, such as an automatic temperature."""
        if self.teacher is not None:
            self.log_dict({f"train/{name}": value for name, value in self.loss.resolved().items()})

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Compute the loss on ``(images, targets)`` or on a `fedkd.data.Batch`; every term is logged by name."""
        images, targets = batch[:2]
        terms = self.loss(self.student_outputs(images), targets, self.teacher_outputs(batch))
        self.log_dict(
            {f"train/{name}": value for name, value in terms.items()},
            on_step=False,
            on_epoch=True,
            batch_size=len(targets),
        )
        return terms["loss"]

    def student_outputs(self, images: Tensor) -> Outputs:
        """Run the student on images (B, C, H, W) in [0, 1], once, for all that the loss needs of it."""
        if self.feature_layer is None:
            return Outputs(self(images))
        assert self.student is not None
        if isinstance(self.student, ProjectedStudent):
            features, logits = self.student.features_and_logits(images)
        else:
            features, logits = students.features_and_logits(self.student, images, self.feature_layer)
        return Outputs(logits, features)

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

    def configure_optimizers(self) -> Optimizer:
        """Make a fresh optimizer over the student's trainable parameters."""
        assert self.student is not None
        return self.optimizer(p for p in self.student.parameters() if p.requires_grad)
