"""Pool a backbone's output to one feature vector per image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedkd.core.errors import FedKDError

POOLINGS = ("auto", "cls", "mean", "cls+mean", "pooled")


def pool(output: Any, pooling: str, num_prefix: int, num_suffix: int = 0) -> Tensor:
    """Pool a transformers model output to (B, D).

    Args:
        output: Has ``last_hidden_state``, tokens (B, T, C) or a feature map (B, C, H, W), and optionally
            ``pooler_output``, (B, C) or (B, C, 1, 1).
        pooling: One of `POOLINGS`. "auto" is "cls+mean" if there is a CLS token, else "pooled" if there is a pooled
            output, else "mean".
        num_prefix: The number of tokens before the patch tokens: the CLS token, then registers. 0 means no CLS token.
        num_suffix: The number of tokens behind the patch tokens: see `num_suffix_tokens`.

    Raises:
        FedKDError: If the output lacks what the pooling needs.
    """
    hidden, pooled = output.last_hidden_state, getattr(output, "pooler_output", None)
    has_cls = hidden.ndim == 3 and num_prefix > 0
    if pooling == "auto":
        pooling = "cls+mean" if has_cls else "pooled" if pooled is not None else "mean"
    if pooling == "pooled":
        if pooled is None:
            raise FedKDError("pooling 'pooled' needs a pooled output, but this model has none; use 'mean' or 'auto'.")
        return pooled.flatten(1)
    if "cls" in pooling and not has_cls:
        raise FedKDError(f"pooling {pooling!r} needs a CLS token, but this model has none; use 'mean' or 'auto'.")
    if hidden.ndim == 4:
        return hidden.mean((2, 3))  # (B, C, H, W) -> (B, C)
    parts = {"cls": lambda: hidden[:, 0], "mean": lambda: hidden[:, num_prefix : hidden.shape[1] - num_suffix].mean(1)}
    return torch.cat([parts[part]() for part in pooling.split("+")], dim=1)


def num_prefix_tokens(model: Any, hidden: Tensor, image_size: torch.Size) -> int:
    """Return the number of tokens in ``hidden`` before the patch tokens; 0 if ``hidden`` has no patch tokens.

    Args:
        model: A transformers model, or a timm model in the transformers wrapper.
        hidden: The model's last hidden state.
        image_size: (height, width) of the model's input.
    """
    timm_model = getattr(model, "timm_model", None)
    if timm_model is not None:
        return getattr(timm_model, "num_prefix_tokens", 0)
    patch = getattr(model.config, "patch_size", None)
    if patch is None or hidden.ndim != 3:
        return 0
    height, width = (patch, patch) if isinstance(patch, int) else patch
    # Hierarchical models (Swin) merge patches, so fewer tokens than patches means no prefix.
    tokens = hidden.shape[1] - num_suffix_tokens(model)
    return max(0, tokens - (image_size[0] // height) * (image_size[1] // width))


def num_suffix_tokens(model: Any) -> int:
    """Return the number of tokens in a model's last hidden state behind the patch tokens: YOLOS detects objects there.

    Args:
        model: As for `num_prefix_tokens`.
    """
    return getattr(model.config, "num_detection_tokens", None) or 0
