"""`DistillationModule`: an ordinary LightningModule that trains a student, with or without a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics.classification import MulticlassConfusionMatrix

from fedkd import students, teachers
from fedkd.errors import FedKDError
from fedkd.losses import KD, DistillationLoss
from fedkd.metrics import accuracies
from fedkd.teachers import Teacher

OptimizerFactory = Callable[[Iterable], Optimizer]


class DistillationModule(LightningModule):
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
        loss: How labels and teacher combine.
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
        self.student: nn.Module | None = student if isinstance(student, nn.Module) else None
        self.student_spec = {"name": student, **(student_options or {})} if isinstance(student, str) else None
        self.loss = loss
        self.optimizer = optimizer
        self.confusion: MulticlassConfusionMatrix | None = None
        self.classes: tuple[str, ...] = ()
        self.image_shape: tuple[int, ...] = ()
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
        self.student.to(memory_format=torch.channels_last)
        students.check(self.student, len(classes), image_shape)
        self.confusion = MulticlassConfusionMatrix(num_classes=len(classes))

    def describe(self) -> dict[str, Any]:
        """Return what is needed to build the student again, JSON-able; see `fedkd.load_student`."""
        return {"student": self.student_spec, "classes": list(self.classes), "image_shape": list(self.image_shape)}

    def setup(self, stage: str) -> None:
        """Build from the attached datamodule and prepare the teacher; `Federation` has done both before."""
        data = getattr(self.trainer, "datamodule", None)
        if data is not None and hasattr(data, "image_shape"):
            self.build(data.classes, data.image_shape)
        if self.student is None or self.confusion is None:
            raise FedKDError("Call module.build(classes, image_shape) first, or pass a FederatedDataModule.")
        if stage == "fit" and self.teacher is not None and self.teacher.head is None and data is not None:
            teachers.prepare_teacher(
                self.teacher, data.train, data.test, data.shards, cache=None, device=self.trainer.strategy.root_device
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

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [0, 1] to the student's logits (B, K)."""
        assert self.student is not None
        return self.student(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Compute the loss on ``(images, targets)`` or on a `fedkd.data.Batch`; every term is logged by name."""
        images, targets = batch[:2]
        terms = self.loss(self(images), targets, self._teacher_logits(batch))
        self.log_dict(
            {f"train/{name}": value for name, value in terms.items()},
            on_step=False,
            on_epoch=True,
            batch_size=len(targets),
        )
        return terms["loss"]

    def _teacher_logits(self, batch: Any) -> Tensor | None:
        logits = getattr(batch, "teacher_logits", None)  # cached: the teacher itself does not run
        if logits is None and self.teacher is not None:
            images = batch[0]
            if self.teacher.device != images.device:  # Lightning moves only what is part of the module
                self.teacher.to(images.device)
            logits = self.teacher(images)
        return logits

    def configure_optimizers(self) -> Optimizer:
        """Make a fresh optimizer over the student's trainable parameters."""
        assert self.student is not None
        return self.optimizer(p for p in self.student.parameters() if p.requires_grad)

    def on_validation_epoch_start(self) -> None:
        """Forget the counts of an earlier pass."""
        assert self.confusion is not None
        self.confusion.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Count predictions by class and log the cross-entropy."""
        self._evaluation_step(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Log accuracy, balanced accuracy and accuracy per class."""
        self._log_accuracies("val")

    on_test_epoch_start = on_validation_epoch_start

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """As `validation_step`."""
        self._evaluation_step(batch, "test")

    def on_test_epoch_end(self) -> None:
        """As `on_validation_epoch_end`."""
        self._log_accuracies("test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return class probabilities (B, K)."""
        return self(batch[0]).float().softmax(dim=-1)

    def _evaluation_step(self, batch: Any, stage: str) -> None:
        images, targets = batch[:2]
        logits = self(images).float()
        assert self.confusion is not None
        self.confusion.update(logits, targets)
        self.log(f"{stage}/loss", nn.functional.cross_entropy(logits, targets), batch_size=len(targets))

    def _log_accuracies(self, stage: str) -> None:
        assert self.confusion is not None
        metrics = accuracies(self.confusion.compute(), self.classes)
        self.log_dict({f"{stage}/{name}": value for name, value in metrics.items()})
