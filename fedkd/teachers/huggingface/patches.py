"""Inputs of models that take patches: SigLIP 2 NaFlex (any aspect ratio), and masked autoencoders."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def naflex_size(size: Sequence[int], patch_size: int, max_patches: int) -> tuple[int, int]:
    """Return the (height, width) to which NaFlex resizes an image (Tschannen et al. 2025, arXiv 2502.14786, 2.4.2).

    Both sides are scaled by the same factor and rounded up to whole patches, so the aspect ratio is kept approximately.
    The factor is the largest that gives at most ``max_patches`` patches.

    Args:
        size: (height, width) of the image.
        patch_size: P, the side of a patch.
        max_patches: The largest number of patches.
    """

    def grid(scale: float) -> tuple[int, int]:
        rows, columns = (max(1, math.ceil(side * scale / patch_size)) for side in size)
        return rows, columns

    low, high = 0.0, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if math.prod(grid(middle)) <= max_patches else (low, middle)
    rows, columns = grid(low)
    return rows * patch_size, columns * patch_size


def naflex_inputs(pixels: Tensor, patch_size: int) -> dict[str, Tensor]:
    """Cut images into patches, with the shape of their grid.

    Args:
        pixels: (B, C, H, W), H and W multiples of P.
        patch_size: P.

    Returns:
        ``pixel_values`` (B, N, P * P * C), ``pixel_attention_mask`` (B, N) of ones, and ``spatial_shapes`` (B, 2).
    """
    batch, channels, height, width = pixels.shape
    rows, columns = height // patch_size, width // patch_size
    patches = pixels.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return {
        "pixel_values": patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1),
        "pixel_attention_mask": torch.ones(batch, rows * columns, dtype=torch.int32, device=pixels.device),
        "spatial_shapes": torch.tensor([[rows, columns]], device=pixels.device).expand(batch, 2),
    }


def unmasked(pixels: Tensor, patch_size: int | Sequence[int]) -> Tensor:
    """Return increasing noise, which keeps a masked autoencoder's patches in order: (B, C, H, W) -> (B, N)."""
    height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    count = (pixels.shape[-2] // height) * (pixels.shape[-1] // width)
    return torch.linspace(0, 1, count, device=pixels.device).expand(len(pixels), count)
