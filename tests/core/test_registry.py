"""Names that are registered once."""

from __future__ import annotations

import pytest

from fedkd.core.errors import FedKDError
from fedkd.core.registry import Registry


def test_a_name_used_twice_is_an_error():
    registry: Registry[object] = Registry("thing")
    first = object()
    registry.add("a", first)
    registry.add("a", first)  # the same thing again, as when a module is reloaded, is not a clash
    with pytest.raises(FedKDError, match="thing name 'a' is already used"):
        registry.add("a", object())
    assert registry["a"] is first
