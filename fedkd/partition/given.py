"""A given partition: of an earlier run, of another framework or of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fedkd.core.errors import MAX_CLIENTS, FedKDError
from fedkd.core.sealed import is_whole
from fedkd.partition.files import choose_column, read_file, values_by_image
from fedkd.partition.partitioner import Partitioner

MAX_SHOWN = 40
"""So many characters of a wrong value are shown."""


@dataclass(frozen=True)
class Given(Partitioner):
    """Takes the client of each image, or the indices of each client's images, from a file or a list.

    Positions count all training images, public ones included, in the order of the data set. A run's ``partition.json``
    gives the same shards under the same ``public_fraction``. A file with a client for every image works for every
    ``public_fraction``. Entries of public images are ignored. No seed changes the partition.

    ``num_clients`` must be the number of clients in the file. If it is not given, it is that number.

    Args:
        clients: A list of integers, the client of each image; or a list of lists, the positions of each client's
            images, where a list may be empty; or a file with one of these. A ``.json`` file holds either list, or it is
            a run's ``partition.json``, whose validation images go back to their clients. ``.npy``, ``.npz`` and
            ``.csv`` files (the first line names the columns) hold the client of each image.
        column: The column of a CSV, or the array of an NPZ, if there are several.

    Raises:
        MissingResourceError: When called, if the file does not exist.
        FedKDError: When called, if the file or list does not name exactly one client for every image that is not
            public, a client has a number of `fedkd.core.errors.MAX_CLIENTS` or more, or ``num_clients`` is another
            number than that of the clients.
    """

    clients: list[int] | list[list[int]] | str | Path
    column: str | None = None

    fixes_clients: ClassVar[bool] = True

    def count_clients(self, size: int) -> int:
        """Return the number of clients in the file or list."""
        return self._read(size)[1]

    def assign(self, labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> np.ndarray:
        """Return the client of each image (N,): see `Partitioner.assign`."""
        return self.assign_among(labels, np.arange(len(labels)), num_clients, rng)

    def assign_among(
        self, labels: np.ndarray, among: np.ndarray, num_clients: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Return the client of each image at ``among`` (M,): see `Partitioner.assign_among`."""
        owners, found = self._read(len(labels))
        if found != num_clients:
            raise FedKDError(f"{self._name} has {found:,} clients: set num_clients to {found}, got {num_clients}.")
        missing = among[owners[among] < 0]
        if len(missing):
            raise FedKDError(
                f"{self._name} gives {len(missing):,} of {len(among):,} images to no client, the first at position "
                f"{missing[0]}. If they were public, set public_fraction to its earlier value."
            )
        return owners[among]

    def _read(self, size: int) -> tuple[np.ndarray, int]:
        """Return the client of each image of the data set, -1 for none, int64 (N,), and the number of clients."""
        content: Any = self.clients
        if isinstance(content, str | Path):
            content = read_file(content)
            if self.column is None and isinstance(content, Mapping) and "indices" in content:
                if not is_whole(content):
                    raise FedKDError(
                        f"{self._name} is damaged, or was changed: its content does not match its checksum. Take its "
                        "entry sha256 out if you changed it."
                    )
                content = _lists_of_run(content, self._name)
            content = choose_column(content, self.column, self._name)
        if not _is_list(content):
            raise FedKDError(
                f"{self._name} must hold a list, of the client of each image or of each client's positions, got "
                f"{_shown(content)}."
            )
        lists = [_is_list(row) for row in content]
        if any(lists):
            if not all(lists):
                client = lists.index(False)
                raise FedKDError(
                    f"{self._name} must hold a list of integers for each client, got {_shown(content[client])} for "
                    f"client {client}."
                )
            return self._owners_of_lists(content, size), len(content)
        owners = values_by_image(content, size, self._name)
        if owners.dtype.kind == "U" or owners.min() < -1:
            wrong = owners[0] if owners.dtype.kind == "U" else owners.min()
            raise FedKDError(f"{self._name} must hold clients from 0, or -1 for none, got {str(wrong)!r}.")
        if owners.max() >= MAX_CLIENTS:
            raise FedKDError(
                f"{self._name} must hold clients from 0 to {MAX_CLIENTS - 1:,}, got {owners.max():,}. If these are "
                "ids, such as of a site, the partitioner ByAttribute numbers them."
            )
        return owners.astype(np.int64), int(owners.max()) + 1

    def _owners_of_lists(self, lists: Sequence[Sequence[int]], size: int) -> np.ndarray:
        owners = np.full(size, -1, dtype=np.int64)
        for client, row in enumerate(lists):
            wrong = [each for each in row if isinstance(each, bool) or not isinstance(each, int | np.integer)]
            if wrong:
                raise FedKDError(
                    f"{self._name} must hold a list of integers for each client, client {client} has {_shown(wrong[0])}"
                    " in it."
                )
            positions = np.asarray(row if len(row) else np.empty(0, np.int64))
            outside = positions[(positions < 0) | (positions >= size)]
            if len(outside):
                raise FedKDError(
                    f"{self._name}: training images have positions 0 to {size - 1}, client {client} has {outside[0]}."
                )
            taken = positions[owners[positions] >= 0]
            owners[positions] = client
            if len(taken) or len(np.unique(positions)) < len(positions):
                twice = taken[0] if len(taken) else np.sort(positions)[np.argmin(np.diff(np.sort(positions)))]
                raise FedKDError(
                    f"{self._name} assigns the image at position {twice} twice, the second time to client {client}."
                )
        return owners

    @property
    def _name(self) -> str:
        return str(self.clients) if isinstance(self.clients, str | Path) else "clients"


def _lists_of_run(record: Mapping[str, Any], name: str) -> list[list[int]]:
    """Return each client's indices from a run's ``partition.json``, including those of its validation images.

    Raises:
        FedKDError: If they are no lists of lists, of the same clients.
    """
    parts = {"indices": record["indices"]}
    if record.get("val_indices") is not None:
        parts["val_indices"] = record["val_indices"]
    for key, lists in parts.items():
        wrong = next((row for row in lists if not _is_list(row)), None) if _is_list(lists) else lists
        if not _is_list(lists) or not all(map(_is_list, lists)):
            raise FedKDError(f"{name}: {key} must be a list of lists, one for each client, got {_shown(wrong)}.")
    train, held_out = parts["indices"], parts.get("val_indices", [[]] * len(parts["indices"]))
    if len(train) != len(held_out):
        raise FedKDError(f"{name} has indices of {len(train)} clients, and val_indices of {len(held_out)}.")
    return [[*own, *held] for own, held in zip(train, held_out, strict=True)]


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _shown(value: Any) -> str:
    """Return a value as JSON would have it, cut if it is long."""
    text = {"None": "null", "True": "true", "False": "false"}.get(repr(value), repr(value))
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
