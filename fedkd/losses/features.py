"""Distillation of features: a projector gives the student's features the teacher's size; they regress the teacher's."""

from __future__ import annotations

from abc import ABC
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedkd.core.errors import FedKDError
from fedkd.losses.base import FeatureMoments, Outputs, TeacherFacts, WeightedLoss, check_shapes, features_of


def feature_mse(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Mean squared difference of features.

    .. math:: \frac{1}{BD} \sum_b \|s_b - t_b\|^2

    Romero, Ballas, Kahou, Chassang, Gatta and Bengio, "FitNets" (arXiv 1412.6550), equation 3, without its factor 1/2
    and with a mean over D.

    Args:
        student: s, (B, D), projected.
        teacher: t, (B, D); no gradient flows into them.

    Returns:
        A scalar >= 0, in squared units of the teacher's features.
    """
    check_shapes("features", student, teacher)
    return F.mse_loss(student.float(), teacher.detach().float())


def feature_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Cosine distance of features.

    .. math:: \frac{1}{B} \sum_b 1 - \frac{s_b \cdot t_b}{\|s_b\| \|t_b\|}

    The distance of the image-level features in Ranzinger, Heinrich, Kautz and Molchanov, "AM-RADIO" (arXiv 2312.06709).
    A vector of the student that is zero has no direction: its distance counts as 1, without a gradient.

    Args:
        student: s, (B, D), projected.
        teacher: t, (B, D); no gradient flows into them.

    Returns:
        A scalar in [0, 2].
    """
    check_shapes("features", student, teacher)
    return 1 - cosine_similarity(student, teacher.detach()).mean()


def cosine_similarity(student: Tensor, other: Tensor) -> Tensor:
    """Return the cosines of features (B, D) with others (B, D), float32 (B,); 0 for a zero vector, and no gradient."""
    is_zero = (student.detach() == 0).all(dim=1, keepdim=True)  # torch would divide the gradient by 1e-8
    return F.cosine_similarity(student.float(), other.float().masked_fill(is_zero, 0.0), dim=1)


def feature_sums(features: Any, chunk: int = 8192) -> Tensor:
    """Return the sums that a client sends for `feature_moments`: of x, of |x|^2, and the number of vectors.

    Args:
        features: (n, D), or (n, V, D) where every view counts: an array, or rows that are read from a file in chunks.
        chunk: Images read at a time.

    Returns:
        (D + 2,) float64.
    """
    dim = features.shape[-1]
    sums = torch.zeros(dim + 2, dtype=torch.float64)
    for start in range(0, len(features), chunk):
        rows = np.arange(start, min(start + chunk, len(features)))
        x = torch.as_tensor(features[rows]).double().reshape(-1, dim).cpu()
        sums[:dim] += x.sum(0)
        sums[dim] += x.square().sum()
        sums[dim + 1] += len(x)
    return sums


def feature_moments(sums: Tensor) -> FeatureMoments:
    """Return mean and scale of features from the sum over all clients of `feature_sums`, (D + 2,).

    Raises:
        FedKDError: If no client has an image.
    """
    total, squares, count = sums[:-2], float(sums[-2]), float(sums[-1])
    if count == 0:
        raise FedKDError("Cannot measure the teacher's features: no client has an image.")
    mean = total / count
    variance = (squares / count - float(mean.square().sum())) / len(mean)
    return FeatureMoments(mean.float(), variance**0.5 if variance > 1e-24 else 1.0)


class FeatureLoss(WeightedLoss, ABC):
    """A loss that compares projected features with the teacher's standardized ones: (t - mean) / scale.

    `fit_to_teacher` sets mean and scale from all clients' images. The scale is one number for all D entries (the global
    standardization of Ranzinger et al., "PHI-S", arXiv 2410.01680), so a weight means the same for every teacher.
    Subtracting the mean removes the part that all images share; with it every cosine would be near 1. Before
    `fit_to_teacher` mean and scale are 0 and 1.

    Args:
        ce_weight: As for `WeightedLoss`.
        weights: As for `WeightedLoss`.
    """

    needs_features = True
    needs_projector = True

    _mean: Tensor | None

    def __init__(self, ce_weight: float, **weights: float) -> None:
        super().__init__(ce_weight, **weights)
        self.register_buffer("_mean", None, persistent=False)  # the teacher's: not saved in checkpoints
        self._scale = 1.0

    @property
    def is_fitted(self) -> bool:
        """Whether mean and scale are set."""
        return self._mean is not None

    def fit_to_teacher(self, facts: TeacherFacts) -> None:
        """Set mean and scale: see `DistillationLoss.fit_to_teacher`."""
        if facts.moments is None:
            raise FedKDError(f"{type(self).__name__} needs the moments of the teacher's features, but got none.")
        self._mean, self._scale = facts.moments

    def resolved(self) -> dict[str, float]:
        """Return the scale, once it is set."""
        return {"feature_scale": self._scale} if self.is_fitted else {}

    def compared(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
        """Return the student's features and the teacher's standardized ones, (B, D) float32 each."""
        ours, theirs = features_of(student, teacher)
        return ours, (theirs if self._mean is None else theirs - self._mean.to(theirs.device)) / self._scale


class FeatureMSE(FeatureLoss):
    """``ce_weight * CE + feature_weight * MSE`` of projected and standardized features.

    Romero et al., "FitNets" (arXiv 1412.6550); see `feature_mse` and `FeatureLoss`. The term is the share of the
    teacher's variance that the student does not explain: 1 for a student that always outputs the mean. Features do not
    train the student's last layer. The labels do, so the cross-entropy has full weight; `FrozenHead` needs no labels.

    Args:
        ce_weight: Weight of the cross-entropy on the labels, >= 0.
        feature_weight: Weight of the squared difference, >= 0.
    """

    def __init__(self, ce_weight: float = 1.0, feature_weight: float = 1.0) -> None:
        super().__init__(ce_weight, feature_weight=feature_weight)

    def terms(self, student: Outputs, targets: Tensor, teacher: Outputs) -> dict[str, Tensor]:
        """Return ``feature``."""
        return {"feature": feature_mse(*self.compared(student, teacher))}


class FeatureCosine(FeatureLoss):
    """``ce_weight * CE + feature_weight * (1 - cosine)`` of projected and standardized features.

    Ranzinger et al., "AM-RADIO" (arXiv 2312.06709); see `feature_cosine` and `FeatureLoss`. The labels train the
    student's last layer, as for `FeatureMSE`.

    Args:
        ce_weight: Weight of the cross-entropy on the labels, >= 0.
        feature_weight: Weight of the cosine distance, >= 0.
    """

    def __init__(self, ce_weight: float = 1.0, feature_weight: float = 1.0) -> None:
        super().__init__(ce_weight, feature_weight=feature_weight)

    def terms(self, student: Outputs, targets: Tensor, teacher: Outputs) -> dict[str, Tensor]:
        """Return ``feature``."""
        return {"feature": feature_cosine(*self.compared(student, teacher))}
