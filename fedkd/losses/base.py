"""The base of all losses: their inputs, and how their terms are weighted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fedkd.core.config import Configured
from fedkd.core.errors import FedKDError, check_range
from fedkd.losses.labels import CrossEntropy

LabelTerm = Callable[[Tensor, Tensor], Tensor]  # from logits (B, K) and targets (B,) to a scalar


class Outputs(NamedTuple):
    """The outputs of a student or a teacher for a batch."""

    logits: Tensor  # (B, K)
    features: Tensor | None = None  # (B, D), or (B, D_student) without a projector; None if the loss does not need them

    def rows(self, part: slice) -> Outputs:
        """Return the outputs for some of the images."""
        return Outputs(self.logits[part], None if self.features is None else self.features[part])

    def before(self) -> Outputs:
        """Return for each image the outputs for the one before it, for the first those for the last."""
        return Outputs(self.logits.roll(1, 0), None if self.features is None else self.features.roll(1, 0))


class Mixed(NamedTuple):
    """Targets and teacher's outputs of mixed images: each is two images, with shares of sum 1 (`fedkd.data.MixUp`)."""

    weight: Tensor  # (), the share of the first
    targets: tuple[Tensor, Tensor]  # (B,) class indices of the first, and of the second
    teachers: tuple[Outputs | None, Outputs | None]  # the teacher's outputs for them; None without a teacher

    def blend(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the mean of two values, weighted by the shares."""
        return self.weight * first + (1 - self.weight) * second

    def mean(self, first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the mean of terms by name, weighted by the shares."""
        return {name: self.blend(first[name], second[name]) for name in first}

    @property
    def teacher(self) -> Outputs | None:
        """The teacher's outputs, mixed as the images are: logits and features linearly. None without a teacher."""
        first, second = self.teachers
        if first is None or second is None:
            return None
        both = first.features is not None and second.features is not None
        features = self.blend(first.features, second.features) if both else first.features  # type: ignore[arg-type]
        return Outputs(self.blend(first.logits, second.logits), features)


class FeatureMoments(NamedTuple):
    """Mean and scale of a teacher's features over all clients' images. A client sends D + 2 sums for them."""

    mean: Tensor  # (D,)
    scale: float  # root mean square of an entry of (features - mean)


class TeacherFacts(NamedTuple):
    """What a loss needs from the teacher's outputs on all clients' images. A fact that it does not need is None."""

    temperature: float | None = None
    moments: FeatureMoments | None = None
    head: nn.Module | None = None  # the teacher's, features (B, D) -> logits (B, K)


class DistillationLoss(Configured, nn.Module):
    """Base of the losses of `fedkd.DistillationModule`.

    Subclasses implement `forward` and keep no state between batches, because several clients share one loss. Without a
    teacher the loss must be the plain supervised one: ``teacher: null`` is then the federated baseline, with nothing
    else changed. `WeightedLoss` does that.
    """

    needs_features: ClassVar[bool] = False
    """Whether `forward` reads ``features``."""
    needs_projector: ClassVar[bool] = False
    """Whether the student's features must have the teacher's size. A trained linear layer then projects them."""

    needs_head: ClassVar[bool] = False
    """Whether the student classifies through the teacher's frozen head: see `frozen_head`."""
    can_mix: ClassVar[bool] = True
    """Whether the loss has a meaning for mixed images: see `forward_mixed`."""

    min_batch_size: ClassVar[int] = 1
    """With fewer images in a batch, what the loss learns from the teacher has no gradient. A client's last batch may be
    smaller."""

    @property
    def needs_temperature(self) -> bool:
        """Whether the loss needs a temperature that is computed from the teacher's logits: see `fit_to_teacher`."""
        return False

    @property
    def is_fitted(self) -> bool:
        """Whether `fit_to_teacher` has nothing left to do."""
        return True

    def forward(
        self,
        student: Outputs,
        targets: Tensor,
        teacher: Outputs | None,
        labels: LabelTerm = CrossEntropy(),  # noqa: B008
    ) -> dict[str, Tensor]:
        """Compute the loss and its terms.

        Args:
            student: Logits (B, K), and features where the loss needs them.
            targets: (B,) class indices.
            teacher: Likewise, or None without a teacher.
            labels: The loss on the labels (``label_loss``). A subclass need not support it; it then accepts only the
                plain cross-entropy.

        Returns:
            Named scalars: ``"loss"`` is minimized, the others are its unweighted terms.
        """
        raise NotImplementedError

    def distill(self, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        """Compute the loss against the teacher alone, for images without labels.

        Args:
            student: Logits (B, K), and features where the loss needs them.
            teacher: Likewise.

        Returns:
            As `forward`: ``"loss"`` and the terms.

        Raises:
            FedKDError: If the loss does not support images without labels.
        """
        raise FedKDError(
            f"{type(self).__name__} cannot learn from shared images: it has no method distill(student, teacher)."
        )

    def forward_mixed(self, student: Outputs, mixed: Mixed, **labels: LabelTerm) -> dict[str, Tensor]:
        r"""Compute the loss of mixed images: :math:`\lambda L(s, y, t) + (1 - \lambda) L(s, y', t')`.

        For the cross-entropy this is the loss against soft targets, for it is linear in the targets. For a divergence
        from the teacher it has the gradient of mixed probabilities, and for a squared difference that of mixed logits
        or features: each differs from these by a number that does not depend on the student.

        Args:
            student: Its outputs for the mixed images.
            mixed: What they are to be learned as.
            labels: The argument ``labels`` of `forward`, if it is to be passed.

        Returns:
            As `forward`.
        """
        pairs = zip(mixed.targets, mixed.teachers, strict=True)
        return mixed.mean(*(self(student, targets, teacher, **labels) for targets, teacher in pairs))

    def distill_mixed(self, student: Outputs, mixed: Mixed) -> dict[str, Tensor]:
        """Compute the loss of mixed images against the teacher alone, as `distill`; there is a teacher."""
        return mixed.mean(*(self.distill(student, teacher) for teacher in mixed.teachers if teacher is not None))

    def fit_to_teacher(self, facts: TeacherFacts) -> None:
        """Store what the loss needs from the teacher's outputs on all clients' images; nothing by default.

        Args:
            facts: The values that were computed from those outputs.

        Raises:
            FedKDError: If something that the loss needs is None.
        """

    def frozen_head(self, facts: TeacherFacts) -> tuple[Tensor, Tensor, bool] | None:
        """Return the head that the student classifies through; None by default.

        Returns:
            Weight (K, D), bias (K,), and whether projected features are scaled to unit length first.
        """
        return None

    def resolved(self) -> dict[str, float]:
        """Return the numbers that `fit_to_teacher` stored, by name. They are logged and saved with the run."""
        return {}


class WeightedLoss(DistillationLoss, ABC):
    """``ce_weight * CE + sum of weight * term``. Without a teacher it is the plain CE, whatever the weights.

    A weight means the same at every value: 0 removes its term and leaves the others unchanged. All terms are named and
    logged. On a skewed shard the cross-entropy favors the client's own classes, so most losses on logits give it a
    small default weight or 0. Those on features and relations need it to train the last layer and give it 1.

    Args:
        ce_weight: Weight of the cross-entropy on the labels, >= 0.
        weights: Weights of the terms, >= 0. The name of each is the term's name followed by ``_weight``.
    """

    def __init__(self, ce_weight: float, **weights: float) -> None:
        super().__init__()
        for name, weight in {"ce_weight": ce_weight, **weights}.items():
            check_range(name, weight, low=0)
        self.ce_weight = ce_weight
        self.weights = {name.removesuffix("_weight"): weight for name, weight in weights.items()}

    @abstractmethod
    def terms(self, student: Outputs, targets: Tensor, teacher: Outputs) -> dict[str, Tensor]:
        """Return the unweighted terms, scalars, under the names of their weights without ``_weight``."""

    def forward(
        self,
        student: Outputs,
        targets: Tensor,
        teacher: Outputs | None,
        labels: LabelTerm = CrossEntropy(),  # noqa: B008
    ) -> dict[str, Tensor]:
        """Return ``loss``, ``ce`` and, with a teacher, the terms. Only the loss has a gradient."""
        ce = labels(student.logits, targets)
        if teacher is None:
            return {"loss": ce, "ce": ce.detach()}
        terms = self._taught(self.ce_weight * ce, student, targets, teacher)
        return {"loss": terms.pop("loss"), "ce": ce.detach(), **terms}

    def distill(self, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        """Return ``loss``, which is ``sum of weight * term``, and the terms, which have no gradient.

        Terms that need an image's class, such as those of `fedkd.losses.DKD`, get the teacher's most likely class.
        """
        return self._taught(
            student.logits.new_zeros((), dtype=torch.float32), student, teacher.logits.argmax(dim=1), teacher
        )

    def _taught(self, loss: Tensor, student: Outputs, targets: Tensor, teacher: Outputs) -> dict[str, Tensor]:
        """Add the weighted terms to a loss."""
        check_shapes("logits", student.logits, teacher.logits)
        terms = self.terms(student, targets, teacher)
        for name, term in terms.items():
            loss = loss + self.weights[name] * term
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}


def check_shapes(what: str, student: Tensor, teacher: Tensor) -> None:
    """Raise unless ``what`` has the same shape from student and teacher."""
    if student.shape != teacher.shape:
        raise FedKDError(
            f"Student and teacher must give {what} of one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}."
        )


def features_of(student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
    """Return the student's and the teacher's features, float32; no gradient flows into the teacher's.

    Raises:
        FedKDError: If the student or the teacher has no features.
    """
    if student.features is None or teacher.features is None:
        side = "student" if student.features is None else "teacher"
        raise FedKDError(f"This loss compares features, and the {side} gives none.")
    return student.features.float(), teacher.features.detach().float()
