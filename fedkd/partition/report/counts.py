"""The counts of a partition, client by class, and how skewed they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from fedkd.core.errors import FedKDError
from fedkd.partition.report.skew import effective_classes, js_distance, summarize, without_nan


@dataclass(frozen=True, eq=False)
class PartitionCounts:
    """How many images of each class each client holds.

    Args:
        counts: Images by client and class, int64 (num_clients, num_classes).
        classes: The name of each class.
        public: Images that belong to no client.
        validation: Images that clients hold out for validation; ``counts`` does not include them.

    Raises:
        FedKDError: If ``counts`` is not a matrix with a column for each class.
    """

    counts: np.ndarray
    classes: tuple[str, ...]
    public: int = 0
    validation: int = 0

    def __post_init__(self) -> None:
        """Check that the counts fit the classes."""
        if self.counts.ndim != 2 or self.counts.shape[1] != len(self.classes):
            raise FedKDError(
                f"counts must be (clients, {len(self.classes)}), one column per class, got shape {self.counts.shape}."
            )

    @classmethod
    def from_shards(
        cls,
        shards: Sequence[np.ndarray],
        targets: np.ndarray | Sequence[int],
        classes: Sequence[str],
        public: int = 0,
        validation: int = 0,
    ) -> Self:
        """Count the images of each client and class.

        Args:
            shards: Each client's positions in ``targets``.
            targets: The class of every image, integers (N,); a CPU tensor is allowed.
            classes: The name of each class, in the order of the targets.
            public: Images that belong to no client.
            validation: Images that clients hold out for validation; they are in no shard.

        Raises:
            FedKDError: If a client's image has a target without a class name.
        """
        targets, num_classes = np.asarray(targets), len(classes)
        owned = [targets[np.asarray(shard, dtype=np.int64)] for shard in shards]
        for client, labels in enumerate(owned):
            if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
                raise FedKDError(
                    f"targets must lie between 0 and {num_classes - 1}, one for each class name; client {client} holds "
                    f"{labels.min()} to {labels.max()}."
                )
        rows = [np.bincount(labels, minlength=num_classes) for labels in owned]
        counts = np.array(rows, dtype=np.int64).reshape(len(rows), num_classes)
        return cls(counts, tuple(str(name) for name in classes), int(public), int(validation))

    @property
    def num_clients(self) -> int:
        """The number of clients, including those without images."""
        return len(self.counts)

    @property
    def sizes(self) -> np.ndarray:
        """Images of each client, int64 (num_clients,)."""
        return self.counts.sum(axis=1)

    @property
    def empty_clients(self) -> tuple[int, ...]:
        """The clients without images."""
        return tuple(np.flatnonzero(self.sizes == 0).tolist())

    @property
    def effective_classes(self) -> np.ndarray:
        """Effective number of classes of each client, float64 (num_clients,): see `fedkd.partition.report.skew`."""
        return effective_classes(self.counts)

    @property
    def js_distance(self) -> np.ndarray:
        """Each client's Jensen-Shannon distance to all clients together, base 2, in [0, 1], float64 (num_clients,)."""
        return js_distance(self.counts)

    def skew(self) -> dict[str, dict[str, float | None]]:
        """Return min, median, mean and max over clients of ``sizes``, ``effective_classes`` and ``js_distance``.

        ``sizes`` includes clients without images; the other two do not.
        """
        return {
            "sizes": summarize(self.sizes.astype(float)),
            "effective_classes": summarize(self.effective_classes),
            "js_distance": summarize(self.js_distance),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return everything as lists and numbers for JSON. A value that an empty client does not have is None."""
        return {
            "num_clients": self.num_clients,
            "classes": list(self.classes),
            "counts": self.counts.tolist(),
            "sizes": self.sizes.tolist(),
            "empty_clients": list(self.empty_clients),
            "public": self.public,
            "validation": self.validation,
            "effective_classes": without_nan(self.effective_classes),
            "js_distance": without_nan(self.js_distance),
            "skew": self.skew(),
        }

    def summary(self) -> str:
        """Return one line with the numbers of clients, images, classes, empty clients, public and validation images.

        Numbers that are 0 are left out.
        """
        counts = {
            "client": self.num_clients,
            "image": int(self.counts.sum()),
            "class": len(self.classes),
            "empty client": len(self.empty_clients),
            "public image": self.public,
            "validation image": self.validation,
        }
        plural = {name: name + ("es" if name == "class" else "s") for name in counts}
        parts = [f"{n:,} {name if n == 1 else plural[name]}" for name, n in counts.items() if n]
        return ", ".join(parts)
