"""All images in one uint8 tensor. Clients, teachers and loaders hold indices into it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedkd.core.errors import FedKDError
from fedkd.data.images.pixels import is_colored, stack_pixels, to_pixels


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labeled images, decoded, in memory once.

    Args:
        images: uint8 (N, C, H, W) on the CPU, C is 1 or 3. They are kept in the memory format channels_last, in which
            batches are gathered without a further copy.
        targets: int64 (N,), each in ``[0, K)``.
        classes: The K class names, in the order of the labels.
        attributes: What else is known of each image, by name: one integer or string per image, such as the hospital
            that it comes from. `fedkd.partition.ByAttribute` reads them. Nothing that trains sees them.

    Raises:
        FedKDError: If a dtype or shape is wrong, a label is outside ``[0, K)``, a class name occurs twice, or an
            attribute has not one value for each image.
    """

    images: Tensor
    targets: Tensor
    classes: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        images, targets = self.images, self.targets
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise FedKDError(
                f"images must be uint8 (N, C, H, W) with C 1 or 3, got {images.dtype} {tuple(images.shape)}."
            )
        if len(images) and 0 in images.shape[2:]:
            raise FedKDError(f"images must have at least one pixel each, got the shape {tuple(images.shape)}.")
        if targets.dtype != torch.int64 or targets.shape != images.shape[:1]:
            raise FedKDError(
                f"targets must be int64 ({len(images)},), one per image, got {targets.dtype} {tuple(targets.shape)}."
            )
        if wrong := [name for name in self.classes if not isinstance(name, str)]:
            raise FedKDError(f"Class names must be strings, got {wrong[0]!r}.")
        if len(set(self.classes)) < len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise FedKDError(
                f"The class name {twice!r} occurs twice. Names must differ, since results are reported by name."
            )
        for name, values in self.attributes.items():
            if len(values) != len(images):
                raise FedKDError(
                    f"The attribute {name!r} must have one value for each of the {len(images)} images, got "
                    f"{len(values)}."
                )
        object.__setattr__(self, "images", images.contiguous(memory_format=torch.channels_last))
        object.__setattr__(self, "attributes", {name: one_by_one(each) for name, each in self.attributes.items()})
        outside = targets[(targets < 0) | (targets >= len(self.classes))]
        if len(outside):
            raise FedKDError(
                f"Label {int(outside[0])} is outside 0..{len(self.classes) - 1}: there are {len(self.classes)} classes "
                f"({', '.join(self.classes[:10])}{', ...' if len(self.classes) > 10 else ''})."
            )

    def __len__(self) -> int:
        """Return the number of images, N."""
        return len(self.targets)

    @property
    def num_classes(self) -> int:
        """Return the number of classes, K, including classes without images."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of pixels, labels and class names. Equal exactly when these are equal."""
        sha256 = hashlib.sha256(json.dumps([list(self.images.shape), list(self.classes)]).encode())
        sha256.update(self.images.contiguous().numpy().data)
        sha256.update(self.targets.contiguous().numpy().data)
        return sha256.hexdigest()

    def subset(self, indices: Sequence[int] | np.ndarray | Tensor) -> ImageSet:
        """Return a copy of the images at ``indices``, in that order, with the same K classes."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        attributes = {name: values[chosen.numpy()] for name, values in self.attributes.items()}
        return ImageSet(select(self.images, chosen), self.targets[chosen], self.classes, attributes)

    @classmethod
    def from_dataset(cls, dataset: Any, classes: Sequence[str] | None = None) -> ImageSet:
        """Read a map-style dataset. Each item is read once, and the first few again.

        What is read is kept, so a random transform in the dataset would be drawn once and then be frozen: augmentation
        is ``FederatedDataModule(augmentation=)``.

        Args:
            dataset: Any object with ``__len__`` and ``__getitem__``. An item is a pair (image, label), or a row with
                columns: one of `IMAGE_COLUMNS` and one of `LABEL_COLUMNS`. An image is a PIL image (modes "L" and "1"
                give one channel, all others RGB), a tensor (C, H, W) or (H, W), or an array (H, W, C) or (H, W).
                Tensors and arrays are uint8, or float in [0, 1]. All images have the same size. If some are grayscale
                and some RGB, all become RGB. Further columns of integers or strings become ``attributes``.
            classes: The class names. The default is ``dataset.classes``, or that of the dataset inside a ``Subset``,
                the names of a HuggingFace dataset's ``ClassLabel``, or else the numbers from 0 to the largest label.
                Of a class with several names, as torchvision's ImageNet has them, the first counts: see `plain_names`.

        Raises:
            FedKDError: If an item is something else, an image or label has another type, sizes differ, or a label is
                outside the classes; or if an item is another image when it is read again.
        """
        if not len(dataset):
            raise FedKDError("The dataset is empty. It needs at least one image.")
        labels: list[int] = []
        others: dict[str, list[Any]] = {}
        first: list[np.ndarray] = []

        def read() -> Iterator[np.ndarray]:
            for i in range(len(dataset)):
                item = dataset[i]
                image, label = _pair(item, i)
                labels.append(_label(label, i))
                if isinstance(item, Mapping):
                    used = _columns(item, i)
                    for name, value in item.items():
                        if name not in used and isinstance(value, PLAIN):
                            others.setdefault(str(name), []).append(value)
                pixels = to_pixels(image)
                if i < READ_AGAIN:
                    first.append(pixels.copy())
                yield pixels

        images = stack_pixels(read(), len(dataset))
        for i, pixels in enumerate(first):
            if not np.array_equal(to_pixels(_pair(dataset[i], i)[0]), pixels):
                raise FedKDError(
                    f"Item {i} of the dataset is another image when it is read again, so the dataset has a random "
                    "transform. fedkd reads each image once: leave the transform out and set data.augmentation."
                )
        names = class_names(dataset) if classes is None else plain_names(classes)
        if names is None:
            names = tuple(str(k) for k in range(max(labels) + 1))
        return cls(images, torch.tensor(labels, dtype=torch.int64), names, attributes_of(others, len(labels)))


IMAGE_COLUMNS = ("image", "img", "images", "pixels")
LABEL_COLUMNS = ("label", "labels", "target", "fine_label", "class")
"""Names of columns, the likeliest first."""

PLAIN = (int, str, np.integer, np.bool_, type(None))
"""Types of the values of an attribute, bool included."""

READ_AGAIN = 16
"""So many items are read twice: a flip at random is then missed once in 65,536 times."""


def attributes_of(columns: Mapping[str, Sequence[Any]], size: int) -> dict[str, Sequence[Any]]:
    """Return the columns that can be attributes: those with an integer, a string, a bool or None for each image.

    A bool becomes its name. None becomes the empty string, which stands for a missing value.

    Args:
        columns: Values by name.
        size: The number of images; columns with another number of values are left out.
    """
    found: dict[str, Sequence[Any]] = {}
    for name, values in columns.items():
        plain = [value.item() if isinstance(value, np.generic) else value for value in values]
        if len(plain) == size and all(isinstance(value, PLAIN) for value in plain):
            whole = all(isinstance(value, int) and not isinstance(value, bool) for value in plain)
            found[name] = plain if whole else ["" if value is None else str(value) for value in plain]
    return found


def one_by_one(values: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Return values as objects, (N,). In an array of text each value would take as much memory as the longest."""
    array = np.empty(len(values), dtype=object)
    array[:] = values.tolist() if isinstance(values, np.ndarray) else list(values)
    return array


