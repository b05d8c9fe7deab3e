"""Logit matching.

Ba and Caruana, "Do Deep Nets Really Need to be Deep?" (arXiv 1312.6184); Kim, Oh, Kim, Cho and Yun, "Comparing
Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge Distillation" (arXiv 2105.08919).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fedkd.losses.base import Outputs, WeightedLoss, check_shapes


def logit_mse(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    r"""Mean squared difference of centered logits.

    .. math:: \frac{1}{BK} \sum_b \sum_k (\hat s_{bk} - \hat t_{bk})^2, \quad \hat s_{bk} = s_{bk} - \bar s_b

    Kim et al. (arXiv 2105.08919), equation 3 (Ba and Caruana, arXiv 1312.6184, equation 1), with centering added. An
    offset that all classes share, such as SigLIP's bias, changes no probability, and a student should not spend
    capacity on it. With centering, T^2 times the divergence of `KD` tends to half of this value as T grows.

    Args:
        student_logits: s, (B, K).
        teacher_logits: t, (B, K); no gradient flows into them.

    Returns:
        A scalar >= 0, in squared units of the teacher's logits.
    """
    check_shapes("logits", student_logits, teacher_logits)
    return F.mse_loss(_centered(student_logits.float()), _centered(teacher_logits.detach().float()))


def _centered(logits: Tensor) -> Tensor:
    return logits - logits.mean(dim=-1, keepdim=True)


class LogitMSE(WeightedLoss):
    """``ce_weight * CE + mse_weight * MSE`` of centered logits: see `logit_mse`.

    Args:
        ce_weight: Weight of the cross-entropy on the labels, >= 0.
        mse_weight: Weight of the squared difference, >= 0.
    """

    def __init__(self, ce_weight: float = 0.1, mse_weight: float = 0.9) -> None:
        super().__init__(ce_weight, mse_weight=mse_weight)

    def terms(self, student: Outputs, targets: Tensor, teacher: Outputs) -> dict[str, Tensor]:
        """Return ``mse``."""
        return {"mse": logit_mse(student.logits, teacher.logits)}
