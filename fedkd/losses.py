"""Distillation losses: a pure function and a thin module around it for each.

A loss module maps ``(student_logits, targets, teacher_logits)`` to its named terms, the weighted sum under ``"loss"``.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fedkd.errors import FedKDError, check_range


def kd_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Kullback-Leibler divergence of the softened student from the softened teacher, averaged over the batch.

    .. math:: \frac{1}{B} \sum_b \sum_k p_{bk} \log (p_{bk} / q_{bk}), \quad
              p = \mathrm{softmax}(t / T),\; q = \mathrm{softmax}(s / T)

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531), section 2. The factor
    T^2 that keeps gradients of one size is not in here: `KD` applies it.

    Args:
        student_logits: (B, K).
        teacher_logits: (B, K); no gradient flows into them.
        temperature: T > 0.

    Returns:
        A scalar in nats, >= 0.
    """
    if student_logits.shape != teacher_logits.shape:
        raise FedKDError(
            f"Student and teacher must give logits of one shape, got {tuple(student_logits.shape)} "
            f"and {tuple(teacher_logits.shape)}."
        )
    log_q = F.log_softmax(student_logits.float() / temperature, dim=-1)
    log_p = F.log_softmax(teacher_logits.detach().float() / temperature, dim=-1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


class DistillationLoss(nn.Module):
    """Base of the losses of `fedkd.DistillationModule`.

    Subclasses implement `forward` and keep no state between batches: clients take turns with one loss.
    ``teacher_logits`` is None when there is no teacher: the loss must then be the plain supervised one, so that
    ``teacher: null`` is the federated baseline with nothing else changed.
    """

    def forward(self, student_logits: Tensor, targets: Tensor, teacher_logits: Tensor | None) -> dict[str, Tensor]:
        """Compute the loss and its terms.

        Args:
            student_logits: (B, K).
            targets: (B,) class indices.
            teacher_logits: (B, K), or None without a teacher.

        Returns:
            Named scalars; ``"loss"`` is the one to minimise, the others its unweighted terms.
        """
        raise NotImplementedError


class KD(DistillationLoss):
    r"""Cross-entropy and knowledge distillation: ``ce_weight * CE + kd_weight * T^2 * KL``.

    Hinton, Vinyals and Dean (arXiv 1503.02531). A weight means the same at every value: with ``kd_weight=0`` the loss
    is ``ce_weight * CE``, with ``ce_weight=0`` the labels are not used. Without a teacher it is the plain CE, whatever
    the weights, since nothing else is left to learn from.

    Args:
        ce_weight: Weight of the cross-entropy on the labels, >= 0.
        kd_weight: Weight of the divergence from the teacher, >= 0.
        temperature: T > 0 that softens both sides.
    """

    def __init__(self, ce_weight: float = 0.1, kd_weight: float = 0.9, temperature: float = 2.0) -> None:
        super().__init__()
        check_range("ce_weight", ce_weight, low=0)
        check_range("kd_weight", kd_weight, low=0)
        check_range("temperature", temperature, low=0, low_open=True)
        self.ce_weight, self.kd_weight, self.temperature = ce_weight, kd_weight, temperature

    def forward(self, student_logits: Tensor, targets: Tensor, teacher_logits: Tensor | None) -> dict[str, Tensor]:
        """Return ``loss``, ``ce`` and, with a teacher, ``kd`` (already times T^2)."""
        ce = F.cross_entropy(student_logits.float(), targets)
        if teacher_logits is None:
            return {"loss": ce, "ce": ce.detach()}
        kd = self.temperature**2 * kd_divergence(student_logits, teacher_logits, self.temperature)
        loss = self.ce_weight * ce + self.kd_weight * kd
        return {"loss": loss, "ce": ce.detach(), "kd": kd.detach()}

    def extra_repr(self) -> str:
        """Show the weights when printed."""
        return f"ce_weight={self.ce_weight}, kd_weight={self.kd_weight}, temperature={self.temperature}"
