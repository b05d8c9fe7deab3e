"""Classifiers of torchvision as students: by name, for the data's size and channels, and from pretrained weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import datamodule, module, same, weights
from torch import nn
from torchvision import models

import fedkd
from fedkd.partition import ClassSpecific
from fedkd.students import check, create, stages
from fedkd.students.pretrained import take_weights
from fedkd.students.stem import enlarge


@pytest.fixture
def downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put weights where torchvision keeps what it has downloaded; return the network that has them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def download(name: str, member: str = "DEFAULT", **options) -> nn.Module:
        torch.manual_seed(3)
        network = models.get_model(name, weights=None, **options)
        place = tmp_path / "hub" / "checkpoints"
        place.mkdir(parents=True)
        url = models.get_model_weights(name)[member].url
        torch.save(network.state_dict(), place / url.rsplit("/", 1)[1])
        return network.eval()

    return download


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_name_makes_a_student_for_the_data(name, channels):
    def make() -> nn.Module:
        torch.manual_seed(1)
        return create(f"torchvision/{name}", num_classes=5, in_channels=channels, image_size=32)

    student = make()
    check(student, 5, (channels, 32, 32))
    assert same(student.state_dict(), make().state_dict())
    assert not any(key.startswith("normalize") for key in student.state_dict())


def test_pretrained_weights_are_those_that_torchvision_downloads(downloaded):
    bare = downloaded("squeezenet1_1")
    student = create("torchvision/squeezenet1_1", num_classes=1000, image_size=64, pretrained=True).eval()
    images = torch.rand(2, 3, 64, 64)
    transforms = models.SqueezeNet1_1_Weights.DEFAULT.transforms()
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (transforms.mean, transforms.std))
    with torch.no_grad():
        torch.testing.assert_close(student(images), bare((images - mean) / std))
        # the last layer is new for other classes, and a gray image answers as a colored one of equal channels
        gray = create("torchvision/squeezenet1_1", 7, in_channels=1, image_size=64, pretrained=True).eval()
        assert gray(images[:, :1]).shape == (2, 7)
        first, of_gray = student.network.features[0], gray.network.features[0]
        equal = images[:, :1].expand(-1, 3, -1, -1)
        torch.testing.assert_close(of_gray(images[:, :1]), first(equal))
        assert torch.equal(gray.network.features[3].squeeze.weight, student.network.features[3].squeeze.weight)


def test_weights_of_another_name_and_of_a_file(downloaded, tmp_path):
    bare = downloaded("mobilenet_v2", "IMAGENET1K_V1")
    other = create("torchvision/mobilenet_v2", 3, pretrained="IMAGENET1K_V1").network
    assert torch.equal(other.features[1].conv[1].weight, bare.features[1].conv[1].weight)
    file = tmp_path / "mine.pth"
    torch.save({"model": models.squeezenet1_1(num_classes=4).state_dict()}, file)
    found = torch.load(file)["model"]
    student = create("torchvision/squeezenet1_1", 4, pretrained=str(file))
    assert same(dict(student.network.state_dict()), dict(found))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_that_convert_their_input_get_it_as_their_weights_expect(name):
    """Torchvision converts from ImageNet's mean within the network; the student standardizes so at once."""
    torch.manual_seed(0)
    options = {"init_weights": False, "aux_logits": False}
    bare = models.get_model(name, weights=None, num_classes=3, transform_input=True, **options).eval()
    student = create(f"torchvision/{name}", 3, image_size=96).eval()
    student.network.load_state_dict(bare.state_dict())
    images = torch.rand(1, 3, 96, 96)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = bare((images - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
        torch.testing.assert_close(student(images), expected, rtol=1e-3, atol=1e-4)


def test_a_vision_transformers_positions_are_interpolated():
    given, target = small_vit(64), small_vit(32)  # 4 x 4 and 2 x 2 patches, and a class token
    grid = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 4, 16).reshape(1, 16, 16)  # each row its number
    given.encoder.pos_embedding.data = torch.cat([torch.full((1, 1, 16), 9.0), grid], dim=1)
    take_weights(target, given.state_dict(), 4, (3, 32, 32), "mine")
    found = target.encoder.pos_embedding[0]
    assert found.shape == (5, 16)
    assert torch.equal(found[0], torch.full((16,), 9.0))
    upper, lower = found[1:3], found[3:]  # rows 0 and 1 make the upper one, 2 and 3 the lower
    torch.testing.assert_close(upper, upper[:1, :1].expand(2, 16))
    torch.testing.assert_close(upper + lower, torch.full((2, 16), 3.0))
    assert 0 < upper[0, 0] < 1


def test_group_norm_keeps_pretrained_scales(tmp_path):
    file = tmp_path / "weights.pth"
    bare = models.mobilenet_v3_small()
    torch.nn.init.uniform_(bare.features[0][1].weight)
    torch.nn.init.uniform_(bare.features[0][1].running_mean)
    torch.save(bare.state_dict(), file)
    for norm in ("batch", "group"):
        layer = create("torchvision/mobilenet_v3_small", 3, pretrained=str(file), norm=norm).network.features[0][1]
        assert torch.equal(layer.weight, bare.features[0][1].weight)
        if norm == "batch":
            assert torch.equal(layer.running_mean, bare.features[0][1].running_mean)
            assert layer.momentum == 0.1
        else:
            assert isinstance(layer, nn.GroupNorm)


@pytest.mark.parametrize(("name", "factor"), [("resnet18", 4), ("squeezenet1_1", 4), ("mobilenet_v3_small", 2)])
def test_a_small_stem_sees_more_pixels(name, factor):
    """The stride of the first convolution is a factor of two, and a max-pooling behind it another."""
    sizes = []
    for small in (False, True):
        student = create(f"torchvision/{name}", 3, image_size=64, small_stem=small)
        convolutions = [layer for layer in student.modules() if isinstance(layer, nn.Conv2d)]
        seen: list[int] = []
        convolutions[1].register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].shape[-1]))
        student.eval()(torch.rand(1, 3, 64, 64))
        sizes += seen
    assert sizes[1] == pytest.approx(factor * sizes[0], abs=2 * factor)  # up to edges without padding


