"""Tiny checkpoints of real families, of random weights, as HuggingFace folders with their processor files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
PATCHES = {**VIT, "image_size": 32, "patch_size": 8}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
WINDOWS = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
LENGTH = 16
LABELS = ("Tabby, tabby_cat", "Persian cat", "dog", "Bird")
"""Of the classifier."""


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


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


def letter_tokenizer() -> Any:
    """Return SigLIP 2's own kind of tokenizer, with letters for words."""
    from transformers import Siglip2Tokenizer

    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abcdefghijklmnopqrstuvwxyz."]
    return Siglip2Tokenizer(vocab={name: i for i, name in enumerate(names)})


def text_config(tokenizer: Any, length: int) -> dict[str, Any]:
    """Return the text tower's part of a dual encoder's configuration."""
    marks = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return {**VIT, **marks, "vocab_size": len(tokenizer), "max_position_embeddings": length, "projection_size": 16}


def clip() -> tuple[Any, ...]:
    import transformers as t

    tokenizer = word_tokenizer(["a photo of the cat dog bird."], LENGTH)
    text = text_config(tokenizer, LENGTH)
    model = t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=PATCHES, projection_dim=16))
    return model, t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square(32)), tokenizer


def siglip() -> tuple[Any, ...]:
    import transformers as t

    tokenizer = word_tokenizer(["a photo of the cat dog bird."], LENGTH)
    model = t.SiglipModel(t.SiglipConfig(text_config=text_config(tokenizer, LENGTH), vision_config=PATCHES))
    return sigmoid(model), t.SiglipImageProcessor(size=square(32)), tokenizer


def siglip2() -> tuple[Any, ...]:
    """Of any aspect ratio: up to 12 patches of 8 x 8 pixels."""
    import transformers as t

    tokenizer = letter_tokenizer()
    vision = {**VIT, "patch_size": 8, "num_patches": 16}
    text = {**text_config(tokenizer, 2 * LENGTH), "projection_size": 16}
    model = t.Siglip2Model(t.Siglip2Config(text_config=text, vision_config=vision))
    return sigmoid(model), t.Siglip2ImageProcessor(patch_size=8, max_num_patches=12), tokenizer


def sigmoid(model: Any) -> Any:
    torch.nn.init.constant_(model.logit_scale, 2.0)
    torch.nn.init.constant_(model.logit_bias, -3.0)
    return model


def align() -> tuple[Any, ...]:
    import transformers as t

    tokenizer = word_tokenizer(["a photo of the cat dog bird."], LENGTH)
    text = {**VIT, "vocab_size": len(tokenizer), "max_position_embeddings": LENGTH, "pad_token_id": 0}
    config = t.AlignConfig(text_config=text, vision_config=EFFICIENT, projection_dim=16, temperature_init_value=0.25)
    return t.AlignModel(config), t.EfficientNetImageProcessor(size=square(36), crop_size=square(32)), tokenizer


EFFICIENT: dict[str, Any] = {
    "image_size": 32,
    "width_coefficient": 0.25,
    "depth_coefficient": 0.1,
    "kernel_sizes": [3, 3],
    "in_channels": [32, 16],
    "out_channels": [16, 64],
    "depthwise_padding": [],
    "strides": [1, 2],
    "num_block_repeats": [1, 1],
    "expand_ratios": [1, 6],
    "hidden_dim": 320,  # what 1280 becomes at this width
}


def backbone(family: str) -> tuple[Any, ...]:
    import transformers as t

    vit = t.ViTImageProcessor(size=square(32))
    cropped = t.BitImageProcessor(size={"shortest_edge": 32}, crop_size=square(28), do_center_crop=True)
    convnext = t.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875)
    dinov3 = t.DINOv3ViTImageProcessor(size=square(32))
    of_14 = {**VIT, "mlp_ratio": 2, "image_size": 28, "patch_size": 14}
    made: dict[str, Callable[[], tuple[Any, Any]]] = {
        "dinov2": lambda: (t.Dinov2Model(t.Dinov2Config(**of_14)), cropped),
        "dinov2-registers": lambda: (
            t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**of_14, num_register_tokens=3)),
            cropped,
        ),
        "dinov3": lambda: (t.DINOv3ViTModel(t.DINOv3ViTConfig(**PATCHES, num_register_tokens=2)), dinov3),
        "dinov3-convnext": lambda: (t.DINOv3ConvNextModel(t.DINOv3ConvNextConfig(**FOUR_STAGES)), dinov3),
        "vit": lambda: (t.ViTModel(t.ViTConfig(**PATCHES)), vit),
        "classifier": lambda: (
            t.ViTForImageClassification(
                t.ViTConfig(
                    **PATCHES, id2label=dict(enumerate(LABELS)), label2id={name: i for i, name in enumerate(LABELS)}
                )
            ),
            vit,
        ),
        "mae": lambda: (t.ViTMAEForPreTraining(t.ViTMAEConfig(**PATCHES, **DECODER)), vit),
        "beit": lambda: (
            t.BeitModel(t.BeitConfig(**PATCHES, use_relative_position_bias=True)),
            t.BeitImageProcessor(size=square(36), crop_size=square(32), do_center_crop=True),
        ),
        "deit": lambda: (
            t.DeiTModel(t.DeiTConfig(**PATCHES)),
            t.DeiTImageProcessor(size=square(36), crop_size=square(32)),
        ),
        "convnext": lambda: (t.ConvNextModel(t.ConvNextConfig(**STAGES, num_stages=2)), convnext),
        "convnextv2": lambda: (t.ConvNextV2Model(t.ConvNextV2Config(**STAGES, num_stages=2)), convnext),
        "resnet": lambda: (
            t.ResNetModel(t.ResNetConfig(embedding_size=8, **STAGES, layer_type="basic")),
            convnext,
        ),
        "swin": lambda: (t.SwinModel(t.SwinConfig(**WINDOWS)), vit),
        "swinv2": lambda: (t.Swinv2Model(t.Swinv2Config(**WINDOWS)), vit),
        "efficientnet": lambda: (
            t.EfficientNetModel(t.EfficientNetConfig(**EFFICIENT)),
            t.EfficientNetImageProcessor(size=square(36), crop_size=square(32), do_center_crop=True),
        ),
        "timm": lambda: (timm("mobilenetv3_small_050", side=64, crop_pct=0.875), None),
        "timm-vit": lambda: (timm("vit_tiny_patch16_224", side=32, crop_pct=0.9, model_args=TIMM_VIT), None),
    }
    return made[family]()


FOUR_STAGES = {"hidden_sizes": [4, 8, 8, 16], "depths": [1, 1, 1, 1]}
DECODER = {
    "decoder_hidden_size": 8,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 8,
}
TIMM_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


def timm(architecture: str, side: int, crop_pct: float, **options: Any) -> Any:
    import transformers as t

    pytest.importorskip("timm")
    config = {"input_size": (3, side, side), "crop_pct": crop_pct, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    config |= {"interpolation": "bicubic", "crop_mode": "center"}
    return t.TimmWrapperModel(t.TimmWrapperConfig(architecture=architecture, pretrained_cfg=config, **options))


def build(family: str, folder: Path) -> Path:
    """Save a tiny checkpoint of a family, of random weights, in ``folder``."""
    torch.manual_seed(0)
    dual = {"clip": clip, "siglip": siglip, "siglip2": siglip2, "align": align}
    model, *files = dual[family]() if family in dual else backbone(family)
    model.eval().save_pretrained(folder)
    for file in files:
        if file is not None:
            file.save_pretrained(folder)
    return folder
