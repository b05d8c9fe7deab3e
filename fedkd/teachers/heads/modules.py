"""The frozen modules of fitted heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedkd.teachers.heads.privacy import clip_norm


class LinearClassifier(nn.Module):
    """A frozen linear classifier, features (B, D) -> logits (B, K) = scale * (x W + b).

    Args:
        weight: W, (D, K).
        bias: b, (K,).
        scale: The inverse temperature.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", bias.float())
        self.register_buffer("scale", torch.tensor(float(scale)))

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, K)."""
        # In float32 a row's last bits may depend on how many others are beside it; a client that classifies its own
        # images alone would have other targets than one process that classifies all.
        dtype = torch.float64 if features.device.type == "cpu" else torch.float32
        logits = torch.addmm(self.bias.to(dtype), features.to(dtype), self.weight.to(dtype))
        return self.scale * logits.float()


class ClipNorm(nn.Module):
    """Scales features (B, D) longer than ``limit`` down to this length, as clients did before they summed them."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        return clip_norm(features.float(), self.limit)


class UnitNorm(nn.Module):
    """Scales features (B, D) to length one."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        return F.normalize(features.float(), dim=1)


class ZeroShotHead(nn.Module):
    """Compare image embeddings with one text embedding per class (Radford et al. 2021, arXiv 2103.00020).

    Unit features (B, D) -> logits (B, K) = scale * x T^T + bias.

    Args:
        text: T, one unit vector per class, (K, D).
        scale: The checkpoint's learned inverse temperature.
        bias: SigLIP's learned bias. It is the same for all classes, so it changes a sigmoid but no softmax.
    """

    text: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, text: Tensor, scale: float, bias: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("text", text.float())
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.register_buffer("bias", torch.tensor(float(bias)))

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, K)."""
        return self.scale * (features.float() @ self.text.T) + self.bias
