"""Teachers from HuggingFace image backbones. Their pooled outputs are the features."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from fedkd.core.errors import FedKDError, unknown_name
from fedkd.core.hub import Checkpoint
from fedkd.teachers.heads.head import FederatedHead
from fedkd.teachers.heads.ridge import RidgeHead
from fedkd.teachers.huggingface.hub import find_checkpoint
from fedkd.teachers.huggingface.patches import naflex_inputs, unmasked
from fedkd.teachers.huggingface.pooling import POOLINGS, num_prefix_tokens, num_suffix_tokens, pool
from fedkd.teachers.huggingface.preprocess import load_preprocess
from fedkd.teachers.teacher import Teacher

_DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class HuggingFaceTeacher(Teacher):
    """The base of teachers from HuggingFace checkpoints: preprocessing, precision, input size.

    Args:
        checkpoint: The checkpoint, from `find_checkpoint`.
        model: The network, called with pixel values.
        channels: The number of input channels.
        image_size: Side of the square input in pixels; None uses the checkpoint's own.
        dtype: The network's precision; "auto" is bfloat16 on CUDA (float16 where a GPU lacks it) and float32 elsewhere.
        head_method: See `Teacher`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: Any,
        channels: int,
        image_size: int | None,
        dtype: str,
        head_method: FederatedHead | None = None,
    ) -> None:
        super().__init__(head_method)
        if dtype not in _DTYPES:
            raise unknown_name("dtype", dtype, _DTYPES)
        self.checkpoint = checkpoint.path
        self.dtype = dtype
        self.preprocess = load_preprocess(checkpoint, image_size, channels)
        self.model = model
        if hasattr(model.config, "mask_ratio"):
            model.config.mask_ratio = 0.0  # MAE would use a random quarter of the patches
        self._fit_precision()

    def pixel_values(self, images: Tensor) -> Tensor:
        """Preprocess: images (B, C, H, W) in [0, 1] -> (B, channels, H', W') in the network's size and precision."""
        return self.preprocess(images).to(self.model.dtype)

    def _call(self, function: Callable[..., Any], pixels: Tensor) -> Any:
        """Call the network on pixels of any size. Position embeddings are interpolated if possible."""
        try:
            return function(**self._inputs(function, pixels))
        except (ValueError, AssertionError, NotImplementedError) as error:
            raise FedKDError(
                f"{type(self.model).__name__} of {self.checkpoint!r} cannot take images of {tuple(pixels.shape[1:])}: "
                f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
            ) from error

    def _inputs(self, function: Callable[..., Any], pixels: Tensor) -> dict[str, Any]:
        """Return the keyword arguments for a function of the network."""
        takes = inspect.signature(function).parameters
        if "spatial_shapes" in takes:  # SigLIP 2 NaFlex takes patches and the shape of their grid
            return naflex_inputs(pixels, self.preprocess.patch_size)
        inputs: dict[str, Any] = {"pixel_values": pixels}
        if "interpolate_pos_encoding" in takes:
            inputs["interpolate_pos_encoding"] = True
        if "noise" in takes:  # MAE orders patches by noise: this keeps all of them, in place
            inputs["noise"] = unmasked(pixels, self.model.config.patch_size)
        return inputs

    def _fit_precision(self) -> None:
        wanted = _DTYPES[self.dtype]
        if wanted is None:
            wanted = _half_of_cuda() if self.device.type == "cuda" else torch.float32
        if self.model.dtype != wanted:
            self.model.to(wanted)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HuggingFaceTeacher:
        """Move the weights, and set the precision for the new device."""
        super()._apply(fn, recurse)
        self._fit_precision()
        return self


def _half_of_cuda() -> torch.dtype:
    """Return the half precision that the GPU supports natively."""
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


class FeatureTeacher(HuggingFaceTeacher):
    """Any HuggingFace image backbone (DINOv2, ViT, ConvNeXt, timm, CLIP's image tower, ...) with a fitted head.

    Args:
        checkpoint: A short name, a hub id, or a folder.
        head: The method that fits the head from what clients send.
        pooling: The features: the CLS token ("cls"), the mean of the patch tokens ("mean"), both concatenated
            ("cls+mean"), or the model's own pooled output ("pooled"). "auto" is "cls+mean" if the model has a CLS
            token, else "pooled" if it has a pooled output, else "mean".
        image_size: Side of the square input in pixels; None uses the checkpoint's own. For small images a smaller
            side, such as 98 for DINOv2, is much faster and often as accurate. Position embeddings are interpolated.
        dtype: "auto" is bfloat16 on CUDA (float16 where a GPU lacks it) and float32 elsewhere. CPUs with AMX or
            AVX512-BF16 are faster in "bfloat16".
        revision: Branch, tag or commit on the hub.

    Raises:
        MissingResourceError: If the checkpoint cannot be found.
        FedKDError: If a value is wrong, or the checkpoint is not an image backbone.
    """

    def __init__(
        self,
        checkpoint: str,
        head: FederatedHead = RidgeHead(),  # noqa: B008 (frozen)
        pooling: Literal["auto", "cls", "mean", "cls+mean", "pooled"] = "auto",
        image_size: int | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        revision: str | None = None,
    ) -> None:
        from transformers import AutoModel

        if pooling not in POOLINGS:
            raise unknown_name("pooling", pooling, POOLINGS)
        found = find_checkpoint(checkpoint, revision)
        model = found.load_model(AutoModel, may_lack="" if pooling == "pooled" else "pooler")
        model = getattr(model, "vision_model", model)  # the image tower of a dual encoder
        if getattr(model, "main_input_name", "pixel_values") != "pixel_values":
            raise FedKDError(f"Checkpoint {checkpoint!r} ({type(model).__name__}) does not take images.")
        channels = getattr(model.config, "num_channels", None) or 3
        super().__init__(found, model, channels, image_size, dtype, head)
        self.pooling = pooling
        timm_model = getattr(model, "timm_model", None)
        if image_size is not None and timm_model is not None and hasattr(timm_model, "set_input_size"):
            timm_model.set_input_size((image_size, image_size))

    def features(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> pooled outputs (B, D) float32."""
        pixels = self.pixel_values(images)
        output = self._call(self.model.forward, pixels)
        num_prefix = num_prefix_tokens(self.model, output.last_hidden_state, pixels.shape[-2:])
        return pool(output, self.pooling, num_prefix, num_suffix_tokens(self.model)).float()
