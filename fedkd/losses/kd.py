"""Knowledge distillation (KD).

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531).
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from fedkd.losses.base import Outputs, check_shapes
from fedkd.losses.temperature import TemperedLoss


def kd_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Kullback-Leibler divergence of the softened student from the softened teacher, averaged over the batch.

    .. math:: \frac{1}{B} \sum_b \sum_k p_{bk} \log (p_{bk} / q_{bk}), \quad
              p = \mathrm{softmax}(t / T),\; q = \mathrm{softmax}(s / T)

    Hinton, Vinyals and Dean (arXiv 1503.02531), section 2. This function leaves out the factor T^2, which makes the
    size of gradients independent of T: `KD` applies it.

    Args:
        student_logits: s, (B, K).
        teacher_logits: t, (B, K); no gradient flows into them.
        temperature: T > 0.

    Returns:
        A scalar in nats, >= 0.
    """
    check_shapes("logits", student_logits, teacher_logits)
    log_q = F.log_softmax(student_logits.float() / temperature, dim=-1)
    log_p = F.log_softmax(teacher_logits.detach().float() / temperature, dim=-1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


class KD(TemperedLoss):
    r"""Cross-entropy and knowledge distillation: ``ce_weight * CE + kd_weight * T^2 * KL``.

    Hinton, Vinyals and Dean (arXiv 1503.02531), section 2; see `kd_divergence`. With ``kd_weight=0`` the loss is
    ``ce_weight * CE``. With ``ce_weight=0`` the labels are not used.

    Args:
        ce_weight: Weight of the cross-entropy on the labels, >= 0.
        kd_weight: Weight of T^2 times the divergence from the teacher, >= 0.
        temperature: T > 0 that softens both sides, or ``"auto"``: see `TemperedLoss`.
        target_entropy: For ``"auto"``, the teacher's mean entropy as a share of log K.
    """

    def __init__(
        self,
        ce_weight: float = 0.1,
        kd_weight: float = 0.9,
        temperature: float | Literal["auto"] = 2.0,
        target_entropy: float = 0.3,
    ) -> None:
        super().__init__(ce_weight, temperature, target_entropy, kd_weight=kd_weight)

    def terms(self, student: Outputs, targets: Tensor, teacher: Outputs) -> dict[str, Tensor]:
        """Return ``kd``, times T^2."""
        return {"kd": self.T**2 * kd_divergence(student.logits, teacher.logits, self.T)}
