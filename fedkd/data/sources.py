"""Sources of images: the interface, the embedded digits, a part of another source, and datasets from Python."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedkd.core.config import one_line
from fedkd.core.errors import FedKDError, check_range
from fedkd.data.images.image_set import ImageSet, class_names, plain_names
from fedkd.data.splits import stratified_split

DIGITS = Path(__file__).parent / "digits" / "digits.npz"


class ImageSource(ABC):
    """A data set with a training and a test set. Subclass it to add your own; its arguments are the configuration."""

    @abstractmethod
    def load(self) -> tuple[ImageSet, ImageSet]:
        """Return the training and the test set, with the same classes.

        Raises:
            MissingResourceError: If the data set is missing and cannot be downloaded.
        """

    def __str__(self) -> str:
        """Return the arguments in a line, for the summary and the loggers: without the images themselves."""
        if not is_dataclass(self):
            return one_line(self)
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        shown = (f"{n}={value if isinstance(value, ImageSource) else one_line(value)}" for n, value in values.items())
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True)
class Digits(ImageSource):
    """Handwritten digits (UCI): 1,797 grayscale images of 8x8. They come with fedkd, so nothing is downloaded.

    They are the images of `sklearn.datasets.load_digits`, in its order. There is no test set among them. A stratified
    split, the same in every run, provides one.

    Args:
        test_fraction: The fraction of every class that becomes the test set, in (0, 1).
    """

    test_fraction: float = 0.2

    def __post_init__(self) -> None:
        check_range("test_fraction", self.test_fraction, low=0, high=1, low_open=True, high_open=True)

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Return the training and the test set."""
        with np.load(DIGITS) as file:
            pixels, targets = file["images"], file["labels"].astype(np.int64)  # 0..16, (1797, 8, 8)
        images = np.rint(pixels * (255 / 16)).astype(np.uint8)[:, None]
        digits = ImageSet(torch.from_numpy(images), torch.from_numpy(targets), tuple("0123456789"))
        return split_off_test(digits, self.test_fraction, "digits-test")


def split_off_test(data: ImageSet, fraction: float, purpose: str = "test") -> tuple[ImageSet, ImageSet]:
    """Split off the same fraction of every class as a test set. The choice is the same in every run.

    Args:
        data: All images.
        fraction: The fraction of each class, rounded to the nearest number of images.
        purpose: The name of the split, as for `stratified_split`.

    Returns:
        The training and the test set.

    Raises:
        FedKDError: If one of them has no image.
    """
    test = stratified_split(data.targets.numpy(), fraction, purpose)
    if not 0 < len(test) < len(data):
        raise FedKDError(
            f"test_fraction {fraction} of each class makes a test set of {len(test)} of {len(data)} images: both sets "
            "need an image."
        )
    return data.subset(np.setdiff1d(np.arange(len(data)), test)), data.subset(test)


@dataclass(frozen=True)
class Subset(ImageSource):
    """The same fraction of every class of another data set, to save time or to measure the effect of less data.

    The choice is the same in every run. A smaller fraction is a subset of a larger one.

    Args:
        dataset: The whole data set.
        train_fraction: The fraction of every class that the training set keeps, in (0, 1].
        test_fraction: The fraction of every class that the test set keeps, in (0, 1].
    """

    dataset: ImageSource
    train_fraction: float = 1.0
    test_fraction: float = 1.0

    def __post_init__(self) -> None:
        check_range("train_fraction", self.train_fraction, low=0, high=1, low_open=True)
        check_range("test_fraction", self.test_fraction, low=0, high=1, low_open=True)

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Return the chosen part of the training set and of the test set."""
        parts = zip(self.dataset.load(), (self.train_fraction, self.test_fraction), ("train", "test"), strict=True)
        train, test = (
            whole.subset(stratified_split(whole.targets.numpy(), fraction, f"subset-{name}"))
            for whole, fraction, name in parts
        )
        return train, test


@dataclass(frozen=True, eq=False)
class Datasets(ImageSource):
    """Two map-style datasets of (image, label). `ImageSet.from_dataset` lists the types of images.

    Args:
        train: The training set, a map-style dataset or an `ImageSet`.
        test: The test set, likewise.
        classes: The class names. The default is ``train.classes``, or else the numbers from 0 to its largest label.
    """

    train: Any
    test: Any
    classes: Sequence[str] | None = None

    def __str__(self) -> str:
        """Return which kind of datasets they are, and how large."""
        return f"{type(self).__name__}(train={_kind(self.train)}, test={_kind(self.test)})"

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Return the training and the test set."""
        train = _image_set(self.train, self.classes)
        names = _names(self.test)
        if self.classes is None and names is not None and names != train.classes:
            raise FedKDError(
                f"The test set's classes ({', '.join(names)}) are not the training set's ({', '.join(train.classes)})."
            )
        return train, _image_set(self.test, train.classes)


def _kind(dataset: Any) -> str:
    """Return a dataset's type and size, such as ``list of 60``."""
    return type(dataset).__name__ + (f" of {len(dataset)}" if hasattr(dataset, "__len__") else "")


def _names(dataset: Any) -> tuple[str, ...] | None:
    return dataset.classes if isinstance(dataset, ImageSet) else class_names(dataset)


def _image_set(dataset: Any, classes: Sequence[str] | None) -> ImageSet:
    if not isinstance(dataset, ImageSet):
        if isinstance(dataset, Mapping):  # as a HuggingFace DatasetDict
            raise FedKDError(
                f"Expected a map-style dataset of (image, label) or an ImageSet, got a {type(dataset).__name__} of "
                f"{', '.join(map(str, dataset)) or 'nothing'}: give one of its parts as train, one as test."
            )
        if isinstance(dataset, str) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            shown = repr(dataset) if isinstance(dataset, str) else f"a {type(dataset).__name__}"
            raise FedKDError(
                f"Expected a map-style dataset of (image, label), with a length and items by number, or an ImageSet, "
                f"got {shown}."
            )
        return ImageSet.from_dataset(dataset, classes)
    return dataset if classes is None else replace(dataset, classes=plain_names(classes))
