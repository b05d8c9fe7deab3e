"""Arithmetic on what travels."""

from __future__ import annotations

import torch
from torch import nn

from fedkd.core.tensors import add_scaled, merge_buffers, num_bytes, split_state, subtract, weighted_mean


def test_state_is_split_by_kind_and_copied():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    parameters, buffers = split_state(module)
    assert list(parameters) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert list(buffers) == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    parameters["0.bias"].fill_(9)
    assert not (module[0].bias == 9).any()


def test_mean_is_weighted_by_hand_and_float32():
    items = [
        {"w": torch.tensor([1.0, 2.0], dtype=torch.bfloat16)},
        {"w": torch.tensor([5.0, 6.0], dtype=torch.bfloat16)},
    ]
    mean = weighted_mean(items, [3, 1])
    assert torch.equal(mean["w"], torch.tensor([2.0, 3.0]))
    assert mean["w"].dtype == torch.float32


def test_many_small_bfloat16_updates_are_not_lost():
    # in bfloat16, 1 + 1/512 rounds to 1: the sum of 512 such terms must still be seen
    items = [{"w": torch.tensor([1.0], dtype=torch.bfloat16)}] + [
        {"w": torch.tensor([2.0**-9], dtype=torch.bfloat16)} for _ in range(511)
    ]
    assert abs(weighted_mean(items, [1] * 512)["w"].item() - (1 + 511 / 512) / 512) < 1e-7


def test_integer_buffers_take_the_maximum():
    items = [
        {"mean": torch.tensor([1.0]), "steps": torch.tensor(7)},
        {"mean": torch.tensor([3.0]), "steps": torch.tensor(4)},
    ]
    merged = merge_buffers(items[0], items, [1, 3])
    assert merged["mean"].item() == 2.5
    assert merged["steps"].item() == 7
    assert merged["steps"].dtype == torch.int64


def test_delta_and_step_are_inverse():
    old, new = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([4.0, 0.0])}
    delta = subtract(new, old)
    assert torch.equal(delta["w"], torch.tensor([3.0, -2.0]))
    assert torch.equal(add_scaled(old, delta)["w"], new["w"])
    assert torch.equal(add_scaled(old, delta, -2.0)["w"], torch.tensor([-5.0, 6.0]))


def test_bytes_count_the_dtype():
    assert num_bytes({"a": torch.zeros(3, 2)}, {"b": torch.zeros(5, dtype=torch.int64)}) == 24 + 40
