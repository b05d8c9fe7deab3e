"""`DistillationModule`: an ordinary LightningModule that trains a student, with or without a teacher."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from fedkd import students
from fedkd.core.config import one_line
from fedkd.core.errors import FedKDError, refuse_classes, unknown_name
from fedkd.core.metrics import EpochSums, accuracies, confusion_matrix
from fedkd.core.modes import let_train
from fedkd.losses import DKD, CrossEntropy, DistillationLoss, LabelLoss, Outputs, TeacherFacts, local_facts
from fedkd.students import ClosedFormStudent, LogitsStudent, ProjectedStudent, UnbuiltStudent, trained_part
from fedkd.teachers import Teacher, prepare_teacher
from fedkd.training.mixed import mean_of_pair, mixed_of
from fedkd.training.objective import Objective
from fedkd.training.teacher_link import TeacherLink

OptimizerFactory = Callable[[Iterable], Optimizer]


class DistillationModule(LightningModule):
    """A student that learns from labels and from a frozen teacher.

    It works with a plain ``Trainer``, on all data in one place (the central baseline), and `fedkd.Federation` trains it
    on every client. The teacher is not part of the module's state: it is in no checkpoint and is never sent.
    With a plain ``Trainer`` it runs on what the student sees; a federation computes its outputs once and caches them.

    Args:
        student: A name out of ``fedkd.students``, or ``torchvision/NAME``, ``timm/NAME`` or ``hf/ID``; or any module
            from images (B, C, H, W) in [0, 1] to logits (B, K), or to an output that has them as ``logits``
            (`fedkd.students.LogitsStudent`). A student by name is built for the data's classes and image shape as soon
            as they are known: see `build`.
            Parts that are in evaluation mode in a module in training mode stay so: a BatchNorm that keeps its
            statistics. A module in evaluation mode as a whole is put into training mode.
        teacher: A `Teacher`, or an argument of `fedkd.teachers.create`: a short name, a HuggingFace hub id or a local
            folder. None is the plain federated baseline.
        loss: How labels and teacher combine. "auto" is `DKD`, and in a federation what suits its strategy
            (`fedkd.strategies.Strategy.default_loss`). Without a teacher it is the plain cross-entropy. A loss on
            features adds a projector to the teacher's feature space, `fedkd.students.ProjectedStudent`, which is
            trained, averaged and saved with the student. The module keeps a copy of its own.
        optimizer: From parameters to an optimizer. The default takes small steps, because large local steps on
            skewed clients diverge.
        student_options: Options of a student by name, such as ``{"norm": "group"}``.
        label_loss: The cross-entropy within the loss: the plain one, or one that uses the number of images of each
            class on the client.

    Attributes:
        student: The student: an `UnbuiltStudent`, which has no weights yet, until `build`.
        loss: The loss.
        has_default_loss: Whether the loss is "auto".
        classes: Names of the K classes, once they are known.
        image_shape: (C, H, W) of the images, once it is known.
    """

    student: nn.Module
    runs_lean: ClassVar[bool] = True
    """A `fedkd.training.lean_trainer.LeanTrainer` may fit it. A subclass that declares it itself overrides no hook but
    those that such a Trainer calls, and does not log in them."""

    def __init__(
        self,
        student: nn.Module | str = "resnet8",
        teacher: Teacher | str | None = None,
        loss: DistillationLoss | Literal["auto"] = "auto",
        optimizer: OptimizerFactory = lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9),
        student_options: dict[str, Any] | None = None,
        label_loss: LabelLoss = CrossEntropy(),  # noqa: B008  (readable by the command line)
    ) -> None:
        refuse_classes(student=student, teacher=teacher, loss=loss, label_loss=label_loss)
        has_default_loss = not isinstance(loss, DistillationLoss)
        if not isinstance(loss, DistillationLoss):
            if loss != "auto":
                raise unknown_name("loss", loss, ("auto",))
            loss = DKD()
        if student_options and not isinstance(student, str):
            raise FedKDError("student_options go with a student given by name, not with a module.")
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
        super().__init__()
        self.student = UnbuiltStudent(student, student_options) if isinstance(student, str) else student
        self.student_spec: dict[str, Any] | None = None  # what builds a student by name again
        self.has_default_loss = has_default_loss
        self.loss = copy.deepcopy(loss)  # it is fitted to the teacher, so no two modules share one
        self.label_loss = label_loss
        self.optimizer = optimizer
        self.teacher_link = TeacherLink(teacher)
        self.classes: tuple[str, ...] = ()
        self.image_shape: tuple[int, int, int] = (0, 0, 0)
        self.feature_layer: str | None = None
        self.facts: TeacherFacts | None = None  # what was given to `fit_to_teacher`
        self._train_sums, self._eval_sums = EpochSums(), EpochSums()
        self.confusion: Tensor | None = None  # counts (K, K) of the last evaluation, rows are true classes
        self.was_federated = False  # whether the student's weights are what a federation made of them

    @property
    def teacher(self) -> Teacher | None:
        """The frozen teacher, kept outside of ``state_dict``, ``parameters`` and ``to``."""
        return self.teacher_link.teacher

    @property
    def projected(self) -> ProjectedStudent | None:
        """The part of the student that has a projector, if there is one."""
        part = trained_part(self.student)
        return part if isinstance(part, ProjectedStudent) else None

    @property
    def is_built(self) -> bool:
        """Whether the student has weights and the classes are known."""
        return bool(self.classes) and not isinstance(self.student, UnbuiltStudent)

    def build(self, classes: Iterable[str], image_shape: tuple[int, int, int]) -> None:
        """Build all that depends on the data: a student by name, and a projector if the loss needs one.

        A second call with the same data changes nothing.

        Args:
            classes: Names of the K classes.
            image_shape: (C, H, W) of the images.

        Raises:
            FedKDError: If the student does not give (B, K) logits for such images, or was built for other data.
        """
        classes, image_shape = tuple(classes), tuple(image_shape)  # type: ignore[assignment]
        if self.is_built and (classes, image_shape) == (self.classes, self.image_shape):
            return
        if self.is_built and self.student_spec is not None:
            raise FedKDError(
                f"The student was built for classes {list(self.classes)} and images of {self.image_shape}, not for "
                f"{list(classes)} and {image_shape}: make a new DistillationModule."
            )
        student = self.student
        if isinstance(student, UnbuiltStudent):
            self.student_spec = student.spec(len(classes), image_shape)
            student = student.build(len(classes), image_shape)
        let_train(student)  # a checkpoint comes in evaluation mode
        student = students.as_student(student, len(classes), image_shape)
        if self.teacher is not None and self.loss.needs_features:
            base = student.student if isinstance(student, ProjectedStudent) else student
            self.feature_layer = students.feature_layer(base, len(classes), image_shape)
            if self.loss.needs_projector and not isinstance(student, ProjectedStudent):
                with torch.no_grad():
                    seen = self.teacher.features(torch.zeros(1, *image_shape, device=self.teacher.device))
                student = ProjectedStudent(student, self.feature_layer, feature_dim=seen.shape[1])
        self.student = student.to(memory_format=torch.channels_last)
        self.classes, self.image_shape = classes, image_shape

    def with_student(self, name: str) -> DistillationModule:
        """Return a module like this one, with the same teacher, and another student by name."""
        spec = self.student_spec or (self.student.options if isinstance(self.student, UnbuiltStudent) else {})
        given = {"name", *students.FROM_DATA}
        options = {key: value for key, value in spec.items() if key not in given}
        loss: DistillationLoss | Literal["auto"] = "auto" if self.has_default_loss else self.loss
        return DistillationModule(name, self.teacher, loss, self.optimizer, options, self.label_loss)

    def use_default_loss(self, loss: DistillationLoss | None) -> None:
        """Take a loss on logits, if the module's own is "auto" and there is a teacher.

        Args:
            loss: What suits the run; None is `DKD`.
        """
        if self.has_default_loss and self.teacher is not None:
            self.loss = DKD() if loss is None else loss

    def fresh_student(self) -> nn.Module:
        """Return a student like this module's, which was built by name, with fresh weights from torch's global seed."""
        if self.student_spec is None:
            raise FedKDError("A student that is a module of the caller's cannot be made afresh: give it by name.")
        student = students.as_student(students.create(**self.student_spec), len(self.classes), self.image_shape)
        if (projected := self.projected) is not None:
            found = projected.describe()
            student = ProjectedStudent(student, found["layer"], found["feature_dim"])
        if isinstance(self.student, ClosedFormStudent):
            student = ClosedFormStudent.restore(student, self.student.describe())
        return student.to(memory_format=torch.channels_last)

    def forget_federation(self) -> None:
        """Make the module as new again for another federation: a student by name is built afresh.

        Raises:
            FedKDError: If the student is the caller's own module, which a federation has trained.
        """
        if not self.was_federated:
            return
        if self.student_spec is None:
            raise FedKDError(
                "A federation has trained this module's student already: make a new DistillationModule, with a fresh "
                "student or with this one (DistillationModule(module.student, ...))."
            )
        given = {"name", *students.FROM_DATA}
        options = {key: value for key, value in self.student_spec.items() if key not in given}
        self.student = UnbuiltStudent(self.student_spec["name"], options)
        self.student_spec, self.feature_layer, self.classes, self.was_federated = None, None, (), False

    def for_clients(self) -> DistillationModule:
        """Return a copy without the teacher, which a client, or the server, trains and evaluates as its own."""
        return copy.deepcopy(self, {id(self._trainer): None, id(self.teacher_link): TeacherLink(None)})

    def fit_to_teacher(self, facts: TeacherFacts) -> None:
        """Give the loss, and a frozen head, what they take from the teacher's outputs on all clients' images.

        Args:
            facts: What was found: a temperature, the features' moments, the head.

        Raises:
            FedKDError: If the loss needs more than it is given.
        """
        self.facts = facts
        self.loss.fit_to_teacher(facts)
        if (head := self.loss.frozen_head(facts)) is not None and self.projected is not None:
            self.projected.freeze_head(*head)

    @property
    def is_fitted_to_teacher(self) -> bool:
        """Whether the loss, and a frozen head if there is to be one, have what they take from the teacher."""
        has_head = self.projected is not None and self.projected.has_head
        return self.loss.is_fitted and (has_head or not self.loss.needs_head)

    def describe(self) -> dict[str, Any]:
        """Return what is needed to build the student again, JSON-able; see `fedkd.load_student`."""
        spec = self.student_spec
        return {
            "student": None if spec is None else students.portable(spec, self.student),
            "projection": None if self.projected is None else self.projected.describe(),
            "takes_logits": any(isinstance(part, LogitsStudent) for part in self.student.modules()),
            "closed_form": self.student.describe() if isinstance(self.student, ClosedFormStudent) else None,
            "classes": list(self.classes),
            "image_shape": list(self.image_shape),
            "loss": self.loss.resolved(),
        }

    def constants(self) -> dict[str, Tensor]:
        """Return the student's tensors that never travel, a frozen head's, to be saved beside its state."""
        return {} if self.projected is None else self.projected.constants()

    def setup(self, stage: str) -> None:
        """Build from the attached datamodule and prepare the teacher. A federation has done both before."""
        data = getattr(self.trainer, "datamodule", None)
        if data is not None and hasattr(data, "image_shape"):
            self.build(data.classes, data.image_shape)
        if stage == "fit":
            self.check_data(data)
        if not self.is_built:
            raise FedKDError("Call module.build(classes, image_shape) first, or pass a FederatedDataModule.")
        if stage != "fit" or self.teacher is None or (self.teacher.head is not None and self.is_fitted_to_teacher):
            return
        if data is not None:
            device = self.trainer.strategy.root_device
            outputs = prepare_teacher(self.teacher, data, features=self.loss.needs_features, device=device)
            self.fit_to_teacher(local_facts(self.loss, *outputs.of_clients(data.shards), self.teacher.frozen_head))
        elif not self.is_fitted_to_teacher:
            raise FedKDError(
                f"{type(self.loss).__name__} takes something from the teacher's outputs on all images: call "
                "module.fit_to_teacher(facts) first, or pass a FederatedDataModule."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep beside the weights what is needed to build the student."""
        checkpoint["fedkd"] = {**self.describe(), "constants": self.constants()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the student that was trained, before its weights come."""
        found = checkpoint["fedkd"]
        classes, image_shape = tuple(found["classes"]), tuple(found["image_shape"])
        if found["student"] is None and isinstance(self.student, UnbuiltStudent):
            raise FedKDError(
                "The checkpoint's student was not made by name: pass load_from_checkpoint(path, student=)."
            )
        student = self.student if found["student"] is None else students.create(**found["student"])
        if found.get("takes_logits") and not isinstance(student, LogitsStudent):
            student = LogitsStudent(student)
        if found["projection"]:
            student = ProjectedStudent.restore(student, found["projection"], dict(found["constants"]))
        projected = student
        if found.get("closed_form"):
            student = ClosedFormStudent.restore(student, found["closed_form"])
        students.check(student, len(classes), image_shape)
        self.student = student.to(memory_format=torch.channels_last)
        self.student_spec, self.classes, self.image_shape = found["student"], classes, image_shape
        if isinstance(projected, ProjectedStudent):
            self.feature_layer = projected.layer

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [0, 1] to the student's logits (B, K)."""
        return self.student(images)

    def configure_optimizers(self) -> Optimizer:
        """Make a fresh optimizer over the student's trainable parameters."""
        return self.optimizer(p for p in self.student.parameters() if p.requires_grad)

    def check_optimizer(self) -> None:
        """Make an optimizer once, so that a wrong argument raises before any work.

        Raises:
            FedKDError: If torch refuses the arguments, or there is nothing to train.
        """
        if not any(value.requires_grad for value in self.student.parameters()):
            raise FedKDError("The student has no parameter to train: requires_grad is False for all, or it has none.")
        try:
            made = self.try_optimizer()
        except (TypeError, ValueError) as error:
            raise FedKDError(f"optimizer refuses its arguments: {error}") from error
        found = made if isinstance(made, Optimizer) else getattr(made, "get", lambda _: None)("optimizer")
        if isinstance(found, torch.optim.LBFGS):
            raise FedKDError(
                "optimizer LBFGS cannot train a student: it needs parameters whose gradients are contiguous, and a "
                "student's are in torch's channels_last. Choose another, such as SGD, Adam or AdamW."
            )

    def try_optimizer(self) -> Any:
        """Return what `configure_optimizers` gives without a Trainer; None if a subclass's needs one.

        A schedule over ``self.trainer.estimated_stepping_batches`` does.
        """
        try:
            return self.configure_optimizers()
        except RuntimeError as error:
            if self._trainer is None and "attached to a `Trainer`" in str(error):
                return None
            raise

    def on_train_epoch_start(self) -> None:
        """Begin to sum the terms of the loss."""
        self._train_sums = EpochSums()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Compute the loss on ``(images, targets)`` or on a `fedkd.data.Batch`; every term is logged by name."""
        terms = self.loss_terms(batch)
        self._train_sums.add(terms, len(batch[1]))
        return terms["loss"]

    def epoch_metrics(self) -> dict[str, Any]:
        """Return an epoch's means of all terms, and what the loss took from the teacher: ``train/NAME``."""
        return {f"train/{name}": value for name, value in {**self.loss.resolved(), **self._train_sums.means()}.items()}

    def on_train_epoch_end(self) -> None:
        """Log the epoch's metrics. To log each step costs as much as a small student's step."""
        self.log_dict(self.epoch_metrics())

    @property
    def objectives(self) -> list[Objective]:
        """Further terms of the loss: callbacks of the Trainer that trains the module now, if one does."""
        trainer: Any = self._trainer
        in_training = trainer is not None and trainer.training
        return [each for each in trainer.callbacks if isinstance(each, Objective)] if in_training else []

    def loss_terms(self, batch: Any) -> dict[str, Tensor]:
        """Return what a client minimizes on a batch, ``"loss"``, and its terms, those of the objectives included."""
        images, targets = batch[:2]
        objectives, needs_features = self.objectives, self.loss.needs_features
        if any(objective.needs_features for objective in objectives):
            self._find_features()
        shared: Any = getattr(batch, "shared", None)
        teacher = self.teacher_link.outputs(batch, needs_features)
        of_shared = None if shared is None else self.teacher_link.outputs(shared, needs_features)
        # One pass through the student for all images, so that a BatchNorm sees both.
        outputs = self.student_outputs(images if of_shared is None else torch.cat([images, shared.images]))
        student = outputs.rows(slice(len(targets)))
        mixed, labels = mixed_of(batch, teacher), self._labels(batch)
        if mixed is None:
            terms = self.loss(student, targets, teacher, **labels)
        else:
            terms = self.loss.forward_mixed(student, mixed, **labels)
        if of_shared is not None:
            of_rest, mixed = outputs.rows(slice(len(targets), None)), mixed_of(shared, of_shared)
            if mixed is None:
                distilled = self.loss.distill(of_rest, of_shared)
            else:
                distilled = self.loss.distill_mixed(of_rest, mixed)
            terms["loss"] = terms["loss"] + batch.shared_weight * distilled["loss"]
            terms |= {f"shared_{name}": term.detach() for name, term in distilled.items()}
        for objective in objectives:
            term = self._term_of(objective, batch, student)
            terms |= {"loss": terms["loss"] + objective.weight * term, objective.name: term.detach()}
        return terms

    def _term_of(self, objective: Objective, batch: Any, student: Outputs) -> Tensor:
        """Return an objective's term. Of mixed images it is the mean over the classes of both, if it reads targets."""
        if getattr(batch, "mix_weight", None) is None or not objective.needs_targets:
            return objective.term(self, batch, student)
        return mean_of_pair(
            batch, batch.targets, lambda targets: objective.term(self, batch._replace(targets=targets), student)
        )

    def check_data(self, data: Any) -> None:
        """Raise if the loss cannot learn from the training batches of a datamodule.

        Raises:
            FedKDError: If it mixes images and the loss does not, or its batches are too small for the loss.
        """
        if self.teacher is None:
            return
        name, mix = type(self.loss).__name__, getattr(getattr(data, "augmentation", None), "mix", None)
        if mix is not None and not self.loss.can_mix:
            raise FedKDError(
                f"data.augmentation.mix is {one_line(mix)}, but {name} cannot learn from mixed images. Set mix to "
                "None, or choose another loss."
            )
        size = getattr(data, "batch_size", None)
        alone = getattr(data, "shared", None) is None  # shared images fill a batch
        if alone and isinstance(size, int) and size < self.loss.min_batch_size:
            raise FedKDError(
                f"data.batch_size is {size}, but {name} compares the images of a batch with each other: it must be >= "
                f"{self.loss.min_batch_size}."
            )

    def student_outputs(self, images: Tensor, student: nn.Module | None = None) -> Outputs:
        """Run the student once for all that the loss needs of it.

        Args:
            images: (B, C, H, W) in [0, 1].
            student: Another student of the same kind, such as an earlier copy; this module's own if not given.
        """
        student = trained_part(self.student if student is None else student)
        if self.feature_layer is None:
            return Outputs(student(images))
        if isinstance(student, ProjectedStudent):
            features, logits = student.features_and_logits(images)
        else:
            features, logits = students.features_and_logits(student, images, self.feature_layer)
        return Outputs(logits, features)

    def _labels(self, batch: Any) -> dict[str, Any]:
        """Return what the loss gets for the labels' term; nothing for the plain cross-entropy."""
        if isinstance(self.label_loss, CrossEntropy):
            return {}
        return {"labels": partial(self.label_loss, counts=getattr(batch, "class_counts", None))}

    def find_feature_layer(self) -> str:
        """Return the layer whose inputs are the student's features, by its name in what clients train."""
        if self.projected is not None:
            return f"student.{self.projected.layer}"
        return students.feature_layer(trained_part(self.student), len(self.classes), self.image_shape)

    def _find_features(self) -> None:
        """Find the layer whose inputs are the student's features, once."""
        if self.feature_layer is None:
            base = trained_part(self.student) if self.projected is None else self.projected.student
            self.feature_layer = students.feature_layer(base, len(self.classes), self.image_shape)

    def on_validation_epoch_start(self) -> None:
        """Begin to count (target, prediction) pairs, and to sum the loss."""
        self._eval_sums = EpochSums()
        self._confusion = torch.zeros(len(self.classes), len(self.classes), dtype=torch.int64, device=self.device)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Count predictions by class and sum the cross-entropy."""
        images, targets = batch[:2]
        logits = self(images).float()
        self._confusion += confusion_matrix(logits, targets, len(self.classes))
        self._eval_sums.add({"loss": nn.functional.cross_entropy(logits, targets)}, len(targets))

    def on_validation_epoch_end(self) -> None:
        """Log the loss, accuracy, balanced accuracy and accuracy per class."""
        self.log_dict(self.evaluation_metrics("val"))

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        """As `on_validation_epoch_end`."""
        self.log_dict(self.evaluation_metrics("test"))

    def evaluation_metrics(self, stage: str) -> dict[str, Tensor]:
        """Return ``STAGE/loss`` and the accuracies of `fedkd.core.metrics.accuracies`, ``STAGE/NAME``."""
        self.confusion = self.trainer.strategy.reduce(self._confusion, reduce_op="sum")
        found = self._eval_sums.means() | accuracies(self.confusion, self.classes)
        return {f"{stage}/{name}": value for name, value in found.items()}

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return class probabilities (B, K)."""
        return self(batch[0]).float().softmax(dim=-1)


default_optimizer: OptimizerFactory = (DistillationModule.__init__.__defaults__ or ())[3]
"""SGD of 0.01 with a momentum of 0.9. The command line reads it out of the signature; pickle needs its name."""
default_optimizer.__qualname__ = "default_optimizer"
