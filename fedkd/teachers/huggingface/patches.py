"""For models that are fed patches: SigLIP 2 of any aspect ratio (NaFlex), and masked autoencoders."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def naflex_size(size: Sequence[int], patch_size: int, max_patches: int) -> tuple[int, int]:
    """Return the (height, width) that an image is scaled to: whole patches, the ratio of the sides about kept.

    Each side is scaled alike and rounded up to patches, by the greatest scale that needs no more than ``max_patches``
    (Tschannen et al. 2025, arXiv 2502.14786, section 2.4.2).

    Args:
        size: (height, width) of the image.
        patch_size: P, the side of a patch.
        max_patches: Patches at most.
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
    """Cut images into patches, and say how they lie.

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
    """Return the noise that keeps a masked autoencoder's patches in order: (B, C, H, W) -> (B, N), rising."""
    height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    count = (pixels.shape[-2] // height) * (pixels.shape[-1] // width)
    return torch.linspace(0, 1, count, device=pixels.device).expand(len(pixels), count)
