"""Feature distillation through the teacher's frozen head (SimKD).

Chen, Mei, Zhang, Wang, Feng and Chen, "Knowledge Distillation with the Reused Teacher Classifier" (arXiv 2203.14001).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from fedkd.core.errors import FedKDError, unknown_name
from fedkd.losses.base import FeatureMoments, Outputs, TeacherFacts
from fedkd.losses.features import FeatureLoss, feature_cosine, feature_mse

_DISTANCES = {"mse": feature_mse, "cosine": feature_cosine}


def affine_map(head: nn.Module, dim: int) -> tuple[Tensor, Tensor]:
    """Find W and b of a head with logits = W x + b, up to an offset equal for all classes, which changes no softmax.

    An ensemble that averages its members' log-probabilities is linear in this sense.

    Args:
        head: Features (B, D) -> logits (B, K), such as a ridge or a zero-shot head.
        dim: D.

    Returns:
        W, (K, D), and b, (K,), float32 on the CPU, both with mean zero over the classes.

    Raises:
        FedKDError: If the head is not affine, for example because it scales features to unit length.
    """
    device = next((t.device for t in [*head.parameters(), *head.buffers()]), torch.device("cpu"))
    step = 1024.0  # far above b, so that subtracting b loses nothing
    probe = torch.randn(8, dim, generator=torch.Generator().manual_seed(0))

    def centered(features: Tensor) -> Tensor:
        logits = head(features.to(device)).double().cpu()  # (B, D) -> (B, K)
        return (logits - logits.mean(1, keepdim=True)).float()

    with torch.no_grad():
        bias = centered(torch.zeros(1, dim))[0]
        weight = ((centered(step * torch.eye(dim)) - bias) / step).T  # (K, D)
        found = centered(probe)
    if not torch.allclose(found, probe @ weight.T + bias, rtol=1e-3, atol=1e-3 * float(found.abs().max())):
        raise FedKDError(
            f"The teacher's {type(head).__name__} is not linear in features, and FrozenHead needs a linear head. A "
            "RidgeHead without privacy is linear, and so is a PrototypeHead with distance 'euclidean'. A head that "
            "scales or clips features is not."
        )
    return weight.contiguous(), bias


class FrozenHead(FeatureLoss):
    r"""``ce_weight * CE + feature_weight * distance``, with logits from the teacher's own head on projected features.

    Chen et al., SimKD (arXiv 2203.14001), section 3. The student's projected features z regress the teacher's
    standardized ones, (t - m) / scale, and its logits are ``W (m + scale z) + b``. W and b are the head that was fitted
    on all clients' data. It is frozen, the same on every client, and clients do not send it back. With the default
    ``ce_weight=0`` a client's training does not use its labels, so a shard of one class cannot bias the classifier. A
    client gets W and b once, K (D + 1) numbers.

    Args:
        feature_weight: Weight of the distance between features, >= 0.
        ce_weight: Weight of the cross-entropy on the labels, >= 0.
        distance: ``"mse"``, see `feature_mse`, or ``"cosine"``, see `feature_cosine`. With ``"cosine"``, z is scaled to
            unit length before the head, and the head is scaled by the root mean square length of the teacher's centered
            features.
    """

    def __init__(
        self, feature_weight: float = 1.0, ce_weight: float = 0.0, distance: Literal["mse", "cosine"] = "mse"
    ) -> None:
        super().__init__(ce_weight, feature_weight=feature_weight)
        if distance not in _DISTANCES:
            raise unknown_name("distance", distance, _DISTANCES)
        self.distance = distance

    needs_head = True

    @property
    def unit(self) -> bool:
        """Whether features are scaled to unit length before the head."""
        return self.distance == "cosine"

    def frozen_head(self, facts: TeacherFacts) -> tuple[Tensor, Tensor, bool]:
        """Return the teacher's head for the student's projected features.

        Raises:
            FedKDError: If the teacher has no head on its features.
        """
        if facts.head is None or facts.moments is None:
            raise FedKDError("FrozenHead needs a teacher with a head on its features, but this teacher has no head.")
        return (*self.classifier(facts.head, facts.moments), self.unit)

    def classifier(self, head: nn.Module, moments: FeatureMoments) -> tuple[Tensor, Tensor]:
        """Return the frozen head rescaled to the student's projected features.

        Args:
            head: The teacher's, features (B, D) -> logits (B, K).
            moments: Of the teacher's features.

        Returns:
            Weight (K, D) and bias (K,).
        """
        mean, scale = moments
        weight, bias = affine_map(head, len(mean))
        length = scale * len(mean) ** 0.5 if self.unit else scale
        return length * weight, weight @ mean + bias

    def terms(self, student: Outputs, targets: Tensor, teacher: Outputs) -> dict[str, Tensor]:
        """Return ``feature``."""
        return {"feature": _DISTANCES[self.distance](*self.compared(student, teacher))}
