"""Tiny checkpoints of real families, of random weights, as HuggingFace folders with their processor files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def word_tokenizer(texts: list[str], length: int) -> Any:
    """Return a tokenizer of whole words, with the marks that CLIP's text tower needs."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for text in texts for word in text.lower().replace(".", " .").split()})
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", "<s>", *words, "</s>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", vocabulary["</s>"])]
    )
    marks = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=length, **marks)


def text_config(tokenizer: Any, length: int) -> dict[str, Any]:
    """Return the text tower's part of a dual encoder's configuration."""
    marks = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return {**VIT, **marks, "vocab_size": len(tokenizer), "max_position_embeddings": length, "projection_size": 16}


def build(family: str, folder: Path) -> Path:
    """Save a tiny checkpoint of a family, of random weights, in ``folder``."""
    import transformers as t

    torch.manual_seed(0)
    processor: Any = t.ViTImageProcessor(size={"height": 32, "width": 32})
    if family == "dinov2":
        model = t.Dinov2Model(t.Dinov2Config(**VIT, mlp_ratio=2, image_size=28, patch_size=14))
        processor = t.BitImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}, do_center_crop=True
        )
    elif family == "vit":
        model = t.ViTModel(t.ViTConfig(**VIT, image_size=32, patch_size=8))
    elif family == "vit-classifier":
        model = t.ViTForImageClassification(t.ViTConfig(**VIT, image_size=32, patch_size=8))
    elif family == "convnext":
        model = t.ConvNextModel(t.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2))
        processor = t.ConvNextImageProcessor(size={"shortest_edge": 28}, crop_pct=0.875)
    elif family == "resnet":
        model = t.ResNetModel(t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"))
        processor = t.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875)
    elif family == "swin":
        config = t.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
        model = t.SwinModel(config)
    elif family == "timm":
        pytest.importorskip("timm")
        config = {"input_size": (3, 64, 64), "crop_pct": 0.875, "mean": (0.5,) * 3, "std": (0.5,) * 3}
        config |= {"interpolation": "bicubic", "crop_mode": "center"}
        model = t.TimmWrapperModel(t.TimmWrapperConfig(architecture="mobilenetv3_small_050", pretrained_cfg=config))
        processor = None
    elif family == "timm-vit":
        pytest.importorskip("timm")
        config = {"input_size": (3, 32, 32), "crop_pct": 0.9, "mean": (0.5,) * 3, "std": (0.5,) * 3}
        arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
        wrapper = t.TimmWrapperConfig(architecture="vit_tiny_patch16_224", pretrained_cfg=config, model_args=arguments)
        model, processor = t.TimmWrapperModel(wrapper), None
    elif family in ("clip", "siglip"):
        length = 16
        tokenizer = word_tokenizer(["a photo of the cat dog bird."], length)
        kind = "CLIP" if family == "clip" else "Siglip"
        config = getattr(t, f"{kind}Config")(
            text_config=text_config(tokenizer, length),
            vision_config={**VIT, "image_size": 32, "patch_size": 8},
            **({"projection_dim": 16} if family == "clip" else {}),
        )
        model = getattr(t, f"{kind}Model")(config)
        if family == "siglip":
            torch.nn.init.constant_(model.logit_scale, 2.0)
            torch.nn.init.constant_(model.logit_bias, -3.0)
        crop = {"crop_size": {"height": 32, "width": 32}} if family == "clip" else {}
        size = {"shortest_edge": 32} if family == "clip" else {"height": 32, "width": 32}
        processor = getattr(t, f"{kind}ImageProcessor")(size=size, **crop)
        tokenizer.save_pretrained(folder)
    else:
        raise ValueError(family)
    model.eval().save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return folder
