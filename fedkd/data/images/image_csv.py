"""Image files that a CSV lists with their labels."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from fedkd.core.errors import MAX_PIXELS, FedKDError, MissingResourceError, check_range, unknown_name
from fedkd.data.images.decoded import Sets, decoded_once
from fedkd.data.images.folder import FORMAT, ImageFile, decode_files, square
from fedkd.data.images.image_set import IMAGE_COLUMNS, LABEL_COLUMNS, ImageSet
from fedkd.data.images.pixels import stack_pixels
from fedkd.data.sources import ImageSource, split_off_test

PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "image_path", *IMAGE_COLUMNS)
SPLIT_COLUMNS = ("split",)
"""Names of columns, the likeliest first."""


@dataclass(frozen=True)
class ImageCSV(ImageSource):
    """Image files that a CSV lists with their labels. The first line names the columns.

    The classes are the different labels of the training set, sorted; labels that are all integers are sorted as
    numbers. All further columns become attributes of the images, for `fedkd.partition.ByAttribute`. The images are
    decoded once and cached in ``images`` in fedkd's cache, as those of `fedkd.data.ImageFolder`; the CSV is read every
    time.

    The test set is ``test_file``, or else the rows with ``test_split`` in the column ``split``, or else a fraction of
    every class. Rows with another value there, such as ``val``, are left out.

    Args:
        file: The CSV, in UTF-8.
        root: The folder that paths are relative to; by default the CSV's own.
        path: The column of paths. The default is the first of `PATH_COLUMNS` that is there.
        label: The column of labels. The default is the first of `fedkd.data.images.image_set.LABEL_COLUMNS` there.
        split: The column that says which set an image belongs to. The default is ``split`` if it is there.
        train_split: Its value for the training set.
        test_split: Its value for the test set. None splits the test set off from the training set.
        test_file: Another CSV with the same columns of paths and labels, which lists the test set.
        test_fraction: Where nothing else says what is the test set, the fraction of every class that is, in (0, 1).
            The choice is the same in every run.
        image_size: Resize the shorter side to this many pixels and crop the center. None requires that all files have
            the same size.
        delimiter: The character between two values.

    Raises:
        MissingResourceError: When loaded, if a CSV or an image does not exist. The error names file and line.
        FedKDError: When loaded, if a column or value is missing, likewise.
    """

    file: str | Path
    root: str | Path | None = None
    path: str | None = None
    label: str | None = None
    split: str | None = None
    train_split: str = "train"
    test_split: str | None = "test"
    test_file: str | Path | None = None
    test_fraction: float = 0.2
    image_size: int | None = None
    delimiter: str = ","

    def __post_init__(self) -> None:
        check_range("test_fraction", self.test_fraction, low=0, high=1, low_open=True, high_open=True)
        if self.image_size is not None:
            check_range("image_size", self.image_size, low=1, high=MAX_PIXELS, whole=True)
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n':
            raise FedKDError(f"delimiter must be one character, such as ',' or ';', got {self.delimiter!r}.")
        if self.test_split == self.train_split:
            raise FedKDError(
                f"test_split {self.test_split!r} is train_split: set test_split to null to hold out test_fraction."
            )
        if self.test_file is not None and self.split is not None:
            raise FedKDError(f"split {self.split!r} and test_file {str(self.test_file)!r} exclude each other.")

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Return the training and the test set, from the cache if the image files have not changed."""
        table = ImageTable.read(self.file, self.delimiter)
        path = table.column("path", self.path, PATH_COLUMNS)
        label = table.column("label", self.label, LABEL_COLUMNS)
        if path == label:
            raise FedKDError(f"path and label are the same column {path!r} of {table.file}.")
        tables = [table] if self.test_file is None else [table, ImageTable.read(self.test_file, self.delimiter)]
        if self.test_file is None:
            tables = self._by_split(table)
        files = [each.image_files(self.root, each.column("path", path, ())) for each in tables]
        if len(tables) == 2:
            _refuse_common(tables, files)
        labels = [each.values(each.column("label", label, ())) for each in tables]
        classes = _classes(labels[0])
        numbers = {name: number for number, name in enumerate(classes)}
        for each, names in zip(tables, labels, strict=True):
            for row, name in zip(each.rows, names, strict=True):
                if name not in numbers:
                    raise FedKDError(
                        f"{each.file}, line {row.line}: {unknown_name('label of a test image', name, classes)}"
                    )

        def decode() -> Sets:
            return tuple(
                ImageSet(self._pixels(part), torch.tensor([numbers[name] for name in names]), classes)
                for part, names in zip(files, labels, strict=True)
            )

        recipe = [FORMAT, "csv", *(str(each.file) for each in tables), str(self.root), path, label, self.image_size]
        recipe += [self.split, self.train_split, self.test_split]
        state = json.dumps([recipe, files, labels])
        sets = decoded_once(table.file.stem, json.dumps(recipe), state, decode)
        whole = [
            replace(part, attributes=each.attributes(without=(path, label)))
            for part, each in zip(sets, tables, strict=True)
        ]
        return (whole[0], whole[1]) if len(whole) == 2 else split_off_test(whole[0], self.test_fraction)

    def _by_split(self, table: ImageTable) -> list[ImageTable]:
        """Return the training and the test set's rows; all rows where nothing says which are which."""
        if self.split is None and not any(name in table.header for name in SPLIT_COLUMNS):
            return [table]
        column = table.column("split", self.split, SPLIT_COLUMNS)
        values = table.values(column)
        tables = []
        for name in (self.train_split, self.test_split):
            if name is None:
                continue
            if name not in values:
                raise FedKDError(
                    f"{unknown_name(f'split in column {column!r} of {table.file}', name, set(values))} Set train_split "
                    "and test_split to two of them; test_split null holds out test_fraction."
                )
            rows = [row for row, value in zip(table.rows, values, strict=True) if value == name]
            tables.append(replace(table, rows=rows))
        return tables

    def _pixels(self, files: list[ImageFile]) -> torch.Tensor:
        names = [file.path for file in files]
        with closing(decode_files(Path(), names, square(self.image_size))) as pixels:
            return stack_pixels(pixels, len(names), names)


