"""Distillation by correlation (DIST).

Huang, You, Wang, Qian and Xu, "Knowledge Distillation from A Stronger Teacher" (arXiv 2205.10536).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fedkd.losses.base import Outputs, check_shapes
from fedkd.losses.temperature import TemperedLoss

LEAST = 1e-2
"""The least deviation of a row of the student's probabilities, relative to its mean."""


def pearson_distance(left: Tensor, right: Tensor) -> Tensor:
    """Return 1 minus the correlation of two tensors' rows, averaged over rows: (R, C), (R, C) -> scalar in [0, 2].

    The correlation is the cosine of the centered rows. A student whose logits are all but constant, as those of a new
    last layer may be, has rows of probabilities whose deviation is less than `LEAST` of their mean. Such a row is
    divided by that least deviation instead, so that its gradient leads to the teacher's and stays bounded. A constant
    row of the teacher has no correlation: its distance counts as 1, without a gradient.

    Args:
        left: The student's probabilities, (R, C).
        right: The teacher's, (R, C).
    """
    least = LEAST * left.detach().mean(1) * left.shape[1] ** 0.5  # (R,)
    left, right = left - left.mean(1, keepdim=True), right - right.mean(1, keepdim=True)
    flat = left.detach().norm(dim=1) < least
    usual = F.cosine_similarity(torch.where(flat[:, None], right, left), right, dim=1, eps=1e-8)
    bounded = (left * right).sum(1) / (least * right.norm(dim=1)).clamp(min=1e-8)
    return 1 - torch.where(flat, bounded, usual).mean()


def dist_distances(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    r"""Distance of the student's probabilities from a linear function of the teacher's, by image and by class.

    .. math:: \frac{1}{B} \sum_b 1 - \rho(q_{b\cdot}, p_{b\cdot}), \qquad
              \frac{1}{K} \sum_k 1 - \rho(q_{\cdot k}, p_{\cdot k}), \quad
              p = \mathrm{softmax}(t / T),\; q = \mathrm{softmax}(s / T)

    DIST (arXiv 2205.10536), equations 6 to 9, with Pearson's correlation rho. A student that is too small to match a
    strong teacher's probabilities can still match its ranking.

    Args:
        student_logits: s, (B, K).
        teacher_logits: t, (B, K); no gradient flows into them.
        temperature: T > 0.

    Returns:
        The inter-class distance (within each image) and the intra-class distance (within each class, over the batch).
        In a batch of one image the intra-class distance is 1, without a gradient.
    """
    check_shapes("logits", student_logits, teacher_logits)
    q = (student_logits.float() / temperature).softmax(dim=1)
    p = (teacher_logits.detach().float() / temperature).softmax(dim=1)
    return pearson_distance(q, p), pearson_distance(q.T, p.T)


class DIST(TemperedLoss):
    r"""``ce_weight * CE + inter_weight * T^2 * inter + intra_weight * T^2 * intra``.

    Huang et al. (arXiv 2205.10536), equation 10; see `dist_distances`. The factor T^2 is from the authors' code.

    Args:
        ce_weight: Weight of the cross-entropy on the labels, >= 0.
        inter_weight: The paper's beta, >= 0, of the distance within each image.
        intra_weight: The paper's gamma, >= 0, of the distance within each class.
        temperature: T > 0 that softens both sides, or ``"auto"``: see `TemperedLoss`.
        target_entropy: For ``"auto"``, the teacher's mean entropy as a share of log K.
    """

    def __init__(
        self,
        ce_weight: float = 0.1,
        inter_weight: float = 1.0,
        intra_weight: float = 1.0,
        temperature: float | Literal["auto"] = 1.0,
        target_entropy: float = 0.3,
    ) -> None:
        super().__init__(ce_weight, temperature, target_entropy, inter_weight=inter_weight, intra_weight=intra_weight)

    def terms(self, student: Outputs, targets: Tensor, teacher: Outputs) -> dict[str, Tensor]:
        """Return ``inter`` and ``intra``, times T^2."""
        inter, intra = dist_distances(student.logits, teacher.logits, self.T)
        return {"inter": self.T**2 * inter, "intra": self.T**2 * intra}
