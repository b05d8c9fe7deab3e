"""A folder of image files, decoded once and cached on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
import torch

from fedkd.core.errors import MAX_PIXELS, FedKDError, MissingResourceError, check_range, unknown_name
from fedkd.data.images.decoded import Sets, decoded_once
from fedkd.data.images.image_set import ImageSet, with_same_channels
from fedkd.data.images.pixels import pil_pixels, stack_pixels
from fedkd.data.sources import ImageSource

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
FORMAT = 3  # of the cached file: increase it when the same image files decode to other pixels
ORIENTATION = 0x0112  # the EXIF tag
T = TypeVar("T")
_CHUNK = 64  # images per task: for single small images the overhead of a task exceeds the decoding


class ImageFile(NamedTuple):
    """An image file, with the size and time that show whether it changed."""

    path: str  # relative to a root, with "/"
    size: int
    mtime_ns: int

    @property
    def class_name(self) -> str:
        """Return the name of the folder below ``train`` or ``test``."""
        return self.path.split("/")[1]


@dataclass(frozen=True)
class ImageFolder(ImageSource):
    """Image files in ``root/train/<class>/`` and ``root/test/<class>/``.

    The images are decoded once and cached in ``images`` in fedkd's cache. They are decoded again when a file is added,
    removed or changed. The classes are the folders of ``train``, sorted. Each has at least one image there; it may have
    none in ``test``. Files and folders whose names begin with a dot are left out. An image is turned as its EXIF data
    say. Of several frames the first counts. Links to folders are followed, but not back to a folder that they are in.
    Grayscale and RGB files may be mixed: see `fedkd.data.images.pixels.stack_pixels`.

    Args:
        root: The folder that contains ``train/`` and ``test/``.
        image_size: Resize the shorter side to this many pixels and crop the center. None requires that all files have
            the same size.
    """

    root: str | Path
    image_size: int | None = None

    def __post_init__(self) -> None:
        if self.image_size is not None:
            check_range("image_size", self.image_size, low=1, high=MAX_PIXELS, whole=True)

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Return the training and the test set, from the cache if the files have not changed."""
        root = self._existing("train/ and test/")
        (classes, train), (test_classes, test) = _scan(root, "train"), _scan(root, "test")
        if empty := sorted(set(classes) - {file.class_name for file in train}):
            raise FedKDError(
                f"{root / 'train' / empty[0]} has no image. Put {', '.join(EXTENSIONS)} files there, or remove it."
            )
        for name in test_classes:
            if name not in classes:
                raise unknown_name(f"class in {root / 'test'}", name, classes)
        recipe = json.dumps([FORMAT, str(root), self.image_size])
        files = json.dumps([recipe, classes, train, test])

        def decode() -> Sets:
            return self._decode(root, classes, train), self._decode(root, classes, test)

        train_set, test_set = decoded_once(root.name, recipe, files, decode)
        return with_same_channels(train_set, test_set)

    def load_part(self, part: str, classes: Sequence[str] | None = None) -> ImageSet:
        """Return the images of ``train`` or ``test`` alone: what one machine of several has.

        Args:
            part: ``"train"`` or ``"test"``.
            classes: The names of all classes; a folder of another name is refused. None takes those that are there.

        Raises:
            MissingResourceError: If there is no such folder, or no image in it.
            FedKDError: If a class is not among them.
        """
        root = self._existing(f"{part}/")
        found, files = _scan(root, part)
        known = found if classes is None else list(classes)
        for name in found:
            if name not in known:
                raise unknown_name(f"class in {root / part}", name, known)
        recipe = json.dumps([FORMAT, str(root), self.image_size, part])
        (images,) = decoded_once(
            root.name, recipe, json.dumps([recipe, known, files]), lambda: (self._decode(root, known, files),)
        )
        return images

    def _existing(self, parts: str) -> Path:
        root = Path(self.root).expanduser().resolve()
        if not root.is_dir():
            raise MissingResourceError(f"The image folder {root} does not exist. Set root to a folder with {parts}.")
        return root

    def _decode(self, root: Path, classes: list[str], files: list[ImageFile]) -> ImageSet:
        names = [file.path for file in files]
        with closing(decode_files(root, names, square(self.image_size))) as pixels:
            images = stack_pixels(pixels, len(names), names)
        numbers = {name: i for i, name in enumerate(classes)}
        return ImageSet(images, torch.tensor([numbers[file.class_name] for file in files]), tuple(classes))


