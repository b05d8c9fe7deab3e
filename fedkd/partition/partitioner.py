"""The base of all partitioners. A subclass's `assign` returns a client for each image; the base makes the shards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fedkd.core.errors import FedKDError


@dataclass(frozen=True)
class Partitioner(ABC):
    """Partitions the images of a data set over clients.

    A new partitioner is a frozen dataclass with one method, `assign`, which returns exactly one client for each image.
    So shards are always disjoint and sorted, and cover every image.
    """

    fixes_clients: ClassVar[bool] = False
    """Whether the number of clients follows from what is partitioned: then `count_clients` returns it."""

    def __call__(
        self,
        labels: np.ndarray | Sequence[int],
        num_clients: int,
        rng: np.random.Generator,
        among: np.ndarray | None = None,
    ) -> list[np.ndarray]:
        """Return each client's positions in ``labels``.

        Args:
            labels: The class of every image, integers (N,).
            num_clients: The number of clients. It may exceed N: clients without images are allowed.
            rng: The only source of randomness. The same state gives the same shards.
            among: Sorted positions of the images to partition, integers (M,), such as all that are not public. None
                means every image.

        Returns:
            One sorted int64 array for each client, empty for a client without images.

        Raises:
            FedKDError: If ``labels`` is not a non-empty 1-D array of integers, ``num_clients`` is not an integer of at
                least 1, ``among`` is empty, or the partitioner does not allow that many clients and classes.
        """
        labels = np.asarray(labels)
        if labels.ndim != 1 or labels.size == 0 or labels.dtype.kind not in "iu":
            raise FedKDError(
                f"labels must be a non-empty 1-D array of integers, got {labels.dtype} of shape {labels.shape}."
            )
        check_count("num_clients", num_clients)
        among = np.arange(len(labels)) if among is None else np.asarray(among, dtype=np.int64)
        if not len(among):
            raise FedKDError("There must be at least one image to partition, got none.")
        clients = np.asarray(self.assign_among(labels, among, int(num_clients), rng))
        if clients.shape != among.shape or clients.dtype.kind not in "iu":
            raise FedKDError(
                f"{type(self).__name__}.assign must return integers of shape {among.shape}, "
                f"got {clients.dtype} of shape {clients.shape}."
            )
        if clients.min() < 0 or clients.max() >= num_clients:
            raise FedKDError(
                f"{type(self).__name__}.assign must return clients from 0 to {num_clients - 1}, "
                f"got {clients.min()} to {clients.max()}."
            )
        return [among[part] for part in positions_by_value(clients, num_clients)]

    def for_data(self, attributes: Mapping[str, Any]) -> Partitioner:
        """Return the partitioner for a data set whose images have these attributes; most need none.

        Args:
            attributes: One value for each image, by the attribute's name.

        Raises:
            FedKDError: If the partitioner needs an attribute that is not there.
        """
        return self

    def count_clients(self, size: int) -> int:
        """Return how many clients there are for a data set of ``size`` images, if that is fixed."""
        raise NotImplementedError(f"{type(self).__name__} works for any number of clients.")

    def assign_among(
        self, labels: np.ndarray, among: np.ndarray, num_clients: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Return the client of each image at ``among``, integers (M,).

        Most partitioners ignore the other images. A partitioner that reads a value for every image of the data set from
        a file needs the positions, so it overrides this method.
        """
        return self.assign(labels[among], num_clients, rng)

    @abstractmethod
    def assign(self, labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> np.ndarray:
        """Return the client, in ``[0, num_clients)``, that owns each image.

        Args:
            labels: The class of every image, integers (N,), N > 0, checked.
            num_clients: The number of clients, at least 1, checked.
            rng: The only source of randomness.

        Returns:
            Integers (N,).
        """


def check_count(name: str, value: int) -> None:
    """Raise unless ``value`` is an integer of at least 1.

    Raises:
        FedKDError: If it is a float, a bool, or less than 1.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise FedKDError(f"{name} must be an integer >= 1, got {value!r}.")


def positions_by_value(values: np.ndarray, num_values: int) -> list[np.ndarray]:
    """Return, for each value in ``[0, num_values)``, its sorted int64 positions in ``values`` (N,)."""
    # One stable sort is enough for all values: 10,000 clients need no more passes over the data than ten.
    order = np.argsort(values, kind="stable").astype(np.int64, copy=False)  # (N,)
    ends = np.cumsum(np.bincount(values, minlength=num_values))  # (num_values,)
    return [part.copy() for part in np.split(order, ends[:-1])]
