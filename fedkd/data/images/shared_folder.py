"""A folder of images without labels, to share among clients."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from fedkd.core.errors import MissingResourceError
from fedkd.core.storage import cache_dir
from fedkd.data.images.decoded import read_decoded, write_decoded
from fedkd.data.images.folder import EXTENSIONS, FORMAT, ImageFile, decode_files, walk
from fedkd.data.images.image_set import ImageSet
from fedkd.data.images.pixels import stack_pixels
from fedkd.data.shared import SharedImages, Unlabelled


@dataclass(frozen=True)
class FolderImages(SharedImages):
    """All image files below a folder, at any depth; what files and folders are called says nothing.

    An image is resized to cover the data's height and width and cropped to the centre; grey becomes colour, or colour
    grey, as the data are. Decoded once and kept in fedkd's cache, as by `ImageFolder`.

    Args:
        root: The folder.
        weight: As for `SharedImages`.
        fraction: As for `SharedImages`.
    """

    root: str | Path

    def load(self, train: ImageSet, public: np.ndarray) -> Unlabelled:
        """Return the folder's images, sorted by path."""
        root = Path(self.root).expanduser().resolve()
        if not root.is_dir():
            raise MissingResourceError(f"The folder of shared images {root} is not there: set shared.root to one.")
        files = sorted(walk(root, root.name))
        if not files:
            raise MissingResourceError(f"{root} has no image to share: put {', '.join(EXTENSIONS)} files there.")
        recipe = json.dumps([FORMAT, "shared", str(root), train.image_shape])
        source = hashlib.sha256(json.dumps([recipe, train.classes, files]).encode()).hexdigest()
        cache = cache_dir("images") / f"{root.name}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.safetensors"
        sets = read_decoded(cache, source)
        if sets is None:
            shared = _decode(root.parent, files, train.image_shape)
            sets = (Unlabelled.of(shared, train.classes).data,)
            write_decoded(cache, source, sets)
        return Unlabelled(sets[0], np.arange(len(sets[0])))


def _decode(root: Path, files: list[ImageFile], shape: tuple[int, int, int]) -> Tensor:
    """Decode files to uint8 (N, C, H, W), the shape being (C, H, W)."""
    channels, height, width = shape

    def images() -> Iterator[np.ndarray]:
        with closing(decode_files(root, [file.path for file in files], (width, height))) as decoded:
            for pixels in decoded:
                yield np.broadcast_to(pixels, shape) if channels == 3 else to_grey(pixels)

    return stack_pixels(images(), len(files))


def to_grey(pixels: np.ndarray) -> np.ndarray:
    """Weigh red, green and blue by their luminance (ITU-R BT.601, as Pillow does): uint8 (C, H, W) -> (1, H, W)."""
    if len(pixels) == 1:
        return pixels
    red, green, blue = pixels.astype(np.uint32)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(np.uint8)[None]
