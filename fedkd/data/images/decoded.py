"""Files of decoded images: written atomically, memory-mapped, verified when read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
from lightning.pytorch.utilities import rank_zero_warn
from safetensors import SafetensorError, safe_open

from fedkd.core.errors import FedKDError, in_one_line
from fedkd.core.storage import CannotWriteError, cache_dir, replacing
from fedkd.data.images.image_set import ImageSet

Sets = tuple[ImageSet, ...]

_PARTS = ("train", "test")
_TENSORS = ("images", "targets")


def decoded_once(name: str, recipe: str, source: str, decode: Callable[[], Sets]) -> Sets:
    """Return image sets from fedkd's cache, or decode them and keep them there.

    Args:
        name: A name for people who look into the cache.
        recipe: Where the images come from and how they are decoded. Sets with one recipe replace each other.
        source: The state of the image files, such as their sizes and times. Another state is decoded again.
        decode: Makes the sets.
    """
    state = hashlib.sha256(source.encode()).hexdigest()
    try:
        folder = cache_dir("images")
    except FedKDError as error:
        rank_zero_warn(f"{error} The images are decoded again the next time.")
        return decode()
    file = folder / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.safetensors"
    sets = read_decoded(file, state)
    if sets is None:
        sets = decode()
        write_decoded(file, state, sets)
    return sets


def read_decoded(path: Path, source: str) -> Sets | None:
    """Read the image sets in ``path``.

    Args:
        path: A file that `write_decoded` wrote.
        source: The fingerprint of the image files that the sets must come from.

    Returns:
        The sets, or None if the file is missing, damaged, or made from other image files.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("source") != source:
                return None
            classes = tuple(json.loads(metadata["classes"]))
            parts = [part for part in _PARTS if part in metadata]
            if {f"{part}.{name}" for part in parts for name in _TENSORS} != set(file.keys()):
                return None
            sets = tuple(
                ImageSet(file.get_tensor(f"{part}.images"), file.get_tensor(f"{part}.targets"), classes)
                for part in parts
            )
        # The ImageSet keeps its fingerprint. The teacher cache needs it anyway, so this check adds no cost.
        intact = all(found.fingerprint == metadata[part] for part, found in zip(parts, sets, strict=True))
    except (OSError, SafetensorError, FedKDError, KeyError, ValueError):
        return None
    return sets if intact and sets else None


def write_decoded(path: Path, source: str, sets: Sets) -> None:
    """Write a training set, and a test set if there is one, to ``path``, which is replaced atomically.

    Where it cannot be written, a warning says so: the sets are in memory, and are decoded again the next time.

    Args:
        path: The file.
        source: The fingerprint of the image files that the sets come from.
        sets: One or two sets with the same classes.
    """
    parts = dict(zip(_PARTS, sets, strict=False))
    tensors = {f"{part}.{name}": getattr(data, name).contiguous() for part, data in parts.items() for name in _TENSORS}
    metadata = {
        "source": source,
        "classes": json.dumps(sets[0].classes),
        **{part: data.fingerprint for part, data in parts.items()},
    }
    try:
        with replacing(path) as temporary:
            safetensors.torch.save_file(tensors, temporary, metadata=metadata)
    except (CannotWriteError, SafetensorError) as error:
        rank_zero_warn(f"Decoded images are not kept: {path.parent} cannot be written ({in_one_line(error)}).")
