"""Networks of timm as students: by name, for the data's size and channels, and from real pretrained weights."""

from __future__ import annotations

import functools
import itertools
import json
import pickle

import pytest
import torch
from helpers import datamodule, module, same, weights
from torch import nn

import fedkd
from fedkd.partition import ClassSpecific
from fedkd.strategies import ClosedFormHead

timm = pytest.importorskip("timm")


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext", "mobilenetv3_small_050"]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_name_makes_a_student_for_the_data(name, channels):
    student = fedkd.students.create(f"timm/{name}", num_classes=5, in_channels=channels, image_size=32)
    fedkd.students.check(student, 5, (channels, 32, 32))
    torch.manual_seed(1)
    first = fedkd.students.create(f"timm/{name}", num_classes=5, in_channels=channels, image_size=32)
    torch.manual_seed(1)
    again = fedkd.students.create(f"timm/{name}", num_classes=5, in_channels=channels, image_size=32)
    assert same(first.state_dict(), again.state_dict())
    assert not any(name.startswith("normalize") for name in student.state_dict())


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "mobilenetv3_small_050", "efficientvit_m0"])
def test_group_norm_takes_the_place_of_batch_norm_and_keeps_activations(name):
    made = functools.partial(fedkd.students.create, f"timm/{name}", num_classes=5, image_size=32)
    student, before = made(norm="group"), made()
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in student.modules())
    acts = [
        sum(isinstance(layer, nn.ReLU | nn.ReLU6 | nn.SiLU | nn.Hardswish | nn.GELU) for layer in each.modules())
        for each in (student, before)
    ]
    assert acts[0] == acts[1] > 0
    assert fedkd.students.check(student, 5, (3, 32, 32)) is None


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "levit_128s"])
def test_a_batch_of_one_image_trains_and_all_others_as_in_timm(name):
    size = 224 if name == "levit_128s" else 32
    torch.manual_seed(0)
    student = fedkd.students.create(f"timm/{name}", num_classes=5, image_size=size).train()
    torch.manual_seed(0)
    bare = timm.create_model(name, num_classes=5).train()
    assert same(student.network.state_dict(), bare.state_dict())
    assert [m.momentum for m in student.modules() if hasattr(m, "momentum")] == [
        m.momentum for m in bare.modules() if hasattr(m, "momentum")
    ]
    images = torch.rand(2, 3, size, size)
    torch.manual_seed(1)
    ours = student.network(images)
    torch.manual_seed(1)
    assert torch.equal(ours, bare(images))
    assert same(student.network.state_dict(), bare.state_dict())
    student(images[:1]).sum().backward()
    assert pickle.loads(pickle.dumps(student)).state_dict().keys() == student.state_dict().keys()


def test_a_small_stem_sees_four_times_the_pixels():
    shapes = []
    for small in (False, True):
        student = fedkd.students.create("timm/test_resnet", num_classes=5, image_size=32, small_stem=small)
        shapes.append(fedkd.students.stages(student, (3, 32, 32))[-1].height)
    assert shapes[1] >= 2 * shapes[0]


