from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fedkd.students
from fedkd.core.errors import FedKDError
from fedkd.students import create, register, students


def test_the_promised_students_are_there() -> None:
    assert list(students) == [
        "cnn",
        "mobilenet_v2",
        "mobilenet_v3_large",
        "mobilenet_v3_small",
        "resnet18",
        "resnet20",
        "resnet32",
        "resnet56",
        "resnet8",
        "shufflenet_v2_x0_5",
        "shufflenet_v2_x1_0",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet21"}, r"Unknown student 'resnet21'. Did you mean 'resnet2?\d"),
        (
            {"name": "cnn", "norm": "grup"},
            "Unknown norm 'grup'. Did you mean 'group'\\? Choose one of: batch, group, none",
        ),
        ({"name": "resnet8", "norm": "none"}, "Unknown norm 'none'.*batch, group"),
        ({"name": "resnet18", "norm": "layer"}, "Unknown norm 'layer'.*batch, group"),
        ({"name": "shufflenet_v2_x0_5", "norm": "layer"}, "Unknown norm 'layer'.*batch, group"),
        ({"name": "mobilenet_v2", "norm": "layer"}, "Unknown norm 'layer'.*batch, group"),
        ({"name": "resnet8", "widht": 2}, "option of student 'resnet8' 'widht'. Did you mean 'width'"),
        ({"name": "cnn", "width": 2}, "option of student 'cnn' 'width'.*Choose one of: norm"),
        ({"name": "resnet8", "width": 0}, "width must be >= 0.0625, got 0"),
        ({"name": "resnet8", "depth": 18}, "depth must be 6n \\+ 2 .*got 18"),
        ({"name": "mobilenet_v3_small", "dropout": 1.0}, "dropout must be >= 0 and < 1, got 1.0"),
        ({"name": "cnn", "num_classes": 0}, "num_classes must be >= 1, got 0"),
        ({"name": "cnn", "in_channels": 0}, "in_channels must be >= 1, got 0"),
        ({"name": "cnn", "image_size": 7}, "student .cnn. takes images of 8 pixels or more, got 7 x 7"),
        ({"name": "cnn", "image_width": 7}, "takes images of 8 pixels or more, got 32 x 7"),
    ],
)
def test_a_wrong_value_is_named(arguments: dict, message: str) -> None:
    with pytest.raises(FedKDError, match=message):
        create(**{"num_classes": 10, **arguments})


def test_a_third_party_can_add_a_student() -> None:
    @register("linear")
    def linear(num_classes: int, in_channels: int, image_size: int, scale: float = 1.0) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(int(scale) * in_channels * image_size**2, num_classes))

    assert create("linear", 7, in_channels=1, image_size=8)[1].weight.shape == (7, 64)
    assert create("linear", 7, in_channels=1, image_size=8, scale=2.0)[1].weight.shape == (7, 128)
    with pytest.raises(FedKDError, match=r"option of student 'linear' 'norm'. Choose one of: scale"):
        create("linear", 7, norm="batch")
    with pytest.raises(FedKDError, match="already used"):
        register("cnn")(linear)


def test_a_third_party_student_may_take_any_option() -> None:
    seen = {}

    @register("greedy")
    def greedy(**everything: object) -> nn.Module:
        seen.update(everything)
        return nn.Identity()

    create("greedy", 3, norm="group", color="red")
    assert seen == {"num_classes": 3, "in_channels": 3, "image_size": 32, "norm": "group", "color": "red"}


@pytest.mark.parametrize("name", students)
def test_weights_depend_on_the_global_seed_alone(name: str) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in create(name, 10).parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


@pytest.mark.slow
def test_importing_students_does_not_import_torchvision() -> None:
    # A bare package stands in for fedkd, whose own __init__ may load Lightning, which loads torchvision by itself.
    folder = str(Path(fedkd.students.__file__).parents[1])
    code = (
        "import sys, types; fedkd = types.ModuleType('fedkd'); fedkd.__path__ = [sys.argv[1]]\n"
        "sys.modules['fedkd'] = fedkd\n"
        "import fedkd.students; fedkd.students.create('resnet8', 10); assert 'torchvision' not in sys.modules\n"
        "fedkd.students.create('resnet18', 10); assert 'torchvision' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
