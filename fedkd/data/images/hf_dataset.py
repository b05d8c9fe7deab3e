"""Image data sets of HuggingFace's ``datasets``: from the hub, from a saved folder, from parquet files.

``datasets`` (https://github.com/huggingface/datasets) is an extra: ``pip install 'fedkd[datasets]'``.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedkd.core.errors import MAX_PIXELS, FedKDError, MissingResourceError, check_range, in_one_line, unknown_name
from fedkd.data.images.decoded import Sets, decoded_once
from fedkd.data.images.folder import FORMAT, decode_each, decode_image, fitted_pixels, square
from fedkd.data.images.image_set import IMAGE_COLUMNS, LABEL_COLUMNS, ImageSet, attributes_of
from fedkd.data.images.pixels import stack_pixels, to_image, to_pixels
from fedkd.data.sources import ImageSource, split_off_test


@dataclass(frozen=True)
class HFDataset(ImageSource):
    """A data set of HuggingFace's ``datasets`` with a column of images and a column of labels.

    The classes are the names of the label column's ``ClassLabel``. Labels of another kind: strings are the classes
    themselves, sorted; integers are class numbers from 0. All further columns of integers, strings or class labels
    become attributes of the images, for `fedkd.partition.ByAttribute`. The images are decoded once and cached in
    ``images`` in fedkd's cache, as those of `fedkd.data.ImageFolder`.

    Args:
        path: A hub id (``"uoft-cs/cifar10"``), a folder that ``save_to_disk`` wrote, a parquet file, a folder that
            ``datasets.load_dataset`` reads (such as one of parquet files named by split), or a parquet file for each
            split: ``{"train": "a.parquet", "test": "b.parquet"}``.
        name: The configuration of a hub data set that has several.
        revision: The branch, tag or commit of a hub data set. A commit makes runs repeatable.
        image: The column of images. The default is the one of the feature type ``Image``, or else a usual name.
        label: The column of labels. The default is a usual name, or else the only ``ClassLabel``.
        train_split: The split to train on.
        test_split: The split to test on. None splits the test set off from ``train_split``.
        test_fraction: Where ``test_split`` is None, the fraction of every class that becomes the test set, in (0, 1).
            The choice is the same in every run.
        image_size: Resize the shorter side to this many pixels and crop the center. None requires that all images have
            the same size.

    Raises:
        MissingResourceError: When loaded, if there is no such data set, or ``datasets`` is not installed.
        FedKDError: When loaded, if a split or column is missing, or a value cannot be read.
    """

    path: str | Path | dict[str, str]
    name: str | None = None
    revision: str | None = None
    image: str | None = None
    label: str | None = None
    train_split: str = "train"
    test_split: str | None = "test"
    test_fraction: float = 0.2
    image_size: int | None = None

    def __post_init__(self) -> None:
        check_range("test_fraction", self.test_fraction, low=0, high=1, low_open=True, high_open=True)
        if self.image_size is not None:
            check_range("image_size", self.image_size, low=1, high=MAX_PIXELS, whole=True)
        if self.test_split == self.train_split:
            raise FedKDError(
                f"test_split {self.test_split!r} is train_split: set test_split to null to hold out test_fraction."
            )

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Return the training and the test set, from the cache if the data set has not changed."""
        splits = self._splits()
        wanted = [self.train_split, *([] if self.test_split is None else [self.test_split])]
        for split in wanted:
            if split not in splits:
                raise FedKDError(
                    f"{unknown_name(f'split of {self._called}', split, splits)} test_split null holds out "
                    "test_fraction of the training split."
                )
        tables = {split: splits[split] for split in wanted}
        image, label = self._columns(tables[self.train_split].features)
        classes, targets = self._targets(tables, label)

        def decode() -> Sets:
            return tuple(
                ImageSet(self._pixels(split, table, image), targets[split], classes) for split, table in tables.items()
            )

        recipe = [FORMAT, "hf", str(self.path), self.name, self.revision, image, label, wanted, self.image_size]
        state = [recipe, classes, [table._fingerprint for table in tables.values()]]
        sets = decoded_once(f"hf-{Path(self._called).stem}", json.dumps(recipe), json.dumps(state), decode)
        sets = tuple(
            replace(each, attributes=_attributes(table, without=(image, label)))
            for each, table in zip(sets, tables.values(), strict=True)
        )
        return split_off_test(sets[0], self.test_fraction) if self.test_split is None else (sets[0], sets[1])

    @property
    def _called(self) -> str:
        """The data set in errors."""
        return ", ".join(self.path.values()) if isinstance(self.path, dict) else str(self.path)

    def _splits(self) -> Mapping[str, Any]:
        """Return the data set's splits by name."""
        try:
            import datasets
        except ImportError as error:
            raise MissingResourceError(
                "HFDataset needs the package datasets: pip install 'fedkd[datasets]'."
            ) from error
        try:
            with _quiet():
                found = self._read()
        except FedKDError:
            raise
        except (FileNotFoundError, ConnectionError) as error:
            raise MissingResourceError(self._not_found(error)) from error
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise FedKDError(f"{self._called} could not be read as a data set ({in_one_line(error)}).") from error
        return {self.train_split: found} if isinstance(found, datasets.Dataset) else found

    def _read(self) -> Any:
        """Return a ``Dataset`` or a ``DatasetDict``."""
        from datasets import load_dataset, load_from_disk

        if isinstance(self.path, dict):
            files = {split: str(self._local(file)) for split, file in self.path.items()}
            return load_dataset("parquet", data_files=files)
        local = Path(self.path).expanduser()
        if not local.exists() and _is_hub_id(str(self.path)):
            return load_dataset(str(self.path), self.name, revision=self.revision)
        local = self._local(self.path)
        if local.is_file():
            return load_dataset("parquet", data_files={self.train_split: str(local)})
        if any((local / name).is_file() for name in ("dataset_dict.json", "state.json")):
            return load_from_disk(str(local))
        return load_dataset(str(local), self.name)

    @staticmethod
    def _local(path: str | Path) -> Path:
        """Return a path that exists.

        Raises:
            MissingResourceError: If it does not.
        """
        local = Path(path).expanduser().resolve()
        if not local.exists():
            raise MissingResourceError(f"The data set {local} does not exist. Set path to a file, folder or hub id.")
        return local

    def _not_found(self, error: BaseException) -> str:
        revision = f" at revision {self.revision!r}" if self.revision else ""
        return (
            f"The data set {self._called!r}{revision} is no local folder, and on the HuggingFace hub it was not found "
            f"({in_one_line(error)}). Check the id and the network, or give a folder that save_to_disk wrote."
        )

    def _columns(self, features: Mapping[str, Any]) -> tuple[str, str]:
        """Return the names of the image and the label column."""
        from datasets import ClassLabel, Image

        images = [name for name, feature in features.items() if isinstance(feature, Image)]
        labels = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
        by_type = images if len(images) == 1 else []
        image = self._column("image", features, [*by_type, *IMAGE_COLUMNS], "type Image")
        label = self._column(
            "label", features, [*LABEL_COLUMNS, *(labels if len(labels) == 1 else [])], "type ClassLabel"
        )
        if image == label:
            raise FedKDError(f"image and label are the same column {image!r} of {self._called}.")
        return image, label

    def _column(self, what: str, features: Mapping[str, Any], candidates: list[str], kind: str) -> str:
        given = getattr(self, what)
        if given is not None:
            if given not in features:
                raise unknown_name(f"{what} column of {self._called}", given, features)
            return str(given)
        found = next((name for name in candidates if name in features), None)
        if found is None:
            raise FedKDError(
                f"{self._called} has no {what} column that stands out by {kind} or by its name: set {what} to one "
                f"of {', '.join(features)}."
            )
        return found

    def _targets(self, tables: Mapping[str, Any], column: str) -> tuple[tuple[str, ...], dict[str, torch.Tensor]]:
        """Return the class names, and each split's labels, int64 (N,)."""
        labels: dict[str, list[Any]] = {}
        for split, table in tables.items():
            if column not in table.features:
                raise unknown_name(f"column in split {split!r} of {self._called}", column, table.features)
            if not len(table):
                raise FedKDError(f"The split {split!r} of {self._called} has no image.")
            labels[split] = list(table[column][:])
            if None in labels[split]:
                raise FedKDError(
                    f"Row {labels[split].index(None)} of split {split!r} of {self._called} has no label in {column!r}."
                )
        names = [getattr(table.features[column], "names", None) for table in tables.values()]
        if names[0] is None:
            return self._plain_targets(labels, column)
        for split, other in zip(list(tables)[1:], names[1:], strict=True):
            if other != names[0]:
                raise FedKDError(
                    f"The classes of split {split!r} of {self._called} ({', '.join(other or ['none'])}) are not those "
                    f"of {self.train_split!r} ({', '.join(names[0])})."
                )
        return tuple(names[0]), {split: torch.tensor(each) for split, each in labels.items()}

    def _plain_targets(
        self, labels: Mapping[str, list[Any]], column: str
    ) -> tuple[tuple[str, ...], dict[str, torch.Tensor]]:
        """Return the class names and labels of a column that is no ``ClassLabel``."""
        values = [value for each in labels.values() for value in each]
        train = labels[self.train_split]
        if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
            classes = tuple(map(str, range(max(train) + 1)))
            return classes, {split: torch.tensor(each) for split, each in labels.items()}
        wrong = next((value for value in values if not isinstance(value, str | bool)), None)
        if wrong is not None:
            raise FedKDError(f"The labels in {column!r} of {self._called} must be integers or strings, got {wrong!r}.")
        classes = tuple(sorted(set(map(str, train))))
        numbers = {name: number for number, name in enumerate(classes)}
        for value in values:
            if str(value) not in numbers:
                raise unknown_name(f"class in split {self.test_split!r} of {self._called}", str(value), classes)
        return classes, {split: torch.tensor([numbers[str(v)] for v in each]) for split, each in labels.items()}

    def _pixels(self, split: str, table: Any, column: str) -> torch.Tensor:
        """Decode a split's images, uint8 (N, C, H, W)."""
        names = [f"row {i} of split {split!r} of {self._called}" for i in range(len(table))]
        with closing(decode_each(range(len(table)), self._reader(table, column, names))) as pixels:
            return stack_pixels(pixels, len(table), names)

    def _reader(self, table: Any, column: str, names: list[str]) -> Callable[[int], np.ndarray]:
        """Return a function from a row's number to its pixels."""
        import datasets

        size, feature = square(self.image_size), table.features[column]
        if not isinstance(feature, datasets.Image) and not _holds_files(feature):
            arrays = table.with_format("numpy", columns=[column])

            def read_array(i: int) -> np.ndarray:
                values = np.asarray(arrays[i][column])
                if values.dtype.kind in "iu" and values.size and values.min() >= 0 and values.max() <= 255:
                    values = values.astype(np.uint8)  # the format gives every integer 64 bits
                try:
                    pixels = to_pixels(values)
                except FedKDError as error:
                    raise FedKDError(f"{names[i]}: {error}") from error
                return pixels if size is None else fitted_pixels(to_image(pixels), size)

            return read_array
        files = table.with_format(None).select_columns([column]).cast_column(column, datasets.Image(decode=False))

        def read_file(i: int) -> np.ndarray:
            file = files[i][column]
            if file is None:
                raise FedKDError(f"{names[i]} has no image in {column!r}.")
            return decode_image(file["path"] if file["bytes"] is None else io.BytesIO(file["bytes"]), names[i], size)

        return read_file


def _holds_files(feature: Any) -> bool:
    """Whether values of a feature are encoded images or their paths, as parquet files without metadata have them."""
    if isinstance(feature, Mapping):
        return set(feature) == {"bytes", "path"}
    return getattr(feature, "dtype", None) in ("binary", "large_binary", "string", "large_string")


def _attributes(table: Any, without: tuple[str, ...]) -> dict[str, Any]:
    """Return the columns of integers, strings and class labels; class labels by name."""
    columns = {}
    for name, feature in table.features.items():
        kind = str(getattr(feature, "dtype", ""))
        if name not in without and ("int" in kind or kind in ("string", "large_string", "bool")):
            values, names = table[name][:], getattr(feature, "names", None)
            columns[name] = values if names is None else [None if v is None or v < 0 else names[v] for v in values]
    return attributes_of(columns, len(table))


def _is_hub_id(path: str) -> bool:
    """Whether a path that does not exist can be a hub id: ``name`` or ``owner/name``."""
    return path.count("/") <= 1 and path[:1] not in ("/", ".", "~") and not path.endswith(".parquet")


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the progress bars of ``datasets`` where there is no terminal."""
    import datasets

    if sys.stderr.isatty() or datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