def small_vit(image_size: int = 32) -> nn.Module:
    options = {"patch_size": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 16}
    return models.VisionTransformer(image_size=image_size, num_classes=4, **options)


def test_tokens_are_no_stages():
    with pytest.raises(fedkd.FedKDError, match=r"goes on with tokens in 'encoder.* inputs: last"):
        stages(small_vit(), (3, 32, 32))
    assert fedkd.students.feature_layer(small_vit(), 4, (3, 32, 32)) == "heads.head"


def test_a_patch_is_no_stem():
    with pytest.raises(fedkd.FedKDError, match="small_stem: 'mine' has no first convolution to change; leave it out"):
        enlarge(small_vit(), "mine")


def test_a_run_from_pretrained_weights_needs_them_no_more(tmp_path):
    file = tmp_path / "weights.pth"
    torch.manual_seed(3)
    torch.save(models.shufflenet_v2_x0_5(num_classes=11).state_dict(), file)
    options = {"pretrained": str(file), "norm": "group", "small_stem": True}
    trained = module("torchvision/shufflenet_v2_x0_5", student_options=options)
    data = datamodule(3, ClassSpecific(1), count=30)
    fedkd.Federation(1, run_dir=tmp_path / "run", trainer={"accelerator": "cpu"}).fit(trained, data)
    file.unlink()
    assert same(fedkd.load_student(tmp_path / "run").state_dict(), weights(trained))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet81", {}, r"Unknown student 'torchvision/resnet81'. Did you mean 'torchvision/resnet18'\?"),
        ("squeezenet1_1", {"droput": 0.1}, "torchvision refuses to make 'squeezenet1_1': .*droput"),
        ("squeezenet1_1", {"pretrained": "/no/file"}, "no file '/no/file', nor weights of that name: IMAGENET1K_V1"),
        ("squeezenet1_1", {"pretrained": "IMAGENET1K_V2"}, "Did you mean 'IMAGENET1K_V1'"),
        ("squeezenet1_1", {"norm": "layer"}, "Unknown norm 'layer'"),
        ("vit_b_16", {"image_size": 40}, "torchvision refuses to make 'vit_b_16': .*divisible by patch size"),
        ("vit_b_16", {"image_width": 64}, "'torchvision/vit_b_16' takes square images, got 32 x 64"),
    ],
)
def test_what_cannot_be_is_one_line(name, options, message):
    with pytest.raises(fedkd.FedKDError, match=message) as raised:
        create(f"torchvision/{name}", num_classes=5, **options)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_weights_that_cannot_be_downloaded_are_one_line(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(fedkd.FedKDError, match=r"cannot be had \(no network\): put https://.*squeezenet.*\.pth into"):
        create("torchvision/squeezenet1_1", 3, pretrained=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not weights", "cannot be read as weights"),
        ({"conv": torch.zeros(2)}, "lack 52 of its tensors, such as 'classifier.1.bias'"),
        ([1, 2], "has no state dict, but a list"),
    ],
)
def test_a_file_of_something_else_is_one_line(content, message, tmp_path):
    file = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(fedkd.FedKDError, match=message):
        create("torchvision/squeezenet1_1", 3, pretrained=str(file))


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("torchvison/resnet18", "torchvision/resnet18"),
        ("google/vit-base-patch16-224", "hf/google/vit-base-patch16-224"),
        ("efficientnet_b0", "torchvision/efficientnet_b0"),
    ],
)
def test_a_name_without_its_library_gets_it(name, guess):
    with pytest.raises(fedkd.FedKDError, match=rf"Did you mean '{guess}'\?"):
        fedkd.DistillationModule(name)
