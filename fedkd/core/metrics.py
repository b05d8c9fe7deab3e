"""Accuracy, calibration and entropy of a classifier. Every part of fedkd computes them here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def confusion_matrix(predictions: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """Count the images by true and by predicted class.

    Args:
        predictions: Logits (M, K), of which the largest is the prediction; or predicted classes (M,).
        targets: int64 (M,), the true classes.
        num_classes: K.

    Returns:
        int64 (K, K): rows are true classes, columns are predicted classes.
    """
    predicted = predictions.argmax(1) if predictions.ndim == 2 else predictions
    pairs = targets * num_classes + predicted
    counts = torch.zeros(num_classes**2, dtype=torch.int64, device=pairs.device)
    # bincount would make the host wait for a GPU, to learn how long its result is
    return counts.scatter_add_(0, pairs, torch.ones_like(pairs)).view(num_classes, num_classes)


def accuracy(confusion: Tensor) -> Tensor:
    """Return the share of all images that are classified correctly, a float64 scalar.

    Args:
        confusion: Counts (K, K), rows are true classes.
    """
    confusion = confusion.double()
    return confusion.diagonal().sum() / confusion.sum()


def per_class_accuracy(confusion: Tensor) -> Tensor:
    """Return the share of each class's images that are classified correctly, float64 (K,).

    A class without images gives NaN. The balanced accuracy is the ``nanmean()`` of the result.

    Args:
        confusion: Counts (K, K), rows are true classes.
    """
    confusion = confusion.double()
    return confusion.diagonal() / confusion.sum(dim=1)  # 0 / 0 is NaN


def accuracies(confusion: Tensor, classes: Iterable[str]) -> dict[str, Tensor]:
    """Compute all accuracies from a confusion matrix, under the names that are logged.

    Args:
        confusion: Counts (K, K), rows are true classes.
        classes: The K class names.

    Returns:
        Float32 scalars in [0, 1]: ``accuracy``, ``balanced_accuracy`` (the mean over the classes that have images) and
        ``accuracy/<class>``, which is NaN for a class without images.
    """
    per_class = per_class_accuracy(confusion)
    return {
        "accuracy": accuracy(confusion).float(),
        "balanced_accuracy": per_class.nanmean().float(),
        **{f"accuracy/{name}": value.float() for name, value in zip(classes, per_class, strict=True)},
    }


class EpochSums:
    """Means of some scalars over the images of an epoch, summed on their device without waiting for it."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}  # by the names that came together, float32 (names,)
        self._counts: dict[tuple[str, ...], int] = {}

    def add(self, means: Mapping[str, Tensor], count: int) -> None:
        """Add the means over a batch.

        Args:
            means: Scalars by name.
            count: The number of images in the batch.
        """
        names = tuple(means)
        summed = torch.stack([value.detach().float() for value in means.values()]).mul_(count)
        if names in self._sums:
            self._sums[names].add_(summed)
            self._counts[names] += count
        else:
            self._sums[names], self._counts[names] = summed, count

    def means(self) -> dict[str, Tensor]:
        """Return the mean of each scalar over the images of the batches that had it."""
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        for names, total in self._sums.items():
            for name, value in zip(names, total, strict=True):
                sums[name] = sums[name] + value if name in sums else value
                counts[name] = counts.get(name, 0) + self._counts[names]
        return {name: value / counts[name] for name, value in sums.items()}


def entropies(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the entropy in nats of ``softmax(logits / T)`` for each row: (..., K) -> (...), in the logits' dtype."""
    log_p = (logits / temperature).log_softmax(dim=-1)
    return -(log_p.exp() * log_p.clamp(min=-1e4)).sum(dim=-1)  # clamped because 0 * -inf is NaN


def mean_entropy(logits: Tensor, temperature: float = 1.0, *, normalize: bool = False) -> float:
    r"""Return the mean entropy of ``softmax(logits / T)``.

    .. math:: -\frac{1}{N} \sum_n \sum_k p_{nk} \log p_{nk}, \quad p = \mathrm{softmax}(t / T)

    The softmax is computed in the dtype of the logits, the mean in float64.

    Args:
        logits: (N, K), float32 or float64.
        temperature: T > 0.
        normalize: Divide by log K. 0 then means that every image has one certain class, 1 that all classes are equally
            likely.

    Returns:
        Nats in [0, log K], or with ``normalize`` a share in [0, 1].
    """
    return float(entropies(logits, temperature).double().mean()) / (
        math.log(max(2, logits.shape[-1])) if normalize else 1.0
    )


def expected_calibration_error(logits: Tensor, targets: Tensor, num_bins: int = 15) -> float:
    r"""Return the mean gap between confidence and accuracy (Guo et al. 2017, arXiv 1706.04599, equation 3).

    .. math:: \mathrm{ECE} = \sum_b \frac{n_b}{M} |\mathrm{acc}_b - \mathrm{conf}_b|

    The confidence of an image is its largest probability; the bins split (0, 1] into equal widths.

    Args:
        logits: (M, K).
        targets: int64 (M,), the true classes.
        num_bins: The number of bins.

    Returns:
        A value in [0, 1].
    """
    confidence, predicted = logits.double().softmax(1).max(1)  # (M,)
    correct = (predicted == targets).double()
    bins = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1  # bin b is (b / num_bins, (b + 1) / num_bins]
    gaps = torch.zeros(num_bins, dtype=torch.float64).index_add_(0, bins, correct - confidence)
    return float(gaps.abs().sum() / len(targets))
