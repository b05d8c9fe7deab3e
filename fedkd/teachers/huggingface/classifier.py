"""Teachers that are complete classifiers: their own labels cover the data's classes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from fedkd.core.errors import FedKDError, unknown_name
from fedkd.teachers.huggingface.feature import HuggingFaceTeacher
from fedkd.teachers.huggingface.hub import find_checkpoint
from fedkd.teachers.huggingface.templates import plain_name


class LabelHead(nn.Module):
    """Merge a classifier's labels into classes: logits (B, L) -> logits (B, K).

    The probability of a class is the sum of the probabilities of its labels, so its logit is the logsumexp of their
    logits. Labels that belong to no class are dropped, and the softmax renormalizes over the rest.

    Args:
        groups: The positions of each class's labels, at least one per class.
    """

    labels: Tensor
    absent: Tensor

    def __init__(self, groups: Sequence[Sequence[int]]) -> None:
        super().__init__()
        widest = max(map(len, groups))
        padded = [[*group, *[-1] * (widest - len(group))] for group in groups]
        labels = torch.tensor(padded)  # (K, G)
        self.register_buffer("absent", labels < 0)
        self.register_buffer("labels", labels.clamp(min=0))

    def forward(self, logits: Tensor) -> Tensor:
        """(B, L) -> (B, K)."""
        grouped = logits.float()[:, self.labels].masked_fill(self.absent, -torch.inf)  # (B, K, G)
        return grouped.logsumexp(dim=2)


class ClassifierTeacher(HuggingFaceTeacher):
    """A HuggingFace image classifier with its own labels. Nothing is fitted, and clients send nothing.

    Its features are its own logits (B, L), which are cached. The head merges labels into the data's classes.

    Args:
        checkpoint: A short name, a hub id, or a folder.
        labels: The checkpoint's labels of some classes, by name or number, such as ``{"cat": ["tabby, tabby cat",
            "Persian cat", 284]}``. The other classes are matched by name: case and underscores are ignored, and one
            synonym of a label ("tench, Tinca tinca") is enough.
        image_size: Side of the square input in pixels; None uses the checkpoint's own.
        dtype: "auto" is bfloat16 on CUDA (float16 where a GPU lacks it) and float32 elsewhere.
        revision: Branch, tag or commit on the hub.

    Raises:
        MissingResourceError: If the checkpoint cannot be found.
        FedKDError: If a value is wrong, the checkpoint is not a classifier, or (in `prepare`) its labels do not cover
            the data's classes.
    """

    not_in_features = HuggingFaceTeacher.not_in_features | {"labels"}

    def __init__(
        self,
        checkpoint: str,
        labels: dict[str, list[str | int]] | None = None,
        image_size: int | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        revision: str | None = None,
    ) -> None:
        from transformers import AutoModelForImageClassification

        found = find_checkpoint(checkpoint, revision)
        model = found.load_model(AutoModelForImageClassification)
        super().__init__(found, model, getattr(model.config, "num_channels", None) or 3, image_size, dtype)
        self.labels = dict(labels or {})

    @property
    def own_labels(self) -> tuple[str, ...]:
        """Return the checkpoint's L labels."""
        names = self.model.config.id2label
        return tuple(str(names[position]) for position in range(len(names)))

    def features(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> the checkpoint's own logits (B, L) float32."""
        return self._call(self.model.forward, self.pixel_values(images)).logits.float()

    def prepare(self, classes: Sequence[str]) -> None:
        """Match the class names with the labels, and build the head."""
        groups = match_labels(classes, self.own_labels, self.labels, str(self.checkpoint))
        super().prepare(classes)
        self.head = LabelHead(groups).to(self.device)


def match_labels(
    classes: Sequence[str], labels: Sequence[str], given: Mapping[str, Sequence[str | int]], checkpoint: str
) -> list[list[int]]:
    """Return the positions of each class's labels.

    Args:
        classes: The data's K classes.
        labels: The checkpoint's L labels.
        given: The labels of some classes; the others are matched by name.
        checkpoint: The checkpoint's name, for error messages.

    Raises:
        FedKDError: If a class has no label, a label has two classes, or ``given`` contains an unknown name.
    """
    for name in given:
        if name not in classes:
            raise unknown_name("class in labels", name, classes)
    positions: dict[str, list[int]] = {}
    for position, label in enumerate(labels):
        for synonym in {plain_name(part) for part in (label, *label.split(","))}:
            positions.setdefault(synonym, []).append(position)
    groups = [_group(name, given.get(name), labels, positions) for name in classes]

    lacking = [name for name, group in zip(classes, groups, strict=True) if not group]
    if lacking:
        raise FedKDError(
            f"Checkpoint {checkpoint!r} has no label for {len(lacking)} of the {len(classes)} classes "
            f"({_some(lacking)}); its {len(labels)} labels are: {_some(labels)}. Set labels to map classes to "
            f"labels, such as {{{lacking[0]!r}: [{_nearest(lacking[0], labels)!r}]}} (its config.json and own_labels "
            "list all labels), or fit a head to it with FeatureTeacher."
        )
    owner: dict[int, str] = {}
    for name, group in zip(classes, groups, strict=True):
        for position in group:
            if owner.setdefault(position, name) != name:
                raise FedKDError(f"Label {labels[position]!r} belongs to two classes: {owner[position]}, {name}.")
    return groups


def _group(
    name: str, given: Sequence[str | int] | None, labels: Sequence[str], positions: Mapping[str, list[int]]
) -> list[int]:
    """Return the positions of one class's labels; empty if no label has its name."""
    group = []
    for label in [name] if given is None else given:
        if isinstance(label, int):
            if label not in range(len(labels)):
                raise FedKDError(f"Label of class {name}: number {label} is outside 0..{len(labels) - 1}.")
            group.append(label)
            continue
        found = positions.get(plain_name(label), [])
        whole = [position for position in found if plain_name(labels[position]) == plain_name(label)]
        if given is not None and not found:
            near = _nearest(label, labels)
            raise FedKDError(
                f"Unknown label of class {name} {label!r}. Did you mean {near!r}? Labels: {_some(labels)}."
            )
        if len(whole or found) > 1:
            both = " and ".join(f"{labels[position]!r} (number {position})" for position in found)
            raise FedKDError(f"{label!r} occurs in several labels, {both}: give the full label or its number.")
        group += whole or found
    return list(dict.fromkeys(group))


def _some(names: Sequence[str], most: int = 20) -> str:
    """List some names in quotes, since a label may contain commas."""
    return ", ".join(map(repr, names[:most])) + (f", ... ({len(names) - most} more)" if len(names) > most else "")


def _nearest(name: str, labels: Sequence[str]) -> str:
    """Return the label with the synonym most similar to ``name``."""

    def similarity(label: str) -> float:
        return max(
            difflib.SequenceMatcher(None, plain_name(name), plain_name(part)).ratio()
            for part in (label, *label.split(","))
        )

    return max(labels, key=similarity)
