"""Accuracy over all images, over classes, and of each class."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def accuracies(confusion: Tensor, classes: Iterable[str]) -> dict[str, Tensor]:
    """Derive accuracies from a confusion matrix.

    Args:
        confusion: (K, K) counts, rows are true classes.
        classes: K names.

    Returns:
        ``accuracy``, ``balanced_accuracy`` (mean of the per-class ones, over the classes with images) and
        ``accuracy/<class>``, each in [0, 1]; a class without images gives NaN.
    """
    confusion = confusion.double()
    hits, counts = confusion.diagonal(), confusion.sum(dim=1)
    per_class = hits / counts  # (K,), 0 / 0 is NaN
    named = {f"accuracy/{name}": value.float() for name, value in zip(classes, per_class, strict=True)}
    return {
        "accuracy": (hits.sum() / counts.sum()).float(),
        "balanced_accuracy": per_class.nanmean().float(),
        **named,
    }
