"""What an exchange asks of the updates that it hands on."""

from __future__ import annotations

import pytest
import torch

from fedkd.core.messages import ClientUpdate
from fedkd.server.exchange import difference, shapes_of


def update(client: int, **tensors: torch.Tensor) -> ClientUpdate:
    return ClientUpdate(client, num_examples=3, delta=tensors)


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"w": (2, 3), "b": (3,)}, None),
        ({"w": (2, 2), "b": (3,)}, "the delta 'w' of its update is (2, 2), and that of client 0 (2, 3)"),
        ({"w": (2, 3)}, "the delta 'b' of its update is missing, and that of client 0 (3,)"),
        ({"w": (2, 3), "b": (3,), "c": (1,)}, "the delta 'c' of its update is (1,), and that of client 0 missing"),
    ],
)
def test_the_updates_of_an_exchange_have_the_same_tensors(tensors: dict[str, tuple[int, ...]], expected: str | None):
    first = shapes_of(update(0, w=torch.zeros(2, 3), b=torch.zeros(3)))
    found = shapes_of(update(1, **{name: torch.zeros(shape) for name, shape in tensors.items()}))
    assert difference(found, first, 0) == expected
