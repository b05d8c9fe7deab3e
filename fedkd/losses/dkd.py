"""Decoupled knowledge distillation (DKD).

Zhao, Cui, Song, Qiu and Liang, "Decoupled Knowledge Distillation" (arXiv 2203.08679).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fedkd.losses.base import Outputs, check_shapes
from fedkd.losses.not_true import not_true, not_true_divergence
from fedkd.losses.temperature import TemperedLoss


def target_divergence(
    student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, temperature: float = 1.0
) -> Tensor:
    r"""Divergence of the student from the teacher over two outcomes: the image's own class, or any other class.

    .. math:: \frac{1}{B} \sum_b p_b \log \frac{p_b}{q_b} + (1 - p_b) \log \frac{1 - p_b}{1 - q_b}, \quad
              p_b = \mathrm{softmax}(t_b / T)_{y_b}

    The target part (TCKD) of DKD (arXiv 2203.08679), equation 7. Together with the non-target part (NCKD) it equals
    KD: for one image, KL = TCKD + (1 - p) NCKD.

    Args:
        student_logits: s, (B, K).
        teacher_logits: t, (B, K); no gradient flows into them.
        targets: y, (B,) class indices.
        temperature: T > 0.

    Returns:
        A scalar in nats, >= 0.
    """
    check_shapes("logits", student_logits, teacher_logits)
    log_q = _own_or_other(student_logits.float() / temperature, targets)
    log_p = _own_or_other(teacher_logits.detach().float() / temperature, targets)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def _own_or_other(logits: Tensor, targets: Tensor) -> Tensor:
    """(B, K) -> log-probabilities of the own class and of all others together, (B, 2)."""
    own = logits.gather(1, targets[:, None])  # (B, 1)
    others = not_true(logits, targets).logsumexp(1, keepdim=True)  # (B, 1)
    return torch.cat([own, others], dim=1).log_softmax(dim=1)


class DKD(TemperedLoss):
    r"""``ce_weight * CE + tckd_weight * T^2 * TCKD + nckd_weight * T^2 * NCKD``.

    Zhao et al. (arXiv 2203.08679), equation 8. In KD the factor 1 - p makes the non-target part small where the teacher
    is confident, although this part holds what a label does not. Here it has its own weight. The paper adds CE at full
    weight. The default here is none, because on a client with few classes CE favors those classes (docs/results.md).
    The loss still reads the labels: they name the target class.

    Args:
        ce_weight: Weight of the cross-entropy on the labels, >= 0.
        tckd_weight: The paper's alpha, >= 0: see `target_divergence`.
        nckd_weight: The paper's beta, >= 0: see `not_true_divergence`.
        temperature: T > 0 that softens both sides, or ``"auto"``: see `TemperedLoss`.
        target_entropy: For ``"auto"``, the teacher's mean entropy as a share of log K.
    """

    def __init__(
        self,
        ce_weight: float = 0.0,
        tckd_weight: float = 1.0,
        nckd_weight: float = 2.0,
        temperature: float | Literal["auto"] = 2.0,
        target_entropy: float = 0.3,
    ) -> None:
        super().__init__(ce_weight, temperature, target_entropy, tckd_weight=tckd_weight, nckd_weight=nckd_weight)

    def terms(self, student: Outputs, targets: Tensor, teacher: Outputs) -> dict[str, Tensor]:
        """Return ``tckd`` and ``nckd``, times T^2."""
        arguments = student.logits, teacher.logits, targets, self.T
        return {
            "tckd": self.T**2 * target_divergence(*arguments),
            "nckd": self.T**2 * not_true_divergence(*arguments),
        }
