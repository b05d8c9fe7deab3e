"""Losses on labels: cross-entropy, and its corrections for a shard with class imbalance.

Ren, Yu, Sheng, Ma, Zhao, Yi and Li, "Balanced Meta-Softmax for Long-Tailed Visual Recognition" (arXiv 2007.10740);
Zhang, Li, Li, Xu, Wu, Ding and Wu, "Federated Learning with Label Distribution Skew via Logits Calibration" (FedLC,
arXiv 2209.00189).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn

from fedkd.core.config import Configured
from fedkd.core.errors import check_range

ABSENT = 1e-8
"""The number of images that `calibration_offsets` assumes for a class without images."""


def balanced_softmax(logits: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    r"""Cross-entropy of a softmax in which the weight of every class is its number of images.

    .. math:: -\frac{1}{B} \sum_b \log \frac{n_{y_b} \exp(s_{b y_b})}{\sum_k n_k \exp(s_{bk})}

    Ren et al. (arXiv 2007.10740), equations 3 and 4. The logits then need not model how frequent a class is, and their
    plain softmax is the prediction for balanced classes. A class without images is not in the sum, so no gradient
    lowers its logit. With a single class the loss is 0.

    Args:
        logits: s, (B, K).
        targets: y, (B,) class indices; each must have an image.
        counts: n, (K,), images of each class among all that are trained on, >= 0.

    Returns:
        A scalar in nats, >= 0.
    """
    return F.cross_entropy(logits.float() + counts.float().log(), targets)


def calibration_offsets(counts: Tensor, tau: float = 1.0) -> Tensor:
    r"""Return what FedLC subtracts from each class's logit, :math:`\tau n_k^{-1/4}`: (K,) -> (K,) float32.

    A class without images counts as 1e-8 images, so its logit is lowered by 100 tau. With the usual tau its probability
    is then about 0, as in the limit of n to 0. With ``tau=0`` the cross-entropy is the plain one.
    """
    return tau * counts.float().clamp(min=ABSENT).pow(-0.25)


def logit_calibration(logits: Tensor, targets: Tensor, counts: Tensor, tau: float = 1.0) -> Tensor:
    r"""Cross-entropy with logits that are lowered more for classes with fewer images.

    .. math:: -\frac{1}{B} \sum_b \log \frac{\exp(s_{b y_b} - \tau n_{y_b}^{-1/4})}
                                            {\sum_k \exp(s_{bk} - \tau n_k^{-1/4})}

    FedLC (arXiv 2209.00189), equation 6: a rare class must be separated from the others by a larger margin.

    Args:
        logits: s, (B, K).
        targets: y, (B,) class indices.
        counts: n, (K,), images of each class among all that are trained on, >= 0; see `calibration_offsets` for 0.
        tau: >= 0.

    Returns:
        A scalar in nats, >= 0.
    """
    return F.cross_entropy(logits.float() - calibration_offsets(counts, tau), targets)


class LabelLoss(Configured, nn.Module, ABC):
    """The loss on a client's labels: the cross-entropy term of every `DistillationLoss`.

    Subclasses implement `forward`. Validation and prediction use the student's logits as they are.
    """

    @abstractmethod
    def forward(self, logits: Tensor, targets: Tensor, counts: Tensor | None = None) -> Tensor:
        """Compute the loss.

        Args:
            logits: The student's, (B, K).
            targets: (B,) class indices.
            counts: (K,), how many images of each class the client trains on. None if they are not known: all classes
                then count as equally frequent, which gives the plain cross-entropy.

        Returns:
            A scalar.
        """


class CrossEntropy(LabelLoss):
    """The plain cross-entropy, whatever the client's classes."""

    def forward(self, logits: Tensor, targets: Tensor, counts: Tensor | None = None) -> Tensor:
        """See `LabelLoss.forward`."""
        return F.cross_entropy(logits.float(), targets)


class BalancedSoftmax(LabelLoss):
    """Ren et al. (arXiv 2007.10740): see `balanced_softmax`. A client of one class learns nothing from its labels."""

    def forward(self, logits: Tensor, targets: Tensor, counts: Tensor | None = None) -> Tensor:
        """See `LabelLoss.forward`."""
        counts = logits.new_ones(logits.shape[1]) if counts is None else counts.to(logits.device)
        return balanced_softmax(logits, targets, counts)


class LogitCalibration(LabelLoss):
    """FedLC, Zhang et al. (arXiv 2209.00189): see `logit_calibration`.

    Args:
        tau: The paper's tau, >= 0; 0 is the plain cross-entropy.
    """

    def __init__(self, tau: float = 1.0) -> None:
        super().__init__()
        check_range("tau", tau, low=0)
        self.tau = tau

    def forward(self, logits: Tensor, targets: Tensor, counts: Tensor | None = None) -> Tensor:
        """See `LabelLoss.forward`."""
        counts = logits.new_ones(logits.shape[1]) if counts is None else counts.to(logits.device)
        return logit_calibration(logits, targets, counts, self.tau)
