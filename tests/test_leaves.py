"""Errors, registries and seeds."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from fedkd.core.errors import FedKDError, check_range, unknown_name
from fedkd.core.registry import Registry
from fedkd.core.seeding import derive_seed, seeded


def test_unknown_name_gives_the_nearest():
    error = unknown_name("student", "resnt8", ["resnet8", "cnn"])
    assert str(error) == "Unknown student 'resnt8'. Did you mean 'resnet8'? Choose one of: cnn, resnet8."
    assert isinstance(error, ValueError)


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
def test_a_number_is_asked_for(value, whole, message):
    with pytest.raises(FedKDError, match=message):
        check_range("x", value, low=0, whole=whole)
    check_range("x", np.int64(2), low=0, whole=True)
    check_range("x", np.float32(2.5), low=0)


def test_range_includes_its_closed_ends():
    check_range("x", 0, low=0, high=1)
    check_range("x", 1, low=0, high=1)


def test_a_name_used_twice_is_an_error():
    registry: Registry[object] = Registry("thing")
    first = object()
    registry.add("a", first)
    registry.add("a", first)  # the same thing again, as when a module is reloaded, is not a clash
    with pytest.raises(FedKDError, match="thing name 'a' is already used"):
        registry.add("a", object())
    assert registry["a"] is first


def test_seeds_are_pinned_and_differ():
    assert derive_seed(0, "client", 1, 2) == 7009739055772048212
    seeds = {derive_seed(s, "client", r, c) for s in range(5) for r in range(20) for c in range(20)}
    assert len(seeds) == 2000
    assert derive_seed(1, 23) != derive_seed(12, 3)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeded_restores_every_generator():
    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    expected = draw()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    with seeded(1, "a"):
        inside = draw()
    assert draw() == expected
    with seeded(1, "a"):
        assert draw() == inside
    with seeded(2, "a"):
        assert draw() != inside