def test_real_pretrained_weights_classify_as_timm_does(shared):
    path = shared / "models" / "efficientnet-lite0"
    config = json.loads((path / "config.json").read_text())
    name, file = f"timm/{config['architecture']}", str(path / "model.safetensors")
    student = fedkd.students.create(name, num_classes=1000, image_size=64, pretrained=file).eval()
    bare = timm.create_model(config["architecture"], pretrained=True, pretrained_cfg_overlay={"file": file}).eval()
    images = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(config["pretrained_cfg"][key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(student(images), bare((images - mean) / std))
        gray = fedkd.students.create(name, num_classes=7, in_channels=1, image_size=64, pretrained=file).eval()
        assert gray(images[:, :1]).shape == (2, 7)


def test_a_run_from_pretrained_weights_needs_them_no_more(shared, tmp_path, monkeypatch):
    file = tmp_path / "weights.safetensors"
    from safetensors.torch import save_file

    torch.manual_seed(3)
    save_file(timm.create_model("test_resnet", num_classes=11).state_dict(), file)
    options = {"pretrained": str(file), "norm": "group", "small_stem": True}
    trained = module("timm/test_resnet", student_options=options)
    data = datamodule(3, ClassSpecific(1))
    fedkd.Federation(1, strategy=ClosedFormHead(), run_dir=tmp_path / "run", trainer={"accelerator": "cpu"}).fit(
        trained, data
    )
    file.unlink()
    loaded = fedkd.load_student(tmp_path / "run")
    assert same(loaded.state_dict(), weights(trained))


def saved(name="test_resnet", prefix="", **options):
    weights = timm.create_model(name, num_classes=11, **options).state_dict()
    return {prefix + key: value for key, value in weights.items()}


def test_a_file_with_weights_is_taken_whole(tmp_path):
    headless = {key: value for key, value in saved().items() if not key.startswith("fc.")}
    wrapped = {"state_dict_ema": saved(prefix="module.")}
    for content, classes in itertools.product((saved(), headless, wrapped), (5, 1000)):
        torch.save(content, tmp_path / "weights.pth")
        student = fedkd.students.create(
            "timm/test_resnet", classes, in_channels=1, pretrained=str(tmp_path / "weights.pth")
        )
        tensors = content.get("state_dict_ema", content)
        (deep,) = (value for key, value in tensors.items() if key.endswith("layer4.0.conv1.weight"))
        torch.testing.assert_close(student.network.layer4[0].conv1.weight, deep, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            lambda: saved(prefix="encoder."),
            "The weights for 'timm/test_resnet' lack .* tensors, such as 'conv1.0.weight'",
        ),
        (lambda: saved("test_efficientnet"), "The weights for 'timm/test_resnet' lack"),
        (
            lambda: {**saved(), "layer4.0.conv1.weight": torch.zeros(3, 3)},
            "do not fit: size mismatch for layer4.0.conv1",
        ),
        (lambda: {k: v for k, v in saved().items() if "bn1" not in k}, "lack .*bn1"),
        (lambda: [1, 2], "has no state dict, but a list"),
    ],
)
@pytest.mark.parametrize("classes", [5, 1000])
def test_weights_of_another_network_are_refused(content, message, classes, tmp_path):
    torch.manual_seed(0)
    torch.save(content(), tmp_path / "weights.pth")
    with pytest.raises(fedkd.FedKDError, match=message) as raised:
        fedkd.students.create("timm/test_resnet", classes, pretrained=str(tmp_path / "weights.pth"))
    assert len(str(raised.value).splitlines()) == 1
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_that_holds_no_weights_is_one_line(suffix, tmp_path):
    file = tmp_path / f"weights.{suffix}"
    file.write_bytes(b"no weights")
    with pytest.raises(fedkd.FedKDError, match=f"{file.name}' cannot be read as weights"):
        fedkd.students.create("timm/test_resnet", 5, pretrained=str(file))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("timm/resnet81", {}, r"Unknown student 'timm/resnet81'.*timm/resnet18'.*fedkd students 'timm/\*' lists"),
        ("timm/test_resnet", {"widht": 3}, "timm refuses to make 'test_resnet' with widht=3: .*widht"),
        ("timm/resnet18.tv_in1", {}, "Unknown tag of student 'timm/resnet18' 'tv_in1'. Did you mean 'tv_in1k'"),
        ("timm/davit_giant.a", {}, r"Unknown tag .* 'a'. Choose one of: \(none\)"),
        ("timm/test_resnet", {"act_layer": "nope"}, "refuses to make 'test_resnet' with act_layer='nope': .*nope"),
        ("timm/test_vit", {"patch_size": 0}, "refuses to make 'test_vit' with patch_size=0: ZeroDivisionError"),
        ("timm/test_vit", {"global_pool": "nope"}, "refuses to make 'test_vit' with global_pool='nope'"),
        ("timm/test_resnet", {"pretrained": "/nowhere/at.all"}, "pretrained: there is no file '/nowhere/at.all'"),
        ("timm/test_vit", {"small_stem": True}, "small_stem"),
        ("timm/test_resnet", {"norm": "layer"}, "norm"),
    ],
)
def test_what_cannot_be_is_one_line(name, options, message):
    with pytest.raises(fedkd.FedKDError, match=message) as raised:
        fedkd.students.create(name, num_classes=5, image_size=32, **options)
    assert len(str(raised.value)) < 400
