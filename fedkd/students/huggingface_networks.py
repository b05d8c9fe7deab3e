"""Any image classifier of transformers as a student, by ``hf/ID``, with or without pretrained weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedkd.core.errors import FedKDError, MissingResourceError, in_one_line, unknown_name
from fedkd.core.hub import Checkpoint, middle_pixel, open_checkpoint
from fedkd.students.family import Family
from fedkd.students.layers import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    NormalizeChannels,
    check_norm,
    check_per_channel,
    replace_batch_norms,
)
from fedkd.students.logits import logits_of
from fedkd.students.pretrained import take_weights
from fedkd.students.stem import enlarge, first_convolution

PREFIX = "hf/"

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_OF_CHECKPOINT = ("id2label", "label2id", "label_names", "num_classes", "transformers_version", "_name_or_path")
"""What a configuration says of the checkpoint's labels and origin, which the student does not share."""


class HuggingFaceStudent(nn.Module):
    """An image classifier of transformers, with the normalization that its weights expect.

    Args:
        network: Pixel values (B, C, H, W) -> an output with ``logits`` (B, K).
        normalize: Images (B, C, H, W) in [0, 1] -> pixel values.
        recipe: The options of `huggingface_student` that make it again without its checkpoint, JSON-able.
    """

    def __init__(self, network: nn.Module, normalize: nn.Module, recipe: dict[str, Any]) -> None:
        super().__init__()
        self.normalize, self.network, self.recipe = normalize, network, recipe

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [0, 1] to logits (B, K)."""
        return logits_of(self.network(pixel_values=self.normalize(images), return_dict=True))


def huggingface_student(
    name: str,
    num_classes: int,
    in_channels: int = 3,
    image_size: int = 32,
    *,
    pretrained: bool = False,
    revision: str | None = None,
    small_stem: bool = False,
    norm: str = "batch",
    config: Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_width: int | None = None,
    **options: Any,
) -> nn.Module:
    """Return an image classifier of transformers, from images (B, C, H, W) in [0, 1] to logits (B, K).

    The network is made from the checkpoint's configuration for the data's classes, channels and image size. Images are
    standardized as the checkpoint's image processor does it, and are not resized.

    Args:
        name: A HuggingFace hub id, or a folder with a ``config.json``.
        num_classes: K. The last layer is new unless the checkpoint has as many labels.
        in_channels: C. The first convolution of pretrained weights is adapted to it: see
            `fedkd.students.stem.for_channels`.
        image_size: H in pixels, and W unless ``image_width`` is given. Pretrained position embeddings are interpolated
            once.
        pretrained: Whether to start from the checkpoint's weights. Otherwise ``config.json`` suffices.
        revision: Branch, tag or commit on the hub.
        small_stem: Whether the first convolution gets stride 1, and a max-pooling behind it is left out: for images
            below 64 pixels.
        norm: "batch" or "group", in the place of BatchNorm, with the pretrained scales and offsets: see
            `fedkd.students.replace_batch_norms`. LayerNorm stays.
        config: A whole configuration in the place of the checkpoint's, which is then not read. A finished run keeps it.
        mean: Of each channel, in the place of the image processor's.
        std: Likewise.
        image_width: W in pixels, of oblong images.
        options: Values of the configuration, such as ``depths`` or ``hidden_dropout_prob``.

    Raises:
        MissingResourceError: If the checkpoint is not found, or needs a package that is not installed.
        FedKDError: If it is no image classifier, or the configuration has no such option.
    """
    check_norm(norm)
    check_name(name)
    if not isinstance(pretrained, bool):
        raise FedKDError(f"pretrained must be true or false for {PREFIX + name!r}, got {pretrained!r}.")
    size = (image_size, image_size if image_width is None else image_width)
    found = None if config is not None else open_checkpoint(name, revision, kind="student checkpoint")
    if found is None and pretrained:
        raise FedKDError(f"pretrained: true reads the configuration of {PREFIX + name!r}: leave out config.")
    for key, given in (("mean", mean), ("std", std)):
        check_per_channel(key, given, in_channels)
    base = _restored(config or {}) if found is None else found.config
    made = _for_data(base, name, num_classes, in_channels, size, options)
    network = _new(made, name, (in_channels, *size))
    reverse = False
    if found is not None and (pretrained or mean is None or std is None):
        own_mean, own_std, reverse = _normalization(found, pretrained)
        mean, std = own_mean if mean is None else mean, own_std if std is None else std
    if found is not None and pretrained:
        weights = _weights(found, name)
        if reverse and (stem := first_convolution(network)) is not None:  # turn the weights instead of all images
            weights[f"{stem[0]}.weight"] = weights[f"{stem[0]}.weight"].flip(1)
        body = f"{network.base_model_prefix}."  # of it all must be there; a last layer may be new
        own = network.state_dict().items()
        head = {key: value for key, value in own if key not in weights and not key.startswith(body)}
        take_weights(network, {**weights, **head}, num_classes, (in_channels, *size), PREFIX + name)
    if small_stem:
        enlarge(network, PREFIX + name)
    replace_batch_norms(network, norm)
    mean, std = IMAGENET_MEAN if mean is None else mean, IMAGENET_STD if std is None else std
    normalize = NormalizeChannels.of(mean, std, in_channels)
    kept = {key: value for key, value in made.to_dict().items() if key not in _OF_CHECKPOINT}
    recipe = {"config": kept, "mean": list(mean), "std": list(std)}
    return HuggingFaceStudent(network, normalize, recipe)


def check_name(name: str) -> None:
    """Raise if a name is empty. Whether there is such a checkpoint `check_source` tells.

    Raises:
        FedKDError: If it is empty.
    """
    if not name:
        raise FedKDError(
            f"{PREFIX!r} needs a HuggingFace hub id or a folder behind it, such as 'hf/microsoft/resnet-18'."
        )


def check_source(name: str, config: Any = None, revision: str | None = None, **options: Any) -> None:
    """Raise unless there is such a checkpoint, of an image classifier.

    Args:
        name: A hub id or a folder.
        config: A configuration in its place.
        revision: On the hub.
        options: Others, which do not matter.

    Raises:
        MissingResourceError: If it is not found.
        FedKDError: If it is no image classifier.
    """
    if config is None:
        _check_kind(open_checkpoint(name, revision, kind="student checkpoint").config, name)


def _check_kind(config: Any, name: str) -> None:
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING as KNOWN

    if type(config) not in KNOWN:
        raise FedKDError(f"{PREFIX + name!r} ({config.model_type}) is no image classifier of transformers.")


def _restored(config: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    rest = {key: value for key, value in config.items() if key != "model_type"}
    if "model_type" not in config:
        raise FedKDError("config must have a model_type, as config.json of a checkpoint has it.")
    try:
        return AutoConfig.for_model(config["model_type"], **rest)
    except Exception as error:  # a configuration's own checks
        raise FedKDError(f"config: {in_one_line(error)}") from error


def _for_data(
    config: Any, name: str, num_classes: int, channels: int, size: tuple[int, int], options: Mapping[str, Any]
) -> Any:
    """Return a configuration for the data, with options of its own."""
    _check_kind(config, name)
    settings = {key: value for key, value in config.to_dict().items() if key not in _OF_CHECKPOINT}
    has_tower = "vision_config" in settings  # of a dual encoder
    tower = settings["vision_config"] if has_tower else settings
    side: Any = size[0] if size[0] == size[1] else list(size)
    facts: dict[str, Any] = {"num_channels": channels, "image_size": side}
    for key, value in facts.items():
        if hasattr(config.vision_config if has_tower else config, key):
            tower[key] = value
    if config.model_type == "timm_wrapper" and channels != 3:
        settings["model_args"] = {**(settings.get("model_args") or {}), "in_chans": channels}
    for key, value in options.items():
        if key not in tower:
            raise unknown_name(f"option of student {PREFIX + name!r}", key, set(tower) - set(facts) - {"model_type"})
        tower[key] = value
    try:
        made = type(config).from_dict({**settings, "dtype": "float32"}, num_labels=num_classes)
    except Exception as error:  # a configuration's own checks
        raise FedKDError(f"{PREFIX + name!r} refuses its options: {in_one_line(error)}") from error
    made.architectures = getattr(config, "architectures", None) or []  # it chooses among a family's classifiers
    return made


def _new(config: Any, name: str, image_shape: tuple[int, int, int]) -> nn.Module:
    """Return a network of a configuration, with new weights."""
    from transformers import AutoModelForImageClassification

    try:
        return AutoModelForImageClassification.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except ImportError as error:
        raise MissingResourceError(f"{PREFIX + name!r} needs a package: {in_one_line(error)}") from error
    except Exception as error:  # the network's own code, of any configuration
        raise FedKDError(f"{PREFIX + name!r} cannot be made for images {image_shape}: {in_one_line(error)}") from error


def _weights(found: Checkpoint, name: str) -> dict[str, Tensor]:
    """Return a checkpoint's weights, without those that it lacks, which may be the last layer's alone."""
    from transformers import AutoModelForImageClassification

    with torch.random.fork_rng(devices=[]):  # what is lacking is drawn
        model, info = found.load(AutoModelForImageClassification, dtype=torch.float32, output_loading_info=True)
    lacking = {str(key) for key in info["missing_keys"]}
    if body := sorted(key for key in lacking if key.startswith(f"{model.base_model_prefix}.")):
        raise FedKDError(f"The weights of {PREFIX + name!r} lack {len(body)} of its network, such as {body[0]!r}.")
    return {key: value for key, value in model.state_dict().items() if key not in lacking}


def _normalization(found: Checkpoint, pretrained: bool) -> tuple[list[float], list[float], bool]:
    """Return the image processor's mean and standard deviation, and whether it gives blue, green, red."""
    from transformers import AutoImageProcessor

    config = getattr(found.config, "vision_config", found.config)
    channels = getattr(config, "num_channels", None) or 3
    try:
        processor = found.load(AutoImageProcessor)
    except FedKDError as error:
        folder = Path(found.path)
        has_none = folder.is_dir() and not any((folder / name).exists() for name in _PROCESSOR_FILES)
        if pretrained or not has_none:
            warnings.warn(
                f"Checkpoint {found.name!r} has no image processor that transformers can load ({in_one_line(error)}). "
                "Using ImageNet's mean and standard deviation; mean and std are options.",
                stacklevel=2,
            )
        return list(IMAGENET_MEAN), list(IMAGENET_STD), False
    try:
        black, white = (middle_pixel(processor, value, channels) for value in (0, 255))
    except Exception as error:  # the processor's own code
        raise FedKDError(
            f"{type(processor).__name__} of {found.name!r} does not take an image of {channels} channel(s): "
            f"{in_one_line(error)}. Give mean and std."
        ) from error
    scale = white - black
    mean, std = ([float(f"{value:.7g}") for value in each.tolist()] for each in (-black / scale, 1 / scale))
    reverse = bool(processor.to_dict().get("do_flip_channel_order"))
    return (mean[::-1], std[::-1], True) if reverse else (mean, std, False)


def _portable(spec: Mapping[str, Any], student: nn.Module) -> dict[str, Any]:
    """Return the options of a student that make it again without its checkpoint."""
    (part,) = (each for each in student.modules() if isinstance(each, HuggingFaceStudent))
    return {**{key: value for key, value in spec.items() if key != "revision"}, **part.recipe}


HUGGINGFACE = Family(
    PREFIX,
    "ID",
    huggingface_student,
    check_name,
    None,
    "any image classifier of the HuggingFace hub, or of a folder with a config.json",
    check_source,
    _portable,
)
