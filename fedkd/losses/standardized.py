"""Distillation of standardized logits.

Sun, Ren, Li, Wang and Cao, "Logit Standardization in Knowledge Distillation" (arXiv 2403.01427).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from fedkd.losses.base import Outputs
from fedkd.losses.kd import kd_divergence
from fedkd.losses.temperature import TemperedLoss

SPREAD = 0.01
"""The least standard deviation of a student's logits. Those of a new last layer may be almost constant."""


def standardize(logits: Tensor, least: float = 0.0) -> Tensor:
    r"""Return every row's z-scores, (B, K) float32: mean 0 and standard deviation 1 over the K classes.

    .. math:: z_{bk} = (x_{bk} - \bar x_b) / \sigma(x_b), \quad \sigma(x)^2 = \frac{1}{K} \sum_k (x_k - \bar x)^2

    Sun et al. (arXiv 2403.01427), algorithm 1. Their code, unlike the paper, divides by K - 1 in sigma. This equals a
    temperature that is sqrt(K / (K - 1)) times as high.

    Args:
        logits: x, (B, K).
        least: The least sigma to divide by, >= 0. Below it a row is not scaled up further, so its gradient is bounded.
    """
    centered = logits.float() - logits.float().mean(dim=-1, keepdim=True)
    deviation = centered.square().mean(dim=-1, keepdim=True).add(1e-12).sqrt()
    return centered / (deviation.clamp(min=least) if least else deviation)


class StandardizedKD(TemperedLoss):
    r"""``ce_weight * CE + kd_weight * T^2 * KL`` of logits that are standardized first.

    Sun et al. (arXiv 2403.01427), algorithm 2; see `standardize` and `kd_divergence`. The student matches the relations
    between the teacher's logits. It need not match their scale or offset, which depend on the labels and on its size. T
    is in units of a row's standard deviation, so one value suits every teacher.

    With ``ce_weight=0`` the scale of the student's logits is not trained. Training then improves its accuracy but not
    its calibration.

    Args:
        ce_weight: Weight of the cross-entropy on the labels, >= 0.
        kd_weight: Weight of T^2 times the divergence, >= 0.
        temperature: T > 0 that divides the z-scores, or ``"auto"``: see `TemperedLoss`.
        target_entropy: For ``"auto"``, the teacher's mean entropy, after standardizing, as a share of log K.
    """

    def __init__(
        self,
        ce_weight: float = 0.1,
        kd_weight: float = 0.9,
        temperature: float | Literal["auto"] = 2.0,
        target_entropy: float = 0.3,
    ) -> None:
        super().__init__(ce_weight, temperature, target_entropy, kd_weight=kd_weight)

    def softened(self, logits: Tensor) -> Tensor:
        """Return the z-scores."""
        return standardize(logits)

    def terms(self, student: Outputs, targets: Tensor, teacher: Outputs) -> dict[str, Tensor]:
        """Return ``kd``, times T^2."""
        return {
            "kd": self.T**2 * kd_divergence(standardize(student.logits, SPREAD), standardize(teacher.logits), self.T),
        }
