"""The strongest label skew: each client has few classes, after McMahan et al. 2017 (arXiv 1602.05629, section 3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fedkd.core.errors import FedKDError
from fedkd.partition.partitioner import Partitioner, check_count, positions_by_value


@dataclass(frozen=True)
class ClassSpecific(Partitioner):
    """Gives every client exactly ``classes_per_client`` classes.

    Classes are assigned in random order from a shuffled list of all classes. When the list is used up, a new one is
    shuffled. So the numbers of clients that hold any two classes differ by at most one. With clients x
    classes_per_client = classes exactly one client holds each class. The images of a class that several clients hold
    are split evenly among them, to within one image.

    Args:
        classes_per_client: How many different classes each client holds.

    Raises:
        FedKDError: If ``classes_per_client`` is not an integer of at least 1. When called, if it exceeds the number of
            classes, or if the clients are too few to cover all classes.
    """

    classes_per_client: int = 1

    def __post_init__(self) -> None:
        """Check ``classes_per_client``."""
        check_count("classes_per_client", self.classes_per_client)

    def assign(self, labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> np.ndarray:
        """Return the client of each image (N,): see `Partitioner.assign`."""
        clients = np.empty(len(labels), dtype=np.int64)
        for members, holders in images_and_holders(labels, num_clients, self.classes_per_client, rng):
            clients[rng.permutation(members)] = holders[np.arange(len(members)) % len(holders)]
        return clients


def images_and_holders(
    labels: np.ndarray, num_clients: int, per_client: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Assign classes to clients. Yield for each class the positions of its images and the clients that hold it.

    Args:
        labels: The class of every image, integers (N,).
        num_clients: The number of clients.
        per_client: How many classes each of them holds.
        rng: Assigns the classes, and shuffles the clients of each class.

    Raises:
        FedKDError: If ``per_client`` exceeds the number of classes, or the clients are too few to cover all classes.
    """
    classes, labels = np.unique(labels, return_inverse=True)
    check_cover(len(classes), num_clients, per_client)
    hands = deal(len(classes), num_clients, per_client, rng)  # (J, per_client)
    seats = positions_by_value(hands.ravel(), len(classes))
    for members, seat in zip(positions_by_value(labels, len(classes)), seats, strict=True):
        # Without the shuffle the first clients would always get the remaining images of an uneven split.
        yield members, rng.permutation(seat // per_client)


def check_cover(num_classes: int, num_clients: int, per_client: int) -> None:
    """Raise unless ``per_client`` classes per client can cover all classes.

    Raises:
        FedKDError: If they cannot. The error names values that would.
    """
    if per_client > num_classes:
        raise FedKDError(f"classes_per_client must be at most the number of classes, {num_classes}, got {per_client}.")
    if num_clients * per_client < num_classes:
        raise FedKDError(
            f"{num_clients} clients x classes_per_client={per_client} cannot cover {num_classes} classes: use "
            f"classes_per_client >= {-(-num_classes // num_clients)} or num_clients >= {-(-num_classes // per_client)}."
        )


def deal(num_classes: int, num_clients: int, per_client: int, rng: np.random.Generator) -> np.ndarray:
    """Assign classes to clients: no client gets a class twice, and the clients per class differ by at most one.

    Args:
        num_classes: The number of classes.
        num_clients: The number of clients.
        per_client: How many classes each client gets, at most ``num_classes``.
        rng: Shuffles the lists of all classes.

    Returns:
        The classes of each client, int64 (num_clients, per_client).
    """
    hands = np.empty((num_clients, per_client), dtype=np.int64)
    deck = np.empty(0, dtype=np.int64)
    for client in range(num_clients):
        hand, deck = deck[:per_client], deck[per_client:]
        if len(hand) < per_client:
            # The list is used up. The client gets its other classes from a new list, without those that it already has.
            deck = rng.permutation(num_classes)
            filled = deck[~np.isin(deck, hand)][: per_client - len(hand)]
            deck = deck[~np.isin(deck, filled)]
            hand = np.concatenate([hand, filled])
        hands[client] = hand
    return hands