def _scan(root: Path, part: str) -> tuple[list[str], list[ImageFile]]:
    """Return the class folders of ``root/part``, and the image files below them, both sorted."""
    if not (root / part).is_dir():
        raise MissingResourceError(
            f"{root} has no folder {part}/. An image folder has train/ and test/, each with one folder per class."
        )
    classes = sorted(entry.name for entry in os.scandir(root / part) if entry.is_dir() and entry.name[0] != ".")
    for name in classes:
        if not is_text(name):
            raise FedKDError(
                f"The class folder {os.fsencode(name)!r} in {printable(root / part)} has a name that is not UTF-8. "
                "Rename it: results are reported by class name."
            )
    files = [file for name in classes for file in walk(root / part / name, f"{part}/{name}")]
    if not files:
        raise MissingResourceError(
            f"{root / part} has no image. Put {', '.join(EXTENSIONS)} files there, in one folder per class."
        )
    return classes, sorted(files)


def is_text(name: str) -> bool:
    """Whether a name on disk is valid UTF-8."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def printable(path: Path | str) -> str:
    r"""Return a path with ``\xNN`` for each byte that is not UTF-8, so that it can be written anywhere."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def walk(folder: Path, relative: str, above: frozenset[str] = frozenset()) -> Iterator[ImageFile]:
    """Yield the image files below ``folder`` at any depth, in no order; their paths start with ``relative``.

    Args:
        folder: Where to look.
        relative: What paths start with.
        above: The real paths of the folders that this one is in. A link back to one of them has nothing new.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in os.scandir(folder):
        if entry.name.startswith("."):  # such as macOS's ._1.png, which holds no image
            continue
        if entry.is_dir():
            yield from walk(folder / entry.name, f"{relative}/{entry.name}", above | {real})
        elif entry.name.lower().endswith(EXTENSIONS) and entry.is_file():  # reading a pipe would wait forever
            stat = entry.stat()
            yield ImageFile(f"{relative}/{entry.name}", stat.st_size, stat.st_mtime_ns)


def square(image_size: int | None) -> tuple[int, int] | None:
    """Return (width, height) of images whose shorter side has ``image_size`` pixels before they are cropped."""
    return None if image_size is None else (image_size, image_size)


def decode_files(root: Path, names: list[str], size: tuple[int, int] | None) -> Generator[np.ndarray, None, None]:
    """Decode files with `decode_file`, as `decode_each` does."""
    return decode_each(names, lambda name: decode_file(root, name, size))


def decode_each(items: Sequence[T], decode: Callable[[T], np.ndarray]) -> Generator[np.ndarray, None, None]:
    """Call ``decode`` on items in threads, and yield their pixels in order. A terminal shows a progress bar."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    chunks = [items[i : i + _CHUNK] for i in range(0, len(items), _CHUNK)]
    pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1))
    try:
        decoded = pool.map(lambda chunk: [decode(item) for item in chunk], chunks)
        description = f"Decoding {len(items):,} images"
        for images in track(decoded, description, len(chunks), console=console, disable=not console.is_terminal):
            yield from images
    finally:  # if the reader stops early, the remaining files are not decoded
        pool.shutdown(cancel_futures=True)


def decode_file(root: Path, name: str, size: tuple[int, int] | None) -> np.ndarray:
    """Decode a file below ``root``, or of an absolute name, to uint8 (C, H, W): see `decode_image`."""
    return decode_image(os.path.join(root, name), root / name, size)


def decode_image(source: str | BinaryIO, called: str | Path, size: tuple[int, int] | None) -> np.ndarray:
    """Decode one image to uint8 (C, H, W).

    Args:
        source: The file, by its path or open.
        called: Its name in an error.
        size: (width, height): resize the image (bicubic, antialiased) to cover it, then crop the center. None keeps the
            image's own size.

    Raises:
        FedKDError: If the file cannot be read as an image.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(source) as opened:
            turned = opened.getexif().get(ORIENTATION, 1) != 1  # as phones write photographs
            return fitted_pixels(ImageOps.exif_transpose(opened) if turned else opened, size)
    except FedKDError as error:
        raise FedKDError(f"{printable(called)}: {error}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FedKDError(f"{printable(called)} could not be read as an image ({error}).") from error


def fitted_pixels(image: Any, size: tuple[int, int] | None) -> np.ndarray:
    """Return a PIL image's pixels, uint8 (C, H, W), resized and cropped to ``size`` as `decode_image` says."""
    from PIL import Image, ImageOps

    if size is None or image.size == size:
        return pil_pixels(image)
    gray = image.mode in ("L", "1")  # other modes, such as palettes, cannot be resized: convert them to RGB
    return pil_pixels(ImageOps.fit(image.convert("L" if gray else "RGB"), size, Image.Resampling.BICUBIC))
