"""What every loss shares: what it is given, and how its terms are weighted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fedkd.core.errors import FedKDError, check_range
from fedkd.losses.labels import CrossEntropy

LabelTerm = Callable[[Tensor, Tensor], Tensor]  # from logits (B, K) and targets (B,) to a scalar


class Outputs(NamedTuple):
    """What a student or a teacher says of a batch."""

    logits: Tensor  # (B, K)
    features: Tensor | None = None  # (B, D), or (B, D_student) where there is no projector; None where not asked for

    def rows(self, part: slice) -> Outputs:
        """Return what is said of some of the images."""
        return Outputs(self.logits[part], None if self.features is None else self.features[part])


class FeatureMoments(NamedTuple):
    """Where a teacher's features lie, over all clients' images. A client sends D + 2 sums for it."""

    mean: Tensor  # (D,)
    scale: float  # root mean square of an entry of (features - mean)


class DistillationLoss(nn.Module):
    """Base of the losses of `fedkd.DistillationModule`.

    Subclasses implement `forward` and keep no state between batches: clients take turns with one loss. Without a
    teacher the loss must be the plain supervised one, so that ``teacher: null`` is the federated baseline with nothing
    else changed. `WeightedLoss` takes care of that.
    """

    needs_features: ClassVar[bool] = False
    """Whether `forward` reads ``features``."""
    needs_projector: ClassVar[bool] = False
    """Whether the student's features must have the teacher's size: a trained linear layer then brings them to it."""

    @property
    def calibrated(self) -> bool:
        """Whether nothing is left to `calibrate`."""
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
            labels: What is learnt from the labels (``label_loss``); a subclass may do without it, and then takes the
                plain cross-entropy alone.

        Returns:
            Named scalars; ``"loss"`` is the one to minimise, the others its unweighted terms.
        """
        raise NotImplementedError

    def teaching(self, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        """Compute what is learnt from the teacher alone, of images that have no label.

        Args:
            student: Logits (B, K), and features where the loss needs them.
            teacher: Likewise.

        Returns:
            As `forward`; ``"loss"`` and the terms.

        Raises:
            FedKDError: If the loss does not know how.
        """
        raise FedKDError(
            f"{type(self).__name__} cannot learn from shared images: it has no method teaching(student, teacher)."
        )

    def calibrate(self, logits: Tensor, moments: FeatureMoments | None = None) -> None:
        """Fix what depends on the teacher's outputs on all clients' images; nothing by default.

        Args:
            logits: The teacher's, (..., K).
            moments: Mean and scale of its features, where the loss needs them.
        """

    def resolved(self) -> dict[str, float]:
        """Return the numbers that `calibrate` found, by name: they are logged and kept with the run."""
        return {}


class WeightedLoss(DistillationLoss, ABC):
    """``ce_weight * CE + sum of weight * term``; the plain CE, whatever the weights, where there is no teacher.

    A weight means the same at every value: 0 takes its term out, and the others stay as they are. All terms are named
    and logged. The default weight of the cross-entropy is small or 0, for on a skewed shard it pulls towards the
    client's own classes.

    Args:
        ce_weight: Weight of the cross-entropy on the labels, >= 0.
        weights: Weights of the terms, >= 0, by the term's name followed by ``_weight``.
    """

    def __init__(self, ce_weight: float, **weights: float) -> None:
        super().__init__()
        for name, weight in {"ce_weight": ce_weight, **weights}.items():
            check_range(name, weight, low=0)
        self.ce_weight = ce_weight
        self.weights = {name.removesuffix("_weight"): weight for name, weight in weights.items()}

    @abstractmethod
    def terms(self, student: Outputs, targets: Tensor, teacher: Outputs) -> dict[str, Tensor]:
        """Return the unweighted terms, scalars, under the names of their weights."""

    def forward(
        self,
        student: Outputs,
        targets: Tensor,
        teacher: Outputs | None,
        labels: LabelTerm = CrossEntropy(),  # noqa: B008
    ) -> dict[str, Tensor]:
        """Return ``loss``, ``ce`` and, with a teacher, the terms; all but the loss without gradient."""
        ce = labels(student.logits, targets)
        if teacher is None:
            return {"loss": ce, "ce": ce.detach()}
        terms = self._taught(self.ce_weight * ce, student, targets, teacher)
        return {"loss": terms.pop("loss"), "ce": ce.detach(), **terms}

    def teaching(self, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        """Return ``loss``, which is ``sum of weight * term``, and the terms, the latter without gradient.

        Terms that ask for an image's class, as `fedkd.losses.DKD`'s do, are given the one that the teacher holds for
        the likeliest.
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

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments by name, as they were given."""
        return {"ce_weight": self.ce_weight, **{f"{name}_weight": weight for name, weight in self.weights.items()}}

    def extra_repr(self) -> str:
        """Show the settings when printed: what was asked for, not what `calibrate` made of it."""
        return ", ".join(f"{name}={value!r}" for name, value in self.settings().items())


def check_shapes(what: str, student: Tensor, teacher: Tensor) -> None:
    """Raise unless student and teacher give ``what`` of one shape."""
    if student.shape != teacher.shape:
        raise FedKDError(
            f"Student and teacher must give {what} of one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}."
        )


def features_of(student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
    """Return both sides' features, float32; no gradient flows into the teacher's.

    Raises:
        FedKDError: If one side gives none.
    """
    if student.features is None or teacher.features is None:
        side = "student" if student.features is None else "teacher"
        raise FedKDError(f"This loss compares features, and the {side} gives none.")
    return student.features.float(), teacher.features.detach().float()
