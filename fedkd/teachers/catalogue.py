"""The teachers that fedkd knows by name, and `create`, which makes these and any other HuggingFace checkpoint."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedkd.errors import unknown_name
from fedkd.teachers.base import Teacher
from fedkd.teachers.hub import find_checkpoint, is_dual_encoder
from fedkd.teachers.huggingface import FeatureTeacher
from fedkd.teachers.registry import TeacherEntry, teachers
from fedkd.teachers.zero_shot import ZeroShotTeacher

_DIGITS = str(Path(__file__).parent / "checkpoints" / "digits")

# name, checkpoint, family, licence, image size, millions of parameters
_ZERO_SHOT: list[tuple[str, str, str, str, int, float]] = [
    ("clip-vit-b32", "openai/clip-vit-base-patch32", "CLIP", "MIT", 224, 151),
    ("clip-vit-b16", "openai/clip-vit-base-patch16", "CLIP", "MIT", 224, 150),
    ("clip-vit-l14", "openai/clip-vit-large-patch14", "CLIP", "MIT", 224, 428),
    ("clip-vit-b32-laion2b", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "OpenCLIP", "MIT", 224, 151),
    ("clip-vit-l14-datacomp", "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K", "OpenCLIP", "MIT", 224, 428),
    ("siglip-b16", "google/siglip-base-patch16-224", "SigLIP", "Apache-2.0", 224, 203),
    ("siglip-so400m", "google/siglip-so400m-patch14-384", "SigLIP", "Apache-2.0", 384, 878),
    ("siglip2-b16", "google/siglip2-base-patch16-224", "SigLIP 2", "Apache-2.0", 224, 375),
]
_FEATURES: list[tuple[str, str, str, str, int, float]] = [
    ("digits-tiny", _DIGITS, "ResNet", "Apache-2.0", 32, 0.2),
    ("dinov2-s", "facebook/dinov2-small", "DINOv2", "Apache-2.0", 224, 22),
    ("dinov2-b", "facebook/dinov2-base", "DINOv2", "Apache-2.0", 224, 87),
    ("dinov2-l", "facebook/dinov2-large", "DINOv2", "Apache-2.0", 224, 304),
    ("vit-b16", "google/vit-base-patch16-224-in21k", "ViT", "Apache-2.0", 224, 86),
    ("convnextv2-t", "facebook/convnextv2-tiny-22k-224", "ConvNeXt V2", "Apache-2.0", 224, 28),
    ("resnet-50", "microsoft/resnet-50", "ResNet", "Apache-2.0", 224, 24),
]
for _kind, _rows in ((ZeroShotTeacher, _ZERO_SHOT), (FeatureTeacher, _FEATURES)):
    for _name, *_columns in _rows:
        teachers.add(_name, TeacherEntry(_name, _kind, *_columns))  # type: ignore[arg-type]


def create(name: str, **options: Any) -> Teacher:
    """Make a teacher from a short name, a HuggingFace hub id, or a local checkpoint folder.

    A checkpoint without a short name becomes a `ZeroShotTeacher` if it has an image and a text tower (what transformers
    lists under zero-shot image classification: CLIP, SigLIP, ALIGN, ...), and otherwise a `FeatureTeacher`.

    Args:
        name: One of `teachers`, such as ``"dinov2-s"``; or ``"facebook/dinov2-small"``; or a folder.
        options: Further arguments of the teacher, such as ``image_size=98``.

    Raises:
        MissingResourceError: If it is none of these, or a hub checkpoint that cannot be had here.
        FedKDError: If an option is unknown, or the checkpoint cannot be used.
    """
    if name in teachers:
        _check_options(name, teachers[name].factory, options, bool(teachers[name].checkpoint))
        return teachers[name].create(**options)
    found = find_checkpoint(name, options.get("revision"))
    kind = ZeroShotTeacher if is_dual_encoder(found.config) else FeatureTeacher
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
