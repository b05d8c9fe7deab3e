"""Natural clients: the writer, the site or the device that an image comes from, as in LEAF (arXiv 1812.01097)."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fedkd.core.errors import FedKDError, unknown_name
from fedkd.partition.files import choose_column, read_file, values_by_image
from fedkd.partition.partitioner import Partitioner


@dataclass(frozen=True)
class ByAttribute(Partitioner):
    """Gives all images with the same value of an attribute to one client.

    The attribute is a column of the data set, such as ``hospital`` in a CSV (`fedkd.data.ImageCSV`), in HuggingFace
    data (`fedkd.data.HFDataset`) or in `fedkd.data.ImageSet.attributes`. Or its values come from a list or a file of
    their own.

    Client 0 gets the first value in sorted order, and so on. The images with one value are a group. Groups are never
    split, so ``num_clients`` must be the number of different values, as in LEAF and in Flower's
    ``NaturalIdPartitioner``. If ``num_clients`` is not given, it is that number. With ``merge`` it may be less: each
    group, the largest first, is then given to the client with the fewest images so far. The partition depends only on
    the data: no seed changes it.

    There is a value for every training image, public ones included, in the order of the data set. A client whose images
    are all public remains, without images.

    Args:
        values: A list of integers or of strings, or a file with such a list: ``.csv`` (the first line names the
            columns), ``.json`` (a list, or lists by name), ``.npy`` or ``.npz``. None reads the data set's own column.
        column: The column of the data set; or of a CSV, key of a JSON object or array of an NPZ, if there are several.
        merge: Whether a client may hold more than one group.

    Raises:
        MissingResourceError: When called, if the file does not exist.
        FedKDError: If neither ``values`` nor ``column`` is given. When called, if the data set has no such column,
            there is not one integer or string for each image, or the number of groups does not fit ``num_clients``.
    """

    values: list[int] | list[str] | str | Path | None = None
    column: str | None = None
    merge: bool = False

    fixes_clients: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.values is None and self.column is None:
            raise FedKDError("ByAttribute needs column, a column of the data set such as 'hospital', or values.")

    def for_data(self, attributes: Mapping[str, Any]) -> Partitioner:
        """Return a partitioner with the values of the data set's column; with values of its own, this one."""
        if self.values is not None:
            return self
        if not attributes:
            raise FedKDError(
                f"The data set has no column {self.column!r}, and no other: ByAttribute needs a CSV, HuggingFace data "
                "or an ImageSet with attributes, or else values."
            )
        if self.column is None or self.column not in attributes:
            raise unknown_name("column of the data set", str(self.column), attributes)
        return replace(self, values=list(attributes[self.column]))

    def count_clients(self, size: int) -> int:
        """Return the number of different values."""
        return len(self._groups(size)[0])

    def assign(self, labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> np.ndarray:
        """Return the client of each image (N,): see `Partitioner.assign`."""
        return self.assign_among(labels, np.arange(len(labels)), num_clients, rng)

    def assign_among(
        self, labels: np.ndarray, among: np.ndarray, num_clients: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Return the client of each image at ``among`` (M,): see `Partitioner.assign_among`."""
        keys, groups = self._groups(len(labels))
        groups = groups[among]  # (M,)
        if len(keys) < num_clients or (len(keys) > num_clients and not self.merge):
            more = f"num_clients={len(keys)}" + (
                ", or merge=true" if len(keys) > num_clients else " or less, with merge=true"
            )
            raise FedKDError(f"{self._name} has {len(keys):,} groups for {num_clients:,} clients: use {more}.")
        if len(keys) == num_clients:
            return groups
        return largest_first(np.bincount(groups, minlength=len(keys)), num_clients)[groups]

    @property
    def _name(self) -> str:
        """What holds the values, in errors."""
        if isinstance(self.values, str | Path):
            return str(self.values)
        return "values" if self.column is None else f"column {self.column!r}"

    def _groups(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the different values, sorted, and for each image the number of its own, (size,)."""
        content: Any = self.values
        if content is None:
            raise FedKDError(f"{self._name} is the data set's: FederatedDataModule reads it, or call for_data first.")
        if isinstance(content, str | Path):
            content = choose_column(read_file(content), self.column, self._name)
        keys, groups = np.unique(values_by_image(content, size, self._name), return_inverse=True)
        return keys, groups


def largest_first(sizes: np.ndarray, num_clients: int) -> np.ndarray:
    """Assign groups to clients of about equal size by LPT (Graham 1969): the largest client is at most 4/3 of the best.

    Args:
        sizes: Images of each group, (G,).
        num_clients: The number of clients.

    Returns:
        The client of each group, int64 (G,). Of equal groups the first is assigned first. Of equal clients the first
        gets the group.
    """
    owners = np.empty(len(sizes), dtype=np.int64)
    heap = [(0, client) for client in range(num_clients)]  # images so far; sorted, hence a heap
    for group in np.argsort(-sizes, kind="stable").tolist():
        images, client = heap[0]
        owners[group] = client
        heapq.heapreplace(heap, (images + int(sizes[group]), client))
    return owners