class _Row(NamedTuple):
    """A row of a CSV, and the number of the line where it ends."""

    line: int
    values: list[str]


@dataclass(frozen=True)
class ImageTable:
    """Rows of a CSV."""

    file: Path
    header: list[str]
    rows: Sequence[_Row]

    @classmethod
    def read(cls, file: str | Path, delimiter: str) -> ImageTable:
        """Read a CSV.

        Raises:
            MissingResourceError: If it does not exist.
            FedKDError: If it cannot be read, or a row has more or fewer values than the first.
        """
        path = Path(file).expanduser().resolve()
        if not path.is_file():
            raise MissingResourceError(f"The CSV {path} does not exist. Set file to one that lists images and labels.")
        try:
            with path.open(newline="", encoding="utf-8-sig") as opened:
                reader = csv.reader(opened, delimiter=delimiter)
                rows = [_Row(reader.line_num, [value.strip() for value in row]) for row in reader if row]
        except (OSError, ValueError, csv.Error) as error:  # ValueError: not UTF-8
            raise FedKDError(f"{path} could not be read as a CSV in UTF-8 ({error}).") from error
        if len(rows) < 2:
            raise FedKDError(f"{path} lists no image: it needs a line with the columns, and a row for each image.")
        header = rows[0].values
        if len(set(header)) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise FedKDError(f"{path} has two columns {twice!r}.")
        for row in rows[1:]:
            if len(row.values) != len(header):
                raise FedKDError(
                    f"{path}, line {row.line}: the row has {len(row.values)} values for {len(header)} columns."
                )
        return cls(path, header, rows[1:])

    def column(self, what: str, given: str | None, usual: Sequence[str]) -> str:
        """Return the name of a column: the given one, or the first usual one that is there."""
        if given is not None:
            if given not in self.header:
                raise unknown_name(f"{what} column of {self.file}", given, self.header)
            return given
        found = next((name for name in usual if name in self.header), None)
        if found is None:
            raise FedKDError(
                f"{self.file} has no {what} column with a usual name ({', '.join(usual)}): set {what} to one of "
                f"{', '.join(self.header)}."
            )
        return found

    def values(self, column: str) -> list[str]:
        """Return a column's values, none of which is empty."""
        at = self.header.index(column)
        for row in self.rows:
            if not row.values[at]:
                raise FedKDError(f"{self.file}, line {row.line}: column {column!r} is empty.")
        return [row.values[at] for row in self.rows]

    def image_files(self, root: str | Path | None, column: str) -> list[ImageFile]:
        """Return the images that a column names, with absolute paths.

        Raises:
            MissingResourceError: If there are some that do not exist.
        """
        folder = self.file.parent if root is None else Path(root).expanduser().resolve()
        files, absent = [], []
        for row, name in zip(self.rows, self.values(column), strict=True):
            path = os.path.join(folder, name)
            try:
                stat = os.stat(path)
            except OSError:
                absent.append((row.line, path))
                continue
            if not os.path.isfile(path):
                raise FedKDError(f"{self.file}, line {row.line}: {path} is no file.")
            files.append(ImageFile(path, stat.st_size, stat.st_mtime_ns))
        if absent:
            line, path = absent[0]
            count = f" {len(absent):,} of {len(self.rows):,} images are missing." if len(absent) > 1 else ""
            raise MissingResourceError(
                f"{self.file}, line {line}: the image {path} does not exist.{count} Paths are relative to {folder}: "
                "set root to another folder."
            )
        return files

    def attributes(self, without: Sequence[str]) -> Mapping[str, list[str]]:
        """Return the other columns."""
        return {name: [row.values[i] for row in self.rows] for i, name in enumerate(self.header) if name not in without}


def _refuse_common(tables: Sequence[ImageTable], files: Sequence[list[ImageFile]]) -> None:
    """Raise if an image is in the training set and in the test set."""
    train, test = tables
    lines = {file.path: row.line for file, row in zip(files[0], train.rows, strict=True)}
    for file, row in zip(files[1], test.rows, strict=True):
        if file.path in lines:
            where = f"line {lines[file.path]}" + ("" if train.file == test.file else f" of {train.file}")
            raise FedKDError(f"{test.file}, line {row.line}: the test image {file.path} is also for training, {where}.")


def _classes(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the different labels, sorted; as numbers if all are integers."""
    names = sorted(set(labels))
    try:
        return tuple(sorted(names, key=int))
    except ValueError:
        return tuple(names)
