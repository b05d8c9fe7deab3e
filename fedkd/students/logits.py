"""Students whose output is more than logits, such as the classifiers of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fedkd.core.errors import FedKDError


class LogitsStudent(nn.Module):
    """Wraps a model and returns its logits alone: ``output.logits``, or ``output["logits"]``.

    It is for models that return a ``ModelOutput`` of transformers, and for those of torchvision with auxiliary
    heads (GoogLeNet, Inception), which return more than logits in training.

    Args:
        model: Images (B, C, H, W) in [0, 1] -> an output with logits (B, K).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [0, 1] to logits (B, K)."""
        return logits_of(self.model(images))


def logits_of(output: Any) -> Tensor:
    """Return the logits of a model's output.

    Raises:
        FedKDError: If there are none.
    """
    found = output
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif not isinstance(output, Tensor):
        found = getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        kind = type(output).__name__
        raise FedKDError(
            f"The student must return logits (B, K), or an output that has them as .logits or ['logits'], got a "
            f"{kind}. Wrap it in a module whose forward returns the logits."
        )
    return found
