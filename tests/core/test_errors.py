"""Errors name the value, the range and the nearest match."""

from __future__ import annotations

import numpy as np
import pytest

from fedkd.core.errors import FedKDError, check_range, unknown_name


def test_unknown_name_gives_the_nearest():
    error = unknown_name("student", "resnt8", ["resnet8", "cnn"])
    assert str(error) == "Unknown student 'resnt8'. Did you mean 'resnet8'? Choose one of: cnn, resnet8."
    assert isinstance(error, ValueError)
    assert "Did you mean 'SCAFFOLD'?" in str(unknown_name("strategy", "Scafold", ["FedAvg", "SCAFFOLD"]))


@pytest.mark.parametrize("value", [-1, 2, float("nan"), float("inf")])
def test_range_is_checked(value):
    with pytest.raises(FedKDError, match=r"x must be >= 0 and < 2, got"):
        check_range("x", value, low=0, high=2, high_open=True)


@pytest.mark.parametrize(
    ("value", "whole", "message"),
    [
        ("2", False, "x must be a number, got '2'"),
        (None, False, "x must be a number, got None"),
        (True, True, "x must be an integer, got True"),
        (2.5, True, "x must be an integer, got 2.5"),
    ],
)
def test_other_types_are_errors(value, whole, message):
    with pytest.raises(FedKDError, match=message):
        check_range("x", value, low=0, whole=whole)
    check_range("x", np.int64(2), low=0, whole=True)
    check_range("x", np.float32(2.5), low=0)


@pytest.mark.parametrize(
    ("value", "message"), [(float("inf"), "x must be finite and >= 0, got inf"), (-1, "x must be >= 0, got -1")]
)
def test_what_is_not_finite_is_an_error_without_an_upper_bound(value, message):
    with pytest.raises(FedKDError, match=message):
        check_range("x", value, low=0)
    check_range("x", 10**400, low=0)


def test_range_includes_its_closed_ends():
    check_range("x", 0, low=0, high=1)
    check_range("x", 1, low=0, high=1)
