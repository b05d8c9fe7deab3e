"""`DistillationModule`: an ordinary LightningModule that trains a student, with or without a teacher."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fedkd import students, teachers
from fedkd.core.errors import FedKDError
from fedkd.losses import DKD, CrossEntropy, DistillationLoss, LabelLoss, Outputs
from fedkd.students import ProjectedStudent
from fedkd.teachers import Teacher
from fedkd.training.objective import Objective
from fedkd.training.taught import TaughtClassifier

OptimizerFactory = Callable[[Iterable], Optimizer]


class DistillationModule(TaughtClassifier):
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
        loss: How labels and teacher combine; without a teacher it is plain cross-entropy. A loss on features gives the
            student a projector to the teacher's feature space, `fedkd.students.ProjectedStudent`, which is trained,
            averaged and saved with it.
        optimizer: From parameters to an optimizer. The default takes small steps, for larger ones drift apart on skewed
            shards.
        student_options: Options for a student given by name, such as ``{"norm": "group"}``.
        label_loss: The cross-entropy that the loss speaks of: the plain one, or one that looks at how many images of
            each class a client has.
    """

    def __init__(
        self,
        student: nn.Module | str = "resnet8",
        teacher: Teacher | str | None = None,
        loss: DistillationLoss = DKD(),  # noqa: B008  (stateless, and readable by the command line)
        optimizer: OptimizerFactory = lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9),
        student_options: dict[str, Any] | None = None,
        label_loss: LabelLoss = CrossEntropy(),  # noqa: B008
    ) -> None:
        if student_options and not isinstance(student, str):
            raise FedKDError("student_options go with a student given by name, not with a module.")
        if taken := {"num_classes", "in_channels", "image_size"} & set(student_options or {}):
            raise FedKDError(f"student_options: {', '.join(sorted(taken))} come from the data; leave them out.")
        if isinstance(student, str):
            students.students[student]  # an unknown name is said now, not after the data was read
        if not isinstance(label_loss, CrossEntropy) and "labels" not in inspect.signature(loss.forward).parameters:
            raise FedKDError(
                f"{type(loss).__name__} takes no label_loss but CrossEntropy, got {type(label_loss).__name__}: its "
                "forward has no argument labels."
            )
        if not isinstance(label_loss, CrossEntropy) and teacher is not None and getattr(loss, "ce_weight", 1) == 0:
            raise FedKDError(
                f"label_loss {type(label_loss).__name__} would do nothing: the ce_weight of {type(loss).__name__} is "
                "0. Give it a number above."
            )
        super().__init__(teacher, loss)
        self.student = student if isinstance(student, nn.Module) else None
        self.student_spec = {"name": student, **(student_options or {})} if isinstance(student, str) else None
        self.label_loss = label_loss
        self.optimizer = optimizer
        self.image_shape: tuple[int, int, int] = (0, 0, 0)
        self.feature_layer: str | None = None

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
        self.classes, self.image_shape = classes, tuple(image_shape)  # type: ignore[assignment]
        if self.student is None:
            assert self.student_spec is not None
            channels, height, _ = image_shape
            self.student_spec |= {"num_classes": len(classes), "in_channels": channels, "image_size": height}
            self.student = students.create(**self.student_spec)
        students.check(self.student, len(classes), image_shape)
        if self.teacher is not None and self.loss.needs_features:
            layer = self._find_features()
            if self.loss.needs_projector and not isinstance(self.student, ProjectedStudent):
                with torch.no_grad():
                    seen = self.teacher.features(torch.zeros(1, *image_shape, device=self.teacher.device))
                self.student = ProjectedStudent(self.student, layer, feature_dim=seen.shape[1])
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
        terms = self.loss_terms(batch)
        self.log_dict(
            {f"train/{name}": value for name, value in terms.items()},
            on_step=False,
            on_epoch=True,
            batch_size=len(batch[1]),
        )
        return terms["loss"]

    @property
    def objectives(self) -> list[Objective]:
        """Further terms of the loss: callbacks of the Trainer that trains the module now, if one does."""
        trainer: Any = self._trainer
        in_training = trainer is not None and trainer.training
        return [each for each in trainer.callbacks if isinstance(each, Objective)] if in_training else []

    def loss_terms(self, batch: Any) -> dict[str, Tensor]:
        """Return what a client minimises on a batch, ``"loss"``, and its terms, those of the objectives included."""
        images, targets = batch[:2]
        objectives = self.objectives
        if any(objective.needs_features for objective in objectives):
            self._find_features()
        shared: Any = getattr(batch, "shared", None)
        teacher = self.teacher_outputs(batch)
        of_shared = None if shared is None else self.teacher_outputs(shared)  # None without a teacher, too
        # one pass through the student for all, so that a BatchNorm sees the mixture
        outputs = self.student_outputs(images if of_shared is None else torch.cat([images, shared.images]))
        student = outputs.rows(slice(len(targets)))
        terms = self.loss(student, targets, teacher, **self._labels(batch))
        if of_shared is not None:
            taught = self.loss.teaching(outputs.rows(slice(len(targets), None)), of_shared)
            terms["loss"] = terms["loss"] + batch.shared_weight * taught["loss"]
            terms |= {f"shared_{name}": term.detach() for name, term in taught.items()}
        for objective in objectives:
            term = objective.term(self, batch, student)
            terms |= {"loss": terms["loss"] + objective.weight * term, objective.name: term.detach()}
        return terms

    def _labels(self, batch: Any) -> dict[str, Any]:
        """Return what a loss is told of labels beyond the targets; nothing for the plain cross-entropy."""
        if isinstance(self.label_loss, CrossEntropy):
            return {}
        return {"labels": partial(self.label_loss, counts=getattr(batch, "class_counts", None))}

    def student_outputs(self, images: Tensor, student: nn.Module | None = None) -> Outputs:
        """Run the student on images (B, C, H, W) in [0, 1], once, for all that the loss needs of it.

        Args:
            images: A batch.
            student: Another one of its kind, such as an earlier copy; this module's own if not given.
        """
        student = self.student if student is None else student
        assert student is not None
        if self.feature_layer is None:
            return Outputs(student(images))
        if isinstance(student, ProjectedStudent):
            features, logits = student.features_and_logits(images)
        else:
            features, logits = students.features_and_logits(student, images, self.feature_layer)
        return Outputs(logits, features)

    def _find_features(self) -> str:
        """Return the name of the student's layer whose inputs are its features; it is looked for once."""
        if self.feature_layer is None:
            assert self.student is not None
            base = self.student.student if isinstance(self.student, ProjectedStudent) else self.student
            self.feature_layer = students.feature_layer(base, len(self.classes), self.image_shape)
        return self.feature_layer

    def configure_optimizers(self) -> Optimizer:
        """Make a fresh optimizer over the student's trainable parameters."""
        assert self.student is not None
        return self.optimizer(p for p in self.student.parameters() if p.requires_grad)
