"""A folder of unlabeled images that all clients share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from fedkd.core.errors import MissingResourceError
from fedkd.data.images.decoded import Sets, decoded_once
from fedkd.data.images.folder import EXTENSIONS, FORMAT, ImageFile, decode_files, walk
from fedkd.data.images.image_set import ImageSet
from fedkd.data.images.pixels import stack_pixels
from fedkd.data.shared import SharedImages, Unlabeled


@dataclass(frozen=True)
class FolderImages(SharedImages):
    """All image files below a folder, at any depth. The names of files and folders have no meaning.

    Each image is resized to cover the height and width of the data's images, then the center is cropped. It becomes
    grayscale or RGB as the data's images are. The images are decoded once and cached, as in `ImageFolder`.

    Args:
        root: The folder.
        weight: See `SharedImages`.
        fraction: See `SharedImages`.
    """

    root: str | Path

    def load(self, train: ImageSet, public: np.ndarray) -> Unlabeled:
        """Return the folder's images, sorted by path."""
        root = Path(self.root).expanduser().resolve()
        if not root.is_dir():
            raise MissingResourceError(
                f"The folder of shared images {root} does not exist. Set shared.root to another."
            )
        files = sorted(walk(root, root.name))
        if not files:
            raise MissingResourceError(f"{root} has no image to share. Put {', '.join(EXTENSIONS)} files there.")
        recipe = json.dumps([FORMAT, "shared", str(root), train.image_shape])
        source = json.dumps([recipe, train.classes, files])

        def decode() -> Sets:
            return (Unlabeled.of(_decode(root.parent, files, train.image_shape), train.classes).data,)

        (data,) = decoded_once(root.name, recipe, source, decode)
        return Unlabeled(data, np.arange(len(data)))


def _decode(root: Path, files: list[ImageFile], shape: tuple[int, int, int]) -> Tensor:
    """Decode files to uint8 (N, C, H, W), each to ``shape``, (C, H, W)."""
    channels, height, width = shape

    def images() -> Iterator[np.ndarray]:
        with closing(decode_files(root, [file.path for file in files], (width, height))) as decoded:
            for pixels in decoded:
                yield np.broadcast_to(pixels, shape) if channels == 3 else to_gray(pixels)

    return stack_pixels(images(), len(files))


def to_gray(pixels: np.ndarray) -> np.ndarray:
    """Convert to luminance (ITU-R BT.601, with Pillow's rounding): uint8 (C, H, W) -> uint8 (1, H, W)."""
    if len(pixels) == 1:
        return pixels
    red, green, blue = pixels.astype(np.uint32)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(np.uint8)[None]
