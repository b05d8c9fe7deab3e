"""Effective classes and Jensen-Shannon distance: by hand, at their limits, and against scipy."""

from __future__ import annotations

import numpy as np
import pytest

from fedkd.partition.report.skew import effective_classes, js_distance, summarize, without_nan

COUNTS = np.array([[2, 2], [4, 0], [0, 0]])


def test_effective_classes_by_hand() -> None:
    assert effective_classes(COUNTS) == pytest.approx([2, 1, np.nan], nan_ok=True)
    # p = (1/2, 1/4, 1/4): exp(1.5 log 2) = 2 sqrt 2
    assert effective_classes(np.array([[2, 1, 1], [7, 7, 7]])) == pytest.approx([2 * np.sqrt(2), 3])


def test_js_distance_by_hand() -> None:
    """All together are (6/8, 2/8); of the second client m = (7/8, 1/8)."""
    first = 0.5 * np.log2(0.5 / 0.625) + 0.5 * np.log2(0.5 / 0.375) + 0.75 * np.log2(0.75 / 0.625)
    first += 0.25 * np.log2(0.25 / 0.375)
    second = np.log2(8 / 7) + 0.75 * np.log2(6 / 7) + 0.25 * np.log2(2)
    assert js_distance(COUNTS) == pytest.approx([np.sqrt(first / 2), np.sqrt(second / 2), np.nan], nan_ok=True)


def test_js_distance_at_its_limits() -> None:
    assert js_distance(np.full((4, 7), 3)).tolist() == [0] * 4
    tiny = js_distance(np.array([[1, 0], [0, 10**12]]))
    assert tiny == pytest.approx([1, 0], abs=1e-5)
    assert tiny[0] < 1
    assert np.isnan(js_distance(np.zeros((2, 3), int))).all()


def test_js_distance_is_scipys() -> None:
    distance = pytest.importorskip("scipy.spatial.distance").jensenshannon
    counts = np.random.default_rng(0).integers(0, 20, (50, 10)) * np.random.default_rng(1).integers(0, 2, (50, 10))
    assert counts.sum(axis=1).min() > 0
    assert js_distance(counts) == pytest.approx([distance(row, counts.sum(axis=0), base=2) for row in counts])


def test_summaries() -> None:
    assert summarize(np.array([1.0, np.nan, 2.0, 6.0])) == {"min": 1, "median": 2, "mean": 3, "max": 6}
    assert summarize(np.array([np.nan])) == {"min": None, "median": None, "mean": None, "max": None}
    assert without_nan(np.array([0.5, np.nan])) == [0.5, None]
