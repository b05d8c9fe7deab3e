"""Not-true distillation (FedNTD).

Lee, Jeong, Shin, Bae and Yun, "Preservation of the Global Knowledge by Not-True Distillation in Federated Learning"
(arXiv 2106.03097).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fedkd.losses.base import Outputs, check_shapes
from fedkd.losses.kd import kd_divergence
from fedkd.losses.temperature import TemperedLoss


def not_true(logits: Tensor, targets: Tensor) -> Tensor:
    """Remove the own class of every row: logits (B, K), targets (B,) -> (B, K - 1), in the order of the classes."""
    batch, classes = logits.shape
    columns = torch.arange(classes - 1, device=logits.device).expand(batch, -1)  # (B, K - 1)
    return logits.gather(1, columns + (columns >= targets[:, None]))  # a mask would make the host wait for a GPU


def not_true_divergence(
    student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, temperature: float = 1.0
) -> Tensor:
    r"""Divergence of the softened student from the softened teacher over the classes that are not the image's own.

    .. math:: \frac{1}{B} \sum_b \sum_{k \ne y_b} \tilde p_{bk} \log (\tilde p_{bk} / \tilde q_{bk}), \quad
              \tilde p_{bk} = \frac{\exp(t_{bk} / T)}{\sum_{j \ne y_b} \exp(t_{bj} / T)}

    FedNTD (arXiv 2106.03097), section 3.2; the non-target part of DKD (arXiv 2203.08679), equation 7, is the same.

    Args:
        student_logits: s, (B, K).
        teacher_logits: t, (B, K); no gradient flows into them.
        targets: y, (B,) class indices.
        temperature: T > 0.

    Returns:
        A scalar in nats, >= 0. With two classes it is 0, since only one class is left.
    """
    check_shapes("logits", student_logits, teacher_logits)
    return kd_divergence(not_true(student_logits, targets), not_true(teacher_logits, targets), temperature)


class NotTrue(TemperedLoss):
    r"""FedNTD's loss with the foundation model as its teacher: ``ce_weight * CE + not_true_weight * T^2 * KL``.

    Lee et al. (arXiv 2106.03097), section 3.2; see `not_true_divergence`. The student learns the image's own class from
    the label alone, so the cross-entropy has full weight by default. The teacher preserves the relative probabilities
    of the other classes, which a client with a skewed shard forgets.

    Args:
        ce_weight: Weight of the cross-entropy on the labels, >= 0.
        not_true_weight: The paper's beta, >= 0, of T^2 times the divergence.
        temperature: The paper's tau > 0, or ``"auto"``: see `TemperedLoss`.
        target_entropy: For ``"auto"``, the teacher's mean entropy as a share of log K.
    """

    def __init__(
        self,
        ce_weight: float = 1.0,
        not_true_weight: float = 1.0,
        temperature: float | Literal["auto"] = 3.0,
        target_entropy: float = 0.3,
    ) -> None:
        super().__init__(ce_weight, temperature, target_entropy, not_true_weight=not_true_weight)

    def terms(self, student: Outputs, targets: Tensor, teacher: Outputs) -> dict[str, Tensor]:
        """Return ``not_true``, times T^2."""
        divergence = not_true_divergence(student.logits, teacher.logits, targets, self.T)
        return {"not_true": self.T**2 * divergence}
