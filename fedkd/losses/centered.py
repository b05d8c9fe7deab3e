r"""Distillation between logits that are centered over the batch: what a client of few classes can learn without bias.

A client that holds one class sees teacher logits that all say the same class. Their mean over the client's images tells
which class that is, and nothing else; a student that follows it learns to answer with the client's class, whatever it
sees. What differs between the images is the rest, and all clients can learn that alike. So the mean is subtracted on
both sides.

With :math:`\tilde s_b = s_b - \bar s`, where :math:`\bar s` is the mean over the batch, the gradient is

.. math:: \frac{\partial L}{\partial s_b} = \frac{T}{B} \Big[(q_b - p_b) - \frac{1}{B} \sum_c (q_c - p_c)\Big],

which sums to zero over the batch in every class. So a bias of the last layer gets no gradient, and the layers before it
get none in a direction that all images of the batch share. A batch of one image has no gradient at all. In a batch of B
the mean has a share 1 / B of the image itself, so the signal is (B - 1) / B of that for a mean over all images.

Near ancestors are logit standardization (Sun et al., arXiv 2403.01427), which centers over the classes of an image, and
the centering of DINO's teacher (Caron et al., arXiv 2104.14294). fedkd states it for clients of few classes.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from fedkd.losses.base import Outputs, check_shapes
from fedkd.losses.dkd import DKD
from fedkd.losses.kd import kd_divergence
from fedkd.losses.temperature import TemperedLoss


def centered_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    r"""`kd_divergence` between logits from which the mean over the batch is subtracted, on both sides.

    .. math:: \frac{1}{B} \sum_b \mathrm{KL}\big(\mathrm{softmax}((t_b - \bar t) / T) \,\|\,
              \mathrm{softmax}((s_b - \bar s) / T)\big), \quad \bar t = \tfrac{1}{B} \sum_b t_b

    Args:
        student_logits: s, (B, K).
        teacher_logits: t, (B, K); no gradient flows into them.
        temperature: T > 0.

    Returns:
        A scalar in nats, >= 0; 0 for a batch of one image.
    """
    check_shapes("logits", student_logits, teacher_logits)
    return kd_divergence(centered(student_logits), centered(teacher_logits), temperature)


def centered(logits: Tensor) -> Tensor:
    """Subtract the mean over the batch: (B, K) -> (B, K) float32."""
    logits = logits.float()
    return logits - logits.mean(dim=0)


class CenteredKD(TemperedLoss):
    r"""Cross-entropy and distillation of centered logits: ``ce_weight * CE + kd_weight * T^2 * KL``.

    See `centered_divergence`. It trains the body of a student on clients of one or two classes, and leaves the bias of
    its last layer where it is: with ``ce_weight=0``, take the answers from a head that does not come from local
    training, such as `fedkd.strategies.ClosedFormHead`.

    Args:
        ce_weight: Weight of the cross-entropy on the labels, >= 0.
        kd_weight: Weight of T^2 times the divergence from the teacher, >= 0.
        temperature: T > 0 that softens both sides, or ``"auto"``: see `TemperedLoss`.
        target_entropy: For ``"auto"``, the teacher's mean entropy as a share of log K.
    """

    min_batch_size = 2  # a batch of one image is its own mean

    def __init__(
        self,
        ce_weight: float = 0.0,
        kd_weight: float = 1.0,
        temperature: float | Literal["auto"] = 2.0,
        target_entropy: float = 0.3,
    ) -> None:
        super().__init__(ce_weight, temperature, target_entropy, kd_weight=kd_weight)

    def terms(self, student: Outputs, targets: Tensor, teacher: Outputs) -> dict[str, Tensor]:
        """Return ``kd``, times T^2."""
        return {"kd": self.T**2 * centered_divergence(student.logits, teacher.logits, self.T)}


class CenteredDKD(DKD):
    r"""`DKD` between centered logits: ``ce_weight * CE + tckd_weight * T^2 * TCKD + nckd_weight * T^2 * NCKD``.

    Zhao et al. (arXiv 2203.08679), equation 8, with :math:`\tilde s_b = s_b - \bar s` and :math:`\tilde t_b` in place
    of s and t, as in `CenteredKD`. On a client of one class all images have the same target. Centered logits do not say
    that: the target part compares how much each image looks like its class, and the other part which other classes it
    looks like. If the second had the weight 1 - p in each image, with p the teacher's centered probability of the
    target, the sum would be `CenteredKD`. The loss reads the labels: they name the target class.

    Args:
        ce_weight: As for `DKD`.
        tckd_weight: As for `DKD`.
        nckd_weight: As for `DKD`.
        temperature: As for `DKD`.
        target_entropy: As for `DKD`.
    """

    min_batch_size = 2  # a batch of one image is its own mean

    def terms(self, student: Outputs, targets: Tensor, teacher: Outputs) -> dict[str, Tensor]:
        """Return ``tckd`` and ``nckd`` of the centered logits, times T^2."""
        student, teacher = (each._replace(logits=centered(each.logits)) for each in (student, teacher))
        return super().terms(student, targets, teacher)
