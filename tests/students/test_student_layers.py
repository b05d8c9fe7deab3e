from __future__ import annotations

import pytest
import torch
from torch import nn

from fedkd.core.errors import FedKDError
from fedkd.students import BatchNorm2d, Normalize, make_norm, replace_batch_norms
from fedkd.students.layers import GroupNorm, num_groups


def test_normalize_maps_the_unit_interval_to_two_standard_deviations() -> None:
    normalize = Normalize()
    images = torch.tensor([0.0, 0.25, 0.5, 1.0]).reshape(1, 1, 2, 2)
    assert normalize(images).flatten().tolist() == [-2.0, -1.0, 0.0, 2.0]
    assert not normalize.state_dict()
    assert not list(normalize.buffers())


def test_batch_norm_of_one_value_uses_the_running_statistics_and_keeps_them() -> None:
    norm = BatchNorm2d(2, eps=0.0).train()
    norm.running_mean.copy_(torch.tensor([1.0, 2.0]))
    norm.running_var.copy_(torch.tensor([4.0, 9.0]))
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    out = norm(torch.tensor([5.0, -1.0]).reshape(1, 2, 1, 1))
    assert out.flatten().tolist() == [2.0, -1.0]  # (5 - 1) / 2, (-1 - 2) / 3
    out.sum().backward()
    assert norm.weight.grad.tolist() == [2.0, -1.0]
    assert norm.bias.grad.tolist() == [1.0, 1.0]
    assert all(torch.equal(before[key], value) for key, value in norm.state_dict().items())


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (1, 3, 1, 2), (4, 3, 5, 5)])
@pytest.mark.parametrize("training", [True, False])
def test_any_other_batch_is_treated_as_by_torch(shape: tuple[int, ...], training: bool) -> None:
    torch.manual_seed(0)
    ours, torchs = BatchNorm2d(3).train(training), nn.BatchNorm2d(3).train(training)
    x = torch.randn(shape)
    assert torch.equal(ours(x), torchs(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), torchs.buffers(), strict=True))


@pytest.mark.parametrize(
    ("channels", "groups"),
    [
        (1, 1),
        (7, 1),
        (8, 1),
        (13, 1),
        (16, 2),
        (24, 3),
        (64, 8),
        (88, 11),
        (256, 32),
        (576, 32),
        (1280, 32),
        (1000, 25),
    ],
)
def test_groups_divide_the_channels_and_hold_eight_or_more(channels: int, groups: int) -> None:
    assert num_groups(channels) == groups
    assert make_norm("group", channels).num_groups == groups


def test_group_norm_of_a_single_pixel_still_has_something_to_say() -> None:
    x = torch.randn(1, 16, 1, 1, generator=torch.Generator().manual_seed(0), requires_grad=True)
    out = make_norm("group", 16)(x)
    assert out.abs().min() > 0
    out[0, 0].sum().backward()
    assert x.grad.abs().max() > 0.1


@pytest.mark.parametrize(("norm", "kind"), [("batch", BatchNorm2d), ("group", GroupNorm)])
def test_batch_norms_are_replaced_at_every_depth(norm: str, kind: type[nn.Module]) -> None:
    inner = nn.Sequential(nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32, eps=1e-3, momentum=0.01))
    network = nn.Sequential(nn.BatchNorm2d(16), inner)
    conv = inner[0]
    replace_batch_norms(network, norm)
    assert type(network[0]) is kind
    assert type(inner[1]) is kind
    assert inner[1].eps == 1e-3
    assert inner[1].weight.shape == (32,)
    assert inner[0] is conv
    if norm == "batch":
        assert inner[1].momentum == 0.1


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_norms_of_vectors_are_replaced_too(norm: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm1d(16, eps=1e-3))
    network[0].weight.data.uniform_()
    weight = network[0].weight.clone()
    replace_batch_norms(network, norm)
    network(torch.randn(1, 16)).sum().backward()  # nn.BatchNorm1d refuses a single vector
    assert torch.equal(network[0].weight, weight)
    if norm == "group":
        assert not list(network.buffers())
        x = torch.randn(3, 16, requires_grad=True)
        grouped = x.reshape(3, 2, 8)
        expected = (grouped - grouped.mean(2, True)) / (grouped.var(2, unbiased=False, keepdim=True) + 1e-3).sqrt()
        torch.testing.assert_close(network(x), expected.reshape(3, 16) * weight)


def test_an_unknown_norm_is_named() -> None:
    with pytest.raises(FedKDError, match=r"Unknown norm 'bach'. Did you mean 'batch'"):
        make_norm("bach", 8)
    with pytest.raises(FedKDError, match="Unknown norm 'none'"):
        replace_batch_norms(nn.Sequential(), "none")


def test_group_norm_is_in_float32_under_autocast_and_elsewhere_in_its_inputs_precision() -> None:
    layer, images = make_norm("group", 16), torch.randn(4, 16, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = layer(images.bfloat16())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, layer(images.bfloat16().float()), rtol=0, atol=0)
    assert layer.bfloat16()(images.bfloat16()).dtype == torch.bfloat16
