"""A student with a linear layer to the teacher's feature space, optionally followed by the teacher's head."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fedkd.students.features import features_and_logits, part_of


class ProjectedStudent(nn.Module):
    """A student and its projector, trained, averaged and saved as one.

    Without a head its logits are those of the student, and only the loss uses the projector. After `freeze_head` its
    logits are the output of the frozen head for the projected features. The head belongs to the teacher: it is not in
    the ``state_dict``, so no client sends it and no average changes it. The run directory stores it with the student.

    Args:
        student: Images (B, C, H, W) in [0, 1] -> logits (B, K).
        layer: The name of its last linear layer, from `fedkd.students.feature_layer`.
        feature_dim: D, the size of the teacher's features.
    """

    head_weight: Tensor | None
    head_bias: Tensor | None

    def __init__(self, student: nn.Module, layer: str, feature_dim: int) -> None:
        super().__init__()
        self.student, self.layer = student, layer
        last = part_of(student, layer)
        assert isinstance(last, nn.Linear)
        self.projector = nn.Linear(last.in_features, feature_dim)
        self.register_buffer("head_weight", None, persistent=False)
        self.register_buffer("head_bias", None, persistent=False)
        self.unit = False

    @property
    def has_head(self) -> bool:
        """Whether the logits come from a frozen head."""
        return self.head_weight is not None

    def freeze_head(self, weight: Tensor, bias: Tensor, unit: bool = False) -> None:
        """Compute logits with a frozen head from now on.

        Args:
            weight: (K, D).
            bias: (K,).
            unit: Whether projected features are scaled to unit length first.
        """
        self.head_weight, self.head_bias = (t.detach().to(self.projector.weight.device) for t in (weight, bias))
        self.unit = unit

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [0, 1] to logits (B, K)."""
        return self.features_and_logits(images)[1] if self.has_head else self.student(images)

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, C, H, W) to projected features (B, D) and logits (B, K)."""
        features, logits = features_and_logits(self.student, images, self.layer)
        projected = self.projector(features)  # (B, D_student) -> (B, D)
        if self.head_weight is not None:
            seen = F.normalize(projected.float(), dim=1) if self.unit else projected
            logits = F.linear(seen.to(self.head_weight.dtype), self.head_weight, self.head_bias)
        return projected, logits

    def constants(self) -> dict[str, Tensor]:
        """Return the frozen head, if there is one. It is saved with the student, and clients never send it."""
        if self.head_weight is None or self.head_bias is None:
            return {}
        return {"head_weight": self.head_weight.cpu(), "head_bias": self.head_bias.cpu()}

    def describe(self) -> dict[str, Any]:
        """Return the values that `restore` needs to wrap the student again, ready for JSON."""
        return {"layer": self.layer, "feature_dim": self.projector.out_features, "unit": self.unit}

    @classmethod
    def restore(cls, student: nn.Module, description: dict[str, Any], tensors: dict[str, Tensor]) -> ProjectedStudent:
        """Wrap a student as `describe` specifies.

        Args:
            student: The student, or a `ProjectedStudent`.
            description: The result of `describe`.
            tensors: All saved tensors. Those of `constants` are removed from it.
        """
        if not isinstance(student, cls):
            student = cls(student, description["layer"], description["feature_dim"])
        if "head_weight" in tensors:
            student.freeze_head(tensors.pop("head_weight"), tensors.pop("head_bias"), description["unit"])
        return student