def select(images: Tensor, rows: Tensor) -> Tensor:
    """Copy some images, (N, C, H, W) -> (n, C, H, W), both in the memory format channels_last.

    Args:
        images: The images.
        rows: Their positions, int64 (n,).
    """
    return images.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)


def with_same_channels(train: ImageSet, test: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Return both sets with one channel, or both with three, where their numbers of channels differ.

    Both are grayscale if no image is colored, else both are RGB.
    """
    channels = train.image_shape[0], test.image_shape[0]
    if channels[0] == channels[1]:
        return train, test
    to = 3 if is_colored((train if channels[0] == 3 else test).images.numpy()) else 1
    return with_channels(train, to), with_channels(test, to)


def with_channels(data: ImageSet, channels: int) -> ImageSet:
    """Return a set with 1 or 3 channels; of three the first is kept, so the images should have no color."""
    if data.image_shape[0] == channels:
        return data
    images = data.images[:, :1] if channels == 1 else data.images.expand(-1, channels, -1, -1)
    return replace(data, images=images)


def class_names(dataset: Any) -> tuple[str, ...] | None:
    """Return ``dataset.classes``, also from inside ``Subset``s, or None if there are no names."""
    while not hasattr(dataset, "classes") and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    features = getattr(dataset, "features", None)
    if names is None and isinstance(features, Mapping):
        column = next((name for name in LABEL_COLUMNS if name in features), None)
        names = getattr(features.get(column), "names", None)
    return None if names is None else plain_names(names)


def plain_names(names: Iterable[Any]) -> tuple[str, ...]:
    """Return one name for each class.

    Args:
        names: A class may have several names, a list or tuple of them. It gets the first; all of them, with commas
            between, if another class has the same first one; and a number if those are the same, too.
    """
    given = list(names)
    several = [isinstance(each, list | tuple) and len(each) > 0 for each in given]
    first = [str(each[0]) if many else str(each) for each, many in zip(given, several, strict=True)]
    counts = Counter(first)
    longer = [
        ", ".join(map(str, each)) if many and counts[name] > 1 else name
        for each, many, name in zip(given, several, first, strict=True)
    ]
    seen = Counter[str]()
    for i, name in enumerate(longer):
        seen[name] += 1
        if several[i] and seen[name] > 1:
            longer[i] = f"{name} ({seen[name]})"
    return tuple(longer)


def _pair(item: Any, position: int) -> tuple[Any, Any]:
    """Return an item's image and label."""
    if isinstance(item, Mapping):
        image, label = _columns(item, position)
        return item[image], item[label]
    if not isinstance(item, tuple | list) or len(item) != 2:
        parts = f"{len(item)} parts" if isinstance(item, tuple | list) else f"a {type(item).__name__}"
        raise FedKDError(f"Item {position} of the dataset must be a pair (image, label), got {parts}.")
    return item[0], item[1]


def _columns(item: Mapping[str, Any], position: int) -> tuple[str, str]:
    """Return the names of a row's image and label."""
    image, label = (next((n for n in names if n in item), None) for names in (IMAGE_COLUMNS, LABEL_COLUMNS))
    if image is None or label is None:
        raise FedKDError(
            f"Item {position} of the dataset has the columns {', '.join(map(str, item))}: it needs an image, one of "
            f"{', '.join(IMAGE_COLUMNS)}, and a label, one of {', '.join(LABEL_COLUMNS)}. Rename the columns."
        )
    return image, label


def _label(label: Any, position: int) -> int:
    """Return a label as an int. A fraction, a vector or a bool is an error."""
    if isinstance(label, np.ndarray | np.generic | Tensor) and label.ndim == 0:
        label = label.item()
    if isinstance(label, bool) or not isinstance(label, int) or label < 0:
        raise FedKDError(f"The label of item {position} must be an integer class number from 0, got {label!r}.")
    return label
