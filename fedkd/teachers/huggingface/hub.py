"""Find the HuggingFace checkpoints of teachers, by short name too."""

from __future__ import annotations

import difflib
from typing import Any

from fedkd.core.errors import FedKDError
from fedkd.core.hub import Checkpoint, open_checkpoint
from fedkd.teachers.registry import resolve, teachers


def find_checkpoint(name: str, revision: str | None = None) -> Checkpoint:
    """Find a checkpoint by short name, folder or hub id, and read its configuration: see `open_checkpoint`.

    Raises:
        MissingResourceError: If the checkpoint is not found. The error names the searched places and what to do.
    """
    if not name:
        raise FedKDError("checkpoint is empty: give a short name, a folder or a HuggingFace hub id.")
    return open_checkpoint(resolve(name), revision, name, "teacher checkpoint", _nearest(name))


def is_dual_encoder(config: Any) -> bool:
    """Whether a configuration belongs to a model with an image tower and a text tower."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES

    return config.model_type in MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES


def _nearest(name: str) -> str:
    if name in teachers or any(name == entry.checkpoint for entry in teachers.registered.values()):
        return ""  # an exact name needs no hint
    nearest = difflib.get_close_matches(name, list(teachers), n=1, cutoff=0.5)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
