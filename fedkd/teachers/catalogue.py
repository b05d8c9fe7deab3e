"""The teachers with short names, and `create`, which builds a teacher from a short name or any checkpoint."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.core.errors import unknown_name
from fedkd.teachers.registry import TeacherEntry, teachers

if TYPE_CHECKING:  # the list of teachers is shown without importing a library
    from fedkd.teachers.teacher import Teacher

_DIGITS = str(Path(__file__).parent / "checkpoints" / "digits")

# name, checkpoint, family, license (as the model card states it), image size, millions of parameters
_ZERO_SHOT: list[tuple[str, str, str, str, int, float]] = [
    ("clip-vit-b32", "openai/clip-vit-base-patch32", "CLIP", "MIT", 224, 151),
    ("clip-vit-b16", "openai/clip-vit-base-patch16", "CLIP", "MIT", 224, 150),
    ("clip-vit-l14", "openai/clip-vit-large-patch14", "CLIP", "MIT", 224, 428),
    ("clip-vit-b32-laion2b", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "OpenCLIP", "MIT", 224, 151),
    ("clip-vit-l14-datacomp", "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K", "OpenCLIP", "MIT", 224, 428),
    ("metaclip-b32", "facebook/metaclip-b32-400m", "MetaCLIP", "CC-BY-NC-4.0", 224, 151),
    ("siglip-b16", "google/siglip-base-patch16-224", "SigLIP", "Apache-2.0", 224, 203),
    ("siglip-so400m", "google/siglip-so400m-patch14-384", "SigLIP", "Apache-2.0", 384, 878),
    ("siglip2-b16", "google/siglip2-base-patch16-224", "SigLIP 2", "Apache-2.0", 224, 375),
    ("siglip2-b16-naflex", "google/siglip2-base-patch16-naflex", "SigLIP 2", "Apache-2.0", 256, 375),
    ("align-b", "kakaobrain/align-base", "ALIGN", "not stated", 289, 172),
]
_FEATURES: list[tuple[str, str, str, str, int, float]] = [
    ("digits-tiny", _DIGITS, "ResNet", "Apache-2.0", 32, 0.2),
    ("dinov2-s", "facebook/dinov2-small", "DINOv2", "Apache-2.0", 224, 22),
    ("dinov2-b", "facebook/dinov2-base", "DINOv2", "Apache-2.0", 224, 87),
    ("dinov2-l", "facebook/dinov2-large", "DINOv2", "Apache-2.0", 224, 304),
    ("dinov2-s-registers", "facebook/dinov2-with-registers-small", "DINOv2", "Apache-2.0", 224, 22),
    ("dinov3-s", "facebook/dinov3-vits16-pretrain-lvd1689m", "DINOv3", "DINOv3 License", 224, 22),
    ("dinov3-b", "facebook/dinov3-vitb16-pretrain-lvd1689m", "DINOv3", "DINOv3 License", 224, 86),
    ("dinov3-convnext-t", "facebook/dinov3-convnext-tiny-pretrain-lvd1689m", "DINOv3", "DINOv3 License", 224, 28),
    ("vit-b16", "google/vit-base-patch16-224-in21k", "ViT", "Apache-2.0", 224, 86),
    ("mae-b16", "facebook/vit-mae-base", "MAE", "Apache-2.0", 224, 86),
    ("beit-b16", "microsoft/beit-base-patch16-224-pt22k-ft22k", "BEiT", "Apache-2.0", 224, 86),
    ("deit-s16", "facebook/deit-small-distilled-patch16-224", "DeiT", "Apache-2.0", 224, 22),
    ("convnext-t", "facebook/convnext-tiny-224", "ConvNeXt", "Apache-2.0", 224, 28),
    ("convnextv2-t", "facebook/convnextv2-tiny-22k-224", "ConvNeXt V2", "Apache-2.0", 224, 28),
    ("swin-t", "microsoft/swin-tiny-patch4-window7-224", "Swin", "Apache-2.0", 224, 28),
    ("swinv2-t", "microsoft/swinv2-tiny-patch4-window8-256", "Swin V2", "Apache-2.0", 256, 28),
    ("resnet-50", "microsoft/resnet-50", "ResNet", "Apache-2.0", 224, 24),
    ("efficientnet-b0", "google/efficientnet-b0", "EfficientNet", "Apache-2.0", 224, 4),
    ("timm-efficientnet-lite0", "timm/efficientnet_lite0.ra_in1k", "timm", "Apache-2.0", 224, 3.4),
]
_CLASSIFIERS: list[tuple[str, str, str, str, int, float]] = [
    ("vit-b16-cifar10", "nateraw/vit-base-patch16-224-cifar10", "ViT classifier", "Apache-2.0", 224, 86),
]
_CATALOGUE = (
    ("fedkd.teachers.huggingface.zero_shot:ZeroShotTeacher", _ZERO_SHOT),
    ("fedkd.teachers.huggingface.feature:FeatureTeacher", _FEATURES),
    ("fedkd.teachers.huggingface.classifier:ClassifierTeacher", _CLASSIFIERS),
)
for _kind, _rows in _CATALOGUE:
    for _name, *_columns in _rows:
        teachers.add(_name, TeacherEntry(_name, _kind, *_columns))  # type: ignore[arg-type]


def create(name: str, **options: Any) -> Teacher:
    """Build a teacher from a short name, a HuggingFace hub id, or a local checkpoint folder.

    A checkpoint without a short name becomes a `ZeroShotTeacher` if it has an image tower and a text tower (the models
    that transformers lists for zero-shot image classification: CLIP, SigLIP, ALIGN, ...), else a `FeatureTeacher`. To
    use a classifier's own labels, build a `ClassifierTeacher` by its class.

    Args:
        name: A short name in `teachers`, such as ``"dinov2-s"``; a hub id, such as ``"facebook/dinov2-small"``; or a
            folder.
        options: Further arguments of the teacher, such as ``image_size=98``.

    Raises:
        MissingResourceError: If the name is none of these, or the checkpoint cannot be downloaded.
        FedKDError: If an option is unknown, or the checkpoint cannot be used.
    """
    if name in teachers:
        _check_options(name, teachers[name].load(), options, bool(teachers[name].checkpoint))
        return teachers[name].create(**options)
    from fedkd.teachers.huggingface.feature import FeatureTeacher
    from fedkd.teachers.huggingface.hub import find_checkpoint, is_dual_encoder
    from fedkd.teachers.huggingface.zero_shot import ZeroShotTeacher

    found = find_checkpoint(name, options.get("revision"))
    kind: Any = ZeroShotTeacher if is_dual_encoder(found.config) else FeatureTeacher
    _check_options(name, kind, options, True)
    return kind(name, **options)


def _check_options(name: str, factory: Callable[..., Teacher], options: dict[str, Any], has_checkpoint: bool) -> None:
    parameters = inspect.signature(factory).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    allowed = list(parameters)[1:] if has_checkpoint else list(parameters)
    for option in options:
        if option not in allowed:
            raise unknown_name(f"option of teacher {name}", option, allowed)
