"""A checkpoint's image processor as a module that processes a batch of tensors on its device."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedkd.core.errors import MAX_PIXELS, FedKDError, check_range, in_one_line, unknown_name
from fedkd.core.hub import middle_pixel
from fedkd.students.layers import IMAGENET_MEAN, IMAGENET_STD
from fedkd.teachers.huggingface.patches import naflex_size

# PIL's numbers and timm's names -> torch's modes. Torch has no Lanczos or Hamming filter: the most similar replaces it.
_MODES: dict[Any, str] = {0: "nearest-exact", 1: "bicubic", 2: "bilinear", 3: "bicubic", 4: "area", 5: "bilinear"} | {
    name: name for name in ("bilinear", "bicubic")
} | {"nearest": "nearest-exact", "lanczos": "bicubic", "random": "bilinear"}  # fmt: skip


class Preprocess(nn.Module):
    """Resize, crop and normalize like the checkpoint's processor: (B, C, H, W) in [0, 1] -> (B, channels, *crop).

    Args:
        resize: The length of the shorter side (the aspect ratio is kept), or (height, width), or None.
        crop: (height, width) of the center crop, padded with black where the image is smaller; or None.
        mode: The interpolation, a mode of `torch.nn.functional.interpolate`.
        scale: The factor of each channel.
        shift: The offset of each channel, added after the multiplication.
        round_crop: The position of a crop whose center falls between pixels: rounded (torchvision) if True, to the
            upper left (transformers) if False.
        patch_size: Side of a patch for a model that takes any aspect ratio (see `naflex_size`); 0 for other models.
        max_patches: The largest number of patches, for such a model.
        reverse_channels: Whether the model takes blue, green, red.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        resize: int | tuple[int, int] | None,
        crop: tuple[int, int] | None,
        mode: str,
        scale: Sequence[float],
        shift: Sequence[float],
        round_crop: bool = False,
        patch_size: int = 0,
        max_patches: int = 0,
        reverse_channels: bool = False,
    ) -> None:
        super().__init__()
        self.reverse_channels = reverse_channels
        self.patch_size, self.max_patches = patch_size, max_patches
        self.resize, self.crop, self.mode, self.round_crop = resize, crop, mode, round_crop
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    @classmethod
    def from_processor(cls, processor: Any, image_size: int | None = None, channels: int = 3) -> Preprocess:
        """Build from a transformers image processor.

        Args:
            processor: The image processor.
            image_size: Side of the square input, which replaces the processor's size. The image is resized to it
                without a margin: at most the excess of the longer side is cropped. None keeps the processor's size.
            channels: The model's number of input channels.

        Raises:
            FedKDError: If the processor's resampling is unknown.
        """
        settings = processor.to_dict()
        patch_size = max_patches = 0
        if "data_config" in settings:  # a timm processor
            resize, crop, resample = _timm_geometry(settings["data_config"])
        elif settings.get("max_num_patches"):
            resize, crop, resample, patch_size = None, None, settings["resample"], settings["patch_size"]
            check_range("image_size", image_size or patch_size, low=patch_size, whole=True)
            max_patches = (image_size // patch_size) ** 2 if image_size else settings["max_num_patches"]
        else:
            resize, crop, resample = _geometry(settings)
            if type(processor).__name__.startswith("Levit") and isinstance(resize, int):
                resize = int(256 / 224 * resize)  # it is in the processor's code, not in its settings
        if image_size is not None and not patch_size:
            square = (image_size, image_size)
            resize, crop = (image_size, square) if isinstance(resize, int) else (square, None)
        if resample not in _MODES:
            raise unknown_name(f"resampling of {type(processor).__name__}", resample, map(str, _MODES))
        black, white = (middle_pixel(processor, value, channels) for value in (0, 255))
        values = (white - black).tolist(), black.tolist()
        is_timm, reverse = "data_config" in settings, bool(settings.get("do_flip_channel_order"))
        return cls(resize, crop, _MODES[resample], *values, is_timm, patch_size, max_patches, reverse)

    @classmethod
    def from_config(cls, config: Any, image_size: int | None = None, channels: int = 3) -> Preprocess:
        """Build without a processor: ImageNet's mean and standard deviation, and the model's image size."""
        size = image_size or getattr(config, "image_size", None) or 224
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        std = np.resize(IMAGENET_STD, channels)
        return cls(
            (height, width), None, "bicubic", (1 / std).tolist(), (-np.resize(IMAGENET_MEAN, channels) / std).tolist()
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> normalized (B, channels, H', W') float32."""
        images, channels = images.float(), self.scale.shape[1]
        if images.shape[1] != channels:
            images = images.expand(-1, channels, -1, -1) if images.shape[1] == 1 else images.mean(1, keepdim=True)
        if self.patch_size:
            images = self._resized(images, naflex_size(images.shape[-2:], self.patch_size, self.max_patches))
        if self.resize is not None:
            images = self._resized(images, self.resize)
        if self.crop is not None and tuple(images.shape[-2:]) != tuple(self.crop):
            images = _center_crop(images, *self.crop, self.round_crop)
        if self.reverse_channels:
            images = images.flip(1)
        return images * self.scale + self.shift

    def _resized(self, images: Tensor, size: int | tuple[int, int]) -> Tensor:
        height, width = images.shape[-2:]
        if isinstance(size, int):
            short = min(height, width)
            size = (int(size * height / short), int(size * width / short))
        if size == (height, width):
            return images
        if self.mode not in ("bilinear", "bicubic"):
            return F.interpolate(images, size, mode=self.mode)
        # Bicubic weights overshoot. Processors use 8-bit values, so they clip after rows and again after columns.
        for target in ((height, size[1]), size):
            images = F.interpolate(images, target, mode=self.mode, antialias=True, align_corners=False).clamp(0, 1)
        return images

    def extra_repr(self) -> str:
        """Return the settings for ``repr``."""
        return f"resize={self.resize}, crop={self.crop}, mode={self.mode!r}, max_patches={self.max_patches}"


def load_preprocess(checkpoint: Any, image_size: int | None = None, channels: int = 3) -> Preprocess:
    """Return the preprocessing of a `fedkd.core.hub.Checkpoint`, and warn if it has no processor.

    Raises:
        FedKDError: If ``image_size`` is not positive or too large, the processor's resampling is unknown, or its result
            on a test image is not that of the preprocessing.
    """
    from transformers import AutoImageProcessor

    if image_size is not None:
        check_range("image_size", image_size, low=1, high=MAX_PIXELS, whole=True)
    try:
        processor = checkpoint.load(AutoImageProcessor)
    except FedKDError:
        preprocess = Preprocess.from_config(checkpoint.config, image_size, channels)
        warnings.warn(
            f"Checkpoint {checkpoint.name!r} has no image processor that transformers can load. Using ImageNet's mean "
            f"and standard deviation at {preprocess.resize} pixels.",
            stacklevel=2,
        )
        return preprocess
    try:
        difference = levels_apart(processor, Preprocess.from_processor(processor, None, channels), channels)
    except FedKDError:
        raise
    except Exception as error:  # the processor's own code: three means for one channel, or none for three
        raise FedKDError(
            f"{type(processor).__name__} of {checkpoint.name!r} does not take an image of {channels} channel(s), as "
            f"its model does: {in_one_line(error)}. Correct image_mean and image_std in its preprocessor_config.json."
        ) from error
    if difference > MAX_LEVELS:
        raise FedKDError(
            f"{type(processor).__name__} of {checkpoint.name!r} prepares images in a way that fedkd does not follow: "
            f"{difference:.0f} of 256 grey levels apart on a test image. Take another checkpoint, or a fedkd.Teacher "
            "of your own."
        )
    return Preprocess.from_processor(processor, image_size, channels)


MAX_LEVELS = 2.0
"""The pixels of a test image may be so far from the processor's, in the mean: filters of PIL and torch differ a bit."""


def levels_apart(processor: Any, preprocess: Preprocess, channels: int) -> float:
    """Return how far a preprocessing is from a processor on a colored, oblong image: a mean, in grey levels of 256.

    Args:
        processor: Of transformers.
        preprocess: What was read from its settings.
        channels: Of the model.

    Returns:
        The mean difference; 0 where the processor gives patches instead of an image.
    """
    from PIL import Image

    high, wide = torch.arange(160)[:, None], torch.arange(240)[None]
    waves = [128 + 100 * torch.sin((a * high + b * wide) / 40.0) for a, b in ((1, 0), (0, 1), (1, 1))]
    waves[2] = 0.5 * waves[2]  # so that the order of the channels counts
    pixels = torch.stack(waves[:channels]).round().to(torch.uint8)  # (channels, H, W)
    array = pixels.permute(1, 2, 0).numpy()
    out = processor(Image.fromarray(array if channels == 3 else array[:, :, 0]), return_tensors="pt")["pixel_values"][0]
    if not isinstance(out, Tensor) or out.ndim != 3:
        return 0.0
    own = preprocess(pixels[None].float() / 255)[0]
    if own.shape != out.shape:
        return 256.0
    return float(((own - out.float()).abs() / preprocess.scale[0]).mean() * 255)


def _geometry(settings: dict[str, Any]) -> tuple[int | tuple[int, int] | None, tuple[int, int] | None, Any]:
    """Read (resize, crop, resample) from a processor's settings."""
    size, resample = settings.get("size") or {}, settings.get("resample")
    resize: int | tuple[int, int] | None = None
    crop = None
    if settings.get("do_resize"):
        short = size.get("shortest_edge")
        resize = int(short) if short else (int(size["height"]), int(size["width"]))
        if short and settings.get("crop_pct") and settings.get("do_center_crop"):  # PoolFormer crops at every size
            resize = int(short / settings["crop_pct"])
        elif short and settings.get("crop_pct"):  # ConvNeXt crops a margin below 384 pixels only
            resize, crop = (
                (int(short / settings["crop_pct"]), (short, short)) if short < 384 else ((short, short), None)
            )
    if settings.get("do_center_crop"):
        size = settings["crop_size"]
        crop = (int(size["height"]), int(size["width"])) if "height" in size else (int(size["shortest_edge"]),) * 2
    return resize, crop, 2 if resample is None else resample


def _timm_geometry(config: dict[str, Any]) -> tuple[int | tuple[int, int] | None, tuple[int, int] | None, Any]:
    """Read (resize, crop, resample) from timm's data configuration, as in its evaluation transform."""
    height, width = config["input_size"][-2:]
    pct, mode = config.get("crop_pct") or 0.875, config.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise unknown_name("crop_mode of a timm checkpoint", mode, ("center", "squash"))
    if mode == "squash" or height != width:
        return (int(height / pct), int(width / pct)), (height, width), config["interpolation"]
    return int(height / pct), (height, width), config["interpolation"]


def _center_crop(images: Tensor, height: int, width: int, nearest: bool) -> Tensor:
    to_int = round if nearest else int
    top, left = to_int((images.shape[-2] - height) / 2), to_int((images.shape[-1] - width) / 2)
    bottom, right = images.shape[-2] - height - top, images.shape[-1] - width - left
    return F.pad(images, (-left, -right, -top, -bottom))  # negative padding crops
