"""Measures of label skew, computed from counts by client and class (J, K)."""

from __future__ import annotations

import numpy as np


def effective_classes(counts: np.ndarray) -> np.ndarray:
    r"""Return the effective number of classes of each client: the exponential of its label entropy.

    .. math:: \exp\left(-\sum_k p_k \log p_k\right) \in [1, K]

    It is n for n classes with equal counts (Hill 1973, order 1), and 1 for a single class.

    Args:
        counts: Images by client and class, (J, K).

    Returns:
        float64 (J,), NaN for a client without images.
    """
    shares = _shares(counts)
    return np.exp(-_sum_p_log_ratio(shares, np.ones_like(shares)))


def js_distance(counts: np.ndarray) -> np.ndarray:
    r"""Return the Jensen-Shannon distance in base 2 between each client's classes p and those of all clients q.

    .. math:: \sqrt{\tfrac12 KL(p \| m) + \tfrac12 KL(q \| m)} \in [0, 1], \quad m = \tfrac12 (p + q)

    It is a metric (Endres and Schindelin 2003): 0 for equal distributions, 1 for distributions without a common class.
    It equals ``scipy.spatial.distance.jensenshannon(p, q, base=2)``.

    Args:
        counts: Images by client and class, (J, K).

    Returns:
        float64 (J,), NaN for a client without images.
    """
    p, q = _shares(counts), _shares(counts.sum(axis=0, keepdims=True))  # (J, K), (1, K)
    middle = (p + q) / 2
    divergence = (_sum_p_log_ratio(p, middle) + _sum_p_log_ratio(np.broadcast_to(q, p.shape), middle)) / 2
    return np.sqrt(np.clip(divergence / np.log(2), 0, 1))


def summarize(values: np.ndarray) -> dict[str, float | None]:
    """Return min, median, mean and max of the values that are not NaN; None for each if all are NaN."""
    values = values[~np.isnan(values)]
    if not len(values):
        return dict.fromkeys(("min", "median", "mean", "max"))
    least, most = float(values.min()), float(values.max())
    return {"min": least, "median": float(np.median(values)), "mean": float(values.mean()), "max": most}


def without_nan(values: np.ndarray) -> list[float | None]:
    """Return a list for JSON, with None in place of NaN, which JSON does not have."""
    return [None if np.isnan(value) else float(value) for value in values]


def _shares(counts: np.ndarray) -> np.ndarray:
    """Return every row divided by its sum; NaN where the sum is 0."""
    totals = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)


def _sum_p_log_ratio(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return the sum of p log(p / q) over classes, where 0 log 0 = 0, (J,)."""
    ratio = np.divide(p, q, out=np.ones(p.shape), where=p != 0)  # NaN != 0: a client without images stays NaN
    return (p * np.log(ratio)).sum(axis=1)
