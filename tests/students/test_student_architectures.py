"""Sizes derived by hand, or published by the papers and by torchvision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedkd.students import create, students
from fedkd.students.resnet_cifar import Block


def parameters(student: nn.Module) -> int:
    return sum(p.numel() for p in student.parameters())


def test_the_cnn_is_that_of_the_fedavg_paper() -> None:
    convolutions = (5 * 5 * 1 * 32 + 32) + (5 * 5 * 32 * 64 + 64)
    fully_connected = (7 * 7 * 64 * 512 + 512) + (512 * 10 + 10)
    assert convolutions + fully_connected == 1_663_370  # the number in the paper
    assert parameters(create("cnn", 10, in_channels=1, image_size=28)) == 1_663_370
    # A norm has a weight and a bias a channel, and its bias replaces that of the convolution before it.
    assert parameters(create("cnn", 10, in_channels=1, image_size=28, norm="group")) == 1_663_370 + 32 + 64


@pytest.mark.parametrize(("image_size", "pooled"), [(8, 2), (9, 2), (11, 2), (28, 7), (33, 8)])
def test_the_cnn_fits_any_image_size(image_size: int, pooled: int) -> None:
    student = create("cnn", 3, image_size=image_size)
    assert student.hidden.in_features == 64 * pooled * pooled
    assert student(torch.rand(2, 3, image_size, image_size)).shape == (2, 3)


def resnet_parameters(depth: int) -> int:
    n = (depth - 2) // 6
    convolutions = 9 * (3 * 16 + 2 * n * 16 * 16 + 16 * 32 + (2 * n - 1) * 32 * 32 + 32 * 64 + (2 * n - 1) * 64 * 64)
    norms = 2 * (16 + 2 * n * (16 + 32 + 64))
    return convolutions + norms + 64 * 10 + 10


@pytest.mark.parametrize(
    ("name", "count"), [("resnet8", 75_290), ("resnet20", 269_722), ("resnet32", 464_154), ("resnet56", 853_018)]
)
def test_cifar_resnets_are_those_of_the_paper(name: str, count: int) -> None:
    assert resnet_parameters(int(name.removeprefix("resnet"))) == count
    student = create(name, 10)
    assert parameters(student) == count
    weighted = [m for m in student.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == int(name.removeprefix("resnet"))  # 6n + 2: option A adds no layer
    assert parameters(create(name, 10, norm="group")) == count


def test_width_multiplies_the_channels() -> None:
    half = create("resnet8", 10, width=0.5)
    assert half.conv.out_channels == 8
    assert half.head.in_features == 32
    assert create("resnet8", 10, depth=14).stage3[1].conv1.weight.shape == (64, 64, 3, 3)


def test_the_shortcut_takes_every_second_pixel_and_pads_with_zeros() -> None:
    block = Block(2, 4, stride=2, norm="group").eval()
    nn.init.zeros_(block.norm2.weight)  # the residual branch gives nothing, so only the shortcut is left
    x = torch.rand(1, 2, 4, 4)
    out = block(x)
    assert torch.equal(out[:, :2], x[:, :, ::2, ::2])
    assert not out[:, 2:].any()


def test_cifar_resnets_start_with_kaiming_weights() -> None:
    torch.manual_seed(0)
    weight = create("resnet20", 10).stage3[1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)


PUBLISHED = {  # 1000 classes, 224 pixels: torchvision's documentation
    "resnet18": 11_689_512,
    "mobilenet_v2": 3_504_872,
    "mobilenet_v3_small": 2_542_856,
    "mobilenet_v3_large": 5_483_032,
    "shufflenet_v2_x0_5": 1_366_792,
    "shufflenet_v2_x1_0": 2_278_604,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_from_64_pixels_they_are_torchvisions_own(name: str) -> None:
    from torchvision import models

    with torch.device("meta"):
        student = create(name, 1000, image_size=224)
        original = models.get_model(name, weights=None)
    assert parameters(student) == PUBLISHED[name]
    ours = {key.removeprefix("network."): value.shape for key, value in student.state_dict().items()}
    assert ours == {key: value.shape for key, value in original.state_dict().items()}
    with torch.device("meta"):
        grouped = create(name, 1000, image_size=224, norm="group")
    assert parameters(grouped) == PUBLISHED[name]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in grouped.modules())


def smallest_map(student: nn.Module, image_size: int) -> int:
    sizes = []
    for module in student.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d):
            module.register_forward_hook(lambda m, i, out: sizes.append(out.shape[-1]) if out.shape[-1] > 1 else None)
    student.eval()(torch.rand(1, 3, image_size, image_size))
    return min(sizes)


@pytest.mark.parametrize(
    ("name", "shrink"),
    [("resnet18", 8), ("shufflenet_v2_x0_5", 8), ("mobilenet_v2", 16), ("mobilenet_v3_small", 16)],
)
def test_small_images_get_a_stem_that_keeps_their_pixels(name: str, shrink: int) -> None:
    assert smallest_map(create(name, 10, image_size=32), 32) == 32 // shrink
    assert smallest_map(create(name, 10, image_size=64), 64) == 64 // 32


def test_resnet18_for_small_images_has_the_known_size() -> None:
    changed = (64 * 3 * 9 + 512 * 10 + 10) - (64 * 3 * 49 + 512 * 1000 + 1000)
    assert parameters(create("resnet18", 10)) == PUBLISHED["resnet18"] + changed == 11_173_962


def test_dropout_is_off_unless_asked_for() -> None:
    for name in ("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"):
        rates = {
            rate: {m.p for m in create(name, 10, dropout=rate).modules() if isinstance(m, nn.Dropout)}
            for rate in (0.0, 0.3)
        }
        assert rates == {0.0: {0.0}, 0.3: {0.3}}
        assert {m.p for m in create(name, 10).modules() if isinstance(m, nn.Dropout)} == {0.0}


def test_every_student_standardizes_its_images() -> None:
    for name in students:
        student = create(name, 2).eval()
        seen: list[torch.Tensor] = []
        first = next(m for m in student.modules() if isinstance(m, nn.Conv2d))
        first.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        images = torch.rand(1, 3, 32, 32)
        student(images)
        torch.testing.assert_close(seen[0], 4 * images - 2)
