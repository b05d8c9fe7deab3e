"""Relational knowledge distillation (RKD).

Park, Kim, Lu and Cho, "Relational Knowledge Distillation" (arXiv 1904.05068).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fedkd.losses.base import LabelTerm, Mixed, Outputs, WeightedLoss, features_of
from fedkd.losses.labels import CrossEntropy


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Compare the distances between the images of a batch; student and teacher each divide by their mean distance.

    .. math:: \frac{2}{B (B - 1)} \sum_{i < j} \ell(\psi(s_i, s_j), \psi(t_i, t_j)), \quad
              \psi(x_i, x_j) = \|x_i - x_j\| / \mu

    RKD (arXiv 1904.05068), equations 5 to 7, with Huber's loss l and the mean mu over the pairs. The sum over pairs is
    a mean here, so that its weight means the same for every batch size.

    Args:
        student: (B, D_student) features; D_student may differ from D.
        teacher: (B, D) features; no gradient flows into them.

    Returns:
        A scalar >= 0; 0 for fewer than two images.
    """
    student, teacher = student.float(), teacher.detach().float()
    if len(student) < 2:
        return 0 * student.sum()
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))


def _relative_distances(features: Tensor) -> Tensor:
    distances = F.pdist(features)  # (B (B - 1) / 2,)
    return distances / distances.mean().clamp(min=1e-12)


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Compare the angles of all triplets of images in a batch.

    .. math:: \frac{1}{B (B - 1) (B - 2)} \sum_{i, j, k} \ell(\psi(s_i, s_j, s_k), \psi(t_i, t_j, t_k)), \quad
              \psi(x_i, x_j, x_k) = \cos \angle x_i x_j x_k

    RKD (arXiv 1904.05068), equations 8 and 9, over triplets of three different images, with Huber's loss l. As in
    `rkd_distance` the sum is a mean. Time and memory grow with B^3.

    The gradient of a cosine is inversely proportional to the length of an edge. So an edge of the student that is at
    most `SHORT` times as long as the mean edge counts as it is, and gets no gradient. All others get the paper's, which
    then is at most 1 / `SHORT` times that of a mean edge.

    Args:
        student: (B, D_student) features; D_student may differ from D.
        teacher: (B, D) features; no gradient flows into them.

    Returns:
        A scalar >= 0; 0 for fewer than three images.
    """
    student, teacher = student.float(), teacher.detach().float()
    count = len(student)
    if count < 3:
        return 0 * student.sum()
    # Entries with the same image twice are equal (0 or 1) for student and teacher, so they add nothing.
    total = F.smooth_l1_loss(_cosines(student), _cosines(teacher), reduction="sum")
    return total / (count * (count - 1) * (count - 2))


SHORT = 1e-3
"""An edge shorter than this part of the mean edge joins images that are equal up to rounding: bfloat16 has 8 bits."""


def _cosines(features: Tensor) -> Tensor:
    """(B, D) -> cosines of the angle at j between i and k, (B, B, B) by [j, i, k]."""
    edges = features[None] - features[:, None]  # (B, B, D): [j, i] is from j to i
    lengths = edges.detach().norm(dim=2)
    mean = lengths.sum() / (len(features) * (len(features) - 1))
    edges = F.normalize(torch.where((lengths <= SHORT * mean)[..., None], edges.detach(), edges), dim=2)
    return edges @ edges.transpose(1, 2)


class RKD(WeightedLoss):
    """``ce_weight * CE + distance_weight * distance + angle_weight * angle``.

    Park et al. (arXiv 1904.05068), section 3.2; see `rkd_distance` and `rkd_angle`. The loss compares relations between
    the images of a batch, so student and teacher need no common feature space and no projector. These terms do not
    train the student's last layer: the labels do.

    The relations of mixed images are those of the teacher's features mixed alike. (The mean of the relations among the
    first images and among the second ones would be those of no images.)

    Args:
        ce_weight: Weight of the cross-entropy on the labels, >= 0.
        distance_weight: The paper's lambda_D, >= 0. The paper uses 25 for classification.
        angle_weight: The paper's lambda_A, >= 0. The paper uses 50 for classification.
    """

    needs_features = True
    min_batch_size = 3  # the distances of two images are their mean, and an angle needs three

    def __init__(self, ce_weight: float = 1.0, distance_weight: float = 25.0, angle_weight: float = 50.0) -> None:
        super().__init__(ce_weight, distance_weight=distance_weight, angle_weight=angle_weight)

    def terms(self, student: Outputs, targets: Tensor, teacher: Outputs) -> dict[str, Tensor]:
        """Return ``distance`` and ``angle``."""
        ours, theirs = features_of(student, teacher)
        with torch.autocast(ours.device.type, enabled=False):  # differences of similar features need float32
            return {"distance": rkd_distance(ours, theirs), "angle": rkd_angle(ours, theirs)}

    def forward_mixed(self, student: Outputs, mixed: Mixed, **labels: LabelTerm) -> dict[str, Tensor]:
        """Compare relations with those of mixed features; the labels' term is as for other losses."""
        label = labels.get("labels", CrossEntropy())

        def of_both(logits: Tensor, targets: Tensor) -> Tensor:
            return mixed.blend(*(label(logits, each) for each in mixed.targets))

        return self(student, mixed.targets[0], mixed.teacher, labels=of_both)

    def distill_mixed(self, student: Outputs, mixed: Mixed) -> dict[str, Tensor]:
        """Compare relations with those of mixed features."""
        assert mixed.teacher is not None
        return self.distill(student, mixed.teacher)
