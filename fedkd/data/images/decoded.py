"""Decoded images on disk: written whole or not at all, mapped into memory, checked when read."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open

from fedkd.core.errors import FedKDError
from fedkd.data.images.image_set import ImageSet

Sets = tuple[ImageSet, ...]

_PARTS = ("train", "test")


def read_decoded(path: Path, source: str) -> Sets | None:
    """Return the sets kept in ``path``.

    Args:
        path: A file of `write_decoded`.
        source: The fingerprint of the files they must have been decoded from.

    Returns:
        The sets; None if the file is not there, is damaged, or was made from other files.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("source") != source:
                return None
            classes = tuple(json.loads(metadata["classes"]))
            parts = [part for part in _PARTS if part in metadata]
            sets = tuple(
                ImageSet(file.get_tensor(f"{part}.images"), file.get_tensor(f"{part}.targets"), classes)
                for part in parts
            )
        # The fingerprint is kept by the ImageSet, so this check costs nothing that a teacher's cache would not.
        intact = all(found.fingerprint == metadata[part] for part, found in zip(parts, sets, strict=True))
    except (OSError, SafetensorError, FedKDError, KeyError, ValueError):
        return None
    return sets if intact and sets else None


def write_decoded(path: Path, source: str, sets: Sets) -> None:
    """Keep a training and a test set, or a training set alone, in ``path``, replacing what was there in one step.

    Args:
        path: The file.
        source: The fingerprint of the files they were decoded from.
        sets: The one or two, of the same classes.
    """
    parts = dict(zip(_PARTS, sets, strict=False))
    tensors = {f"{part}.{name}": getattr(data, name) for part, data in parts.items() for name in ("images", "targets")}
    metadata = {
        "source": source,
        "classes": json.dumps(sets[0].classes),
        **{part: data.fingerprint for part, data in parts.items()},
    }
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    os.close(descriptor)
    try:
        safetensors.torch.save_file(tensors, temporary, metadata=metadata)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
