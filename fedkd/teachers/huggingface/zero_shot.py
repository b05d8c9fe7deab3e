"""Zero-shot teachers: an image tower, a text tower, and prompts with the class names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from fedkd.core.errors import FedKDError
from fedkd.teachers.heads.head import FederatedHead
from fedkd.teachers.heads.modules import ZeroShotHead
from fedkd.teachers.huggingface.feature import HuggingFaceTeacher
from fedkd.teachers.huggingface.hub import find_checkpoint, is_dual_encoder
from fedkd.teachers.huggingface.templates import check_templates, choose_templates

WORDNET_ID = re.compile(r"n\d{8}")
"""As in ImageNet's folders."""


class ZeroShotTeacher(HuggingFaceTeacher):
    """A dual encoder (CLIP, SigLIP, ...) that classifies images by their similarity to prompts with the class names.

    Features are image embeddings of unit length. The weight vector of a class is the mean of the unit embeddings of all
    prompts with its name, normalized to unit length (Radford et al. 2021, arXiv 2103.00020). Clients send nothing
    unless a ``head`` is fitted too.

    Args:
        checkpoint: A short name, a hub id, or a folder.
        templates: A list of prompts with "{}" for the class name, or the name of a set in
            `fedkd.teachers.huggingface.templates`: "general", "cifar" (CLIP's own for CIFAR) or "siglip". "auto" is
            "cifar" for the classes of CIFAR, else "siglip" for a SigLIP model, else "general".
        image_size: Side of the square input in pixels; None uses the checkpoint's own.
        dtype: "auto" is bfloat16 on CUDA (float16 where a GPU lacks it) and float32 elsewhere.
        revision: Branch, tag or commit on the hub.
        head: The method that fits a head on the image embeddings from what clients send. `ZeroShotRidge` adds a ridge
            head to the zero-shot head. None uses the zero-shot head alone.

    Raises:
        MissingResourceError: If the checkpoint cannot be found.
        FedKDError: If a value is wrong, or the checkpoint has no text tower.
    """

    not_in_features = HuggingFaceTeacher.not_in_features | {"templates", "tokenizer", "fits_head"}

    def __init__(
        self,
        checkpoint: str,
        templates: Literal["auto", "general", "cifar", "siglip"] | list[str] = "auto",
        image_size: int | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        revision: str | None = None,
        head: FederatedHead | None = None,
    ) -> None:
        from transformers import AutoModelForZeroShotImageClassification, AutoTokenizer

        check_templates(templates)
        found = find_checkpoint(checkpoint, revision)
        if not is_dual_encoder(found.config):
            raise FedKDError(
                f"Checkpoint {checkpoint!r} ({found.config.model_type}) has no text tower for zero-shot "
                "classification; use FeatureTeacher."
            )
        model = found.load_model(AutoModelForZeroShotImageClassification)
        channels = getattr(getattr(found.config, "vision_config", None), "num_channels", None) or 3
        super().__init__(found, model, channels, image_size, dtype, head)
        self.fits_head = head is not None
        self.templates = templates
        self.tokenizer = found.load(AutoTokenizer)

    def features(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> embeddings of unit length (B, D) float32."""
        return F.normalize(_embedding(self._call(self.model.get_image_features, self.pixel_values(images))), dim=1)

    def prepare(self, classes: Sequence[str]) -> None:
        """Embed the class names to build the zero-shot head, from which a fitted head starts."""
        super().prepare(classes)
        if ids := [name for name in classes if WORDNET_ID.fullmatch(name)]:
            rank_zero_warn(
                f"{len(ids)} of {len(classes)} class names are WordNet ids, the first is {ids[0]!r}. They mean nothing "
                "to a text tower: name the classes, such as by renaming their folders or by classes= of a data set."
            )
        templates = choose_templates(self.templates, classes, self.model.config.model_type)
        with torch.no_grad():
            text = torch.stack([self._embed_class(name, templates) for name in classes])  # (K, D)
        scale = getattr(self.model, "logit_scale", None)
        temperature = getattr(self.model, "temperature", None)  # ALIGN has a temperature instead of a scale
        factor = (
            float(scale.float().exp()) if scale is not None else 1 / float(1 if temperature is None else temperature)
        )
        bias = getattr(self.model, "logit_bias", None)
        self.head = ZeroShotHead(text, factor, 0.0 if bias is None else float(bias))
        if self.fits_head:
            self.head_method, self.head = self.head_method.starting_from(self.head), None

    def _embed_class(self, name: str, templates: Sequence[str]) -> Tensor:
        """Class name -> unit vector (D,)."""
        prompts = [template.replace("{}", name.replace("_", " ")) for template in templates]
        tokens = self._tokenize(prompts).to(self.device)
        each = F.normalize(_embedding(self.model.get_text_features(**tokens)), dim=1)  # (templates, D)
        return F.normalize(each.mean(0), dim=0)

    def _tokenize(self, prompts: list[str]) -> Any:
        config = self.model.config
        length = getattr(getattr(config, "text_config", None), "max_position_embeddings", None)
        if "siglip" not in config.model_type:
            return self.tokenizer(prompts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        # SigLIP models were trained on lower-case text with padding to full length, and they attend to the padding. Not
        # every version of SigLIP 2's tokenizer converts to lower case.
        lowered = [prompt.lower() for prompt in prompts]
        tokens = self.tokenizer(lowered, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        tokens.pop("attention_mask", None)
        return tokens


def _embedding(output: Any) -> Tensor:
    """Return the embeddings (B, D) float32. Older transformers return a tensor, newer ones a model output."""
    return (output if isinstance(output, Tensor) else output.pooler_output).float()
