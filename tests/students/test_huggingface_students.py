"""Image classifiers of transformers as students: by folder, for the data, from new and from pretrained weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as t
from helpers import Remote, datamodule, module, same, weights
from torch import nn

import fedkd
from fedkd import InProcess, ProcessPool
from fedkd.partition import ClassSpecific
from fedkd.runs.export import export_student
from fedkd.strategies import ClosedFormHead
from fedkd.students import check, create, feature_layer, portable, stages

CPU = {"accelerator": "cpu"}
pytestmark = pytest.mark.filterwarnings("ignore:.*no image processor")
SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
PATCHES = {**SIZE, "image_size": 32, "patch_size": 8}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
TEXT = {**SIZE, "vocab_size": 8, "max_position_embeddings": 4, "bos_token_id": 0, "eos_token_id": 1}

MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: t.ViTForImageClassification(t.ViTConfig(**PATCHES, num_labels=4)),
    "deit": lambda: t.DeiTForImageClassification(t.DeiTConfig(**PATCHES, num_labels=4)),
    "resnet": lambda: t.ResNetForImageClassification(
        t.ResNetConfig(embedding_size=8, **STAGES, layer_type="basic", num_labels=4)
    ),
    "mobilenet_v2": lambda: t.MobileNetV2ForImageClassification(
        t.MobileNetV2Config(depth_multiplier=0.1, num_labels=4)
    ),
    "mobilevit": lambda: t.MobileViTForImageClassification(
        t.MobileViTConfig(
            hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 16, 16, 32], image_size=64, num_labels=4
        )
    ),
    "convnext": lambda: t.ConvNextForImageClassification(t.ConvNextConfig(**STAGES, num_stages=2, num_labels=4)),
    "swin": lambda: t.SwinForImageClassification(
        t.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    ),
    "backbone": lambda: t.Dinov2Model(t.Dinov2Config(**SIZE, mlp_ratio=2, image_size=28, patch_size=14)),
    "clip": lambda: t.CLIPModel(t.CLIPConfig(text_config=TEXT, vision_config=PATCHES, projection_dim=16)),
}


def save(kind: str, folder: Path, processor: object = None) -> str:
    """Save a tiny checkpoint of random weights; return its name as a student."""
    torch.manual_seed(0)
    MODELS[kind]().eval().save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return f"hf/{folder}"


@pytest.mark.parametrize("kind", MODELS)
def test_a_checkpoint_makes_a_student_for_the_data(kind, tmp_path):
    name = save(kind, tmp_path)
    for pretrained, channels, side, classes in ((True, 1, 32, 5), (False, 3, 48, 4)):
        torch.manual_seed(1)
        student = create(name, classes, channels, side, pretrained=pretrained)
        check(student, classes, (channels, side, side))
        assert feature_layer(student, classes, (channels, side, side)).startswith("network.classifier")
        torch.manual_seed(1)
        again = create(name, classes, channels, side, pretrained=pretrained)
        assert same(student.state_dict(), again.state_dict())
        assert not any(key.startswith("normalize") for key in student.state_dict())


@pytest.mark.parametrize("kind", ["vit", "resnet", "backbone", "clip", "mobilevit"])
def test_the_recipe_makes_it_again_without_the_checkpoint(kind, tmp_path):
    name = save(kind, tmp_path / "model", t.ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7]))
    spec = {"name": name, "num_classes": 4, "in_channels": 3, "image_size": 64}
    student = create(**spec, pretrained=True, norm="group").eval()
    kept = json.loads(json.dumps(portable({**spec, "pretrained": True, "norm": "group"}, student)))
    shutil.rmtree(tmp_path / "model")
    again = create(**kept).eval()
    again.load_state_dict(student.state_dict())
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(images), student(images))


def test_it_classifies_as_the_checkpoint_does(tmp_path):
    processor = t.ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7], size=32)
    name = save("vit", tmp_path, processor)
    student = create(name, 4, image_size=32, pretrained=True).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    pixels = processor(list(images), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = t.ViTForImageClassification.from_pretrained(tmp_path)(pixels).logits
        torch.testing.assert_close(student(images.float() / 255), expected)


def test_blue_green_red_is_turned_in_the_weights(tmp_path):
    processor = t.MobileViTImageProcessor(size={"shortest_edge": 64}, do_center_crop=False)
    name = save("mobilevit", tmp_path, processor)
    assert processor.do_flip_channel_order
    student = create(name, 4, image_size=64, pretrained=True).eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    pixels = processor(list(images), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = t.MobileViTForImageClassification.from_pretrained(tmp_path).eval()(pixels).logits
        torch.testing.assert_close(student(images.float() / 255), expected)
    given = {"mean": student.recipe["mean"], "std": student.recipe["std"]}
    assert same(create(name, 4, image_size=64, pretrained=True, **given).state_dict(), student.state_dict())


def test_position_embeddings_are_taken_although_there_are_as_many_classes_as_patches(tmp_path):
    torch.manual_seed(0)
    config = t.SiglipConfig(text_config=TEXT, vision_config=PATCHES)
    t.SiglipForImageClassification(config).save_pretrained(tmp_path)
    found = []
    for num_classes in (64, 5):
        student = create(f"hf/{tmp_path}", num_classes, image_size=64, pretrained=True)  # 8 x 8 patches
        found += [value for key, value in student.state_dict().items() if "position_embedding" in key]
    assert len(found) == 2
    assert torch.equal(*found)


def test_a_registered_student_that_makes_one_of_a_folder_keeps_its_own_options(tmp_path):
    name = save("vit", tmp_path)

    def of_a_folder(num_classes, in_channels=3, image_size=32, revision=1):
        return create(name, num_classes, in_channels, image_size)

    fedkd.students.register("of_a_folder")(of_a_folder)
    spec = {"name": "of_a_folder", "num_classes": 4, "in_channels": 3, "image_size": 32, "revision": 2}
    assert portable(spec, create(**spec)) == spec


def test_a_config_alone_suffices_for_new_weights(tmp_path):
    MODELS["resnet"]().config.save_pretrained(tmp_path)
    student = create(f"hf/{tmp_path}", 3, in_channels=1, image_size=16, small_stem=True, depths=[1, 2])
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert len(student.network.resnet.encoder.stages[1].layers) == 2
    assert [size for *_, size in stages(student, (1, 16, 16))] == [16, 8]  # without the small stem 4 and 2
    with pytest.raises(fedkd.FedKDError, match=r"Cannot load AutoModelForImageClassification of .*no file named"):
        create(f"hf/{tmp_path}", 3, in_channels=1, image_size=16, pretrained=True)


@pytest.mark.parametrize("kind", ["vit", "mobilenet_v2", "swin"])
def test_tokens_are_no_stages_and_maps_are(kind, tmp_path):
    student = create(save(kind, tmp_path), 4, image_size=64)
    if kind == "mobilenet_v2":
        assert len(stages(student, (3, 64, 64))) > 2
        return
    with pytest.raises(fedkd.FedKDError, match="goes on with tokens in 'network"):
        stages(student, (3, 64, 64))


BACKENDS = [InProcess(), Remote(), pytest.param(ProcessPool(workers=1), marks=pytest.mark.slow)]


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: type(backend).__name__)
@pytest.mark.parametrize(("kind", "inputs"), [("vit", "last"), ("resnet", "stages")])
def test_a_round_anywhere_and_the_student_without_its_checkpoint(backend, kind, inputs, tmp_path, monkeypatch):
    name = save(kind, tmp_path / "model")
    trained = module(name, student_options={"pretrained": True, "norm": "group"})
    strategy = ClosedFormHead(inputs=inputs)
    run = fedkd.Federation(1, strategy=strategy, backend=backend, run_dir=tmp_path / "run", trainer=CPU)
    run.fit(trained, datamodule(2, ClassSpecific(2), count=20))
    shutil.rmtree(tmp_path / "model")
    monkeypatch.setattr("fedkd.core.hub.hub_is_reachable", lambda: pytest.fail("asked the hub"))
    assert same(fedkd.load_student(tmp_path / "run").state_dict(), weights(trained))
    if isinstance(backend, InProcess):
        assert export_student(tmp_path / "run", "safetensors").max_difference < 1e-4


def test_a_checkpoint_of_lightning_builds_it_again(tmp_path):
    import lightning

    name = save("vit", tmp_path / "model")
    trained = module(name, student_options={"pretrained": True})
    trainer = lightning.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    trainer.fit(trained, datamodule=datamodule(count=20))
    trainer.save_checkpoint(tmp_path / "mine.ckpt")
    shutil.rmtree(tmp_path / "model")
    loaded = fedkd.DistillationModule.load_from_checkpoint(tmp_path / "mine.ckpt", weights_only=False)
    assert same(dict(loaded.student.state_dict()), dict(trained.student.state_dict()))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hf/", {}, "needs a HuggingFace hub id or a folder behind it"),
        ("hf//no/such/folder", {}, "No student checkpoint '/no/such/folder': the folder does not exist"),
        ("hf/FOLDER", {"revision": "main"}, "revision 'main' is for a hub id"),
        ("hf/FOLDER", {"hiden_size": 8}, "Unknown option of student .* 'hiden_size'. Did you mean 'hidden_size'"),
        ("hf/FOLDER", {"pretrained": "x.pth"}, "pretrained must be true or false"),
        ("hf/FOLDER", {"small_stem": True}, "small_stem: .* has no first convolution to change; leave it out"),
        ("hf/FOLDER", {"norm": "layer"}, "Unknown norm 'layer'"),
        ("hf/FOLDER", {"hidden_act": "no"}, r"cannot be made for images \(3, 32, 32\): .*no"),
        ("hf/FOLDER", {"hidden_size": "wide"}, "refuses its options: .*hidden_size"),
        ("hf/FOLDER", {"pretrained": True, "num_hidden_layers": 3}, r"lack \d+ of its tensors, such as 'vit\."),
        ("hf/FOLDER", {"mean": [0.5, 0.4]}, r"mean must be a list of 3 numbers, got \[0.5, 0.4\]"),
        ("hf/FOLDER", {"mean": 0.5}, "mean must be a list of 3 numbers, got 0.5"),
        ("hf/FOLDER", {"std": [1.0, 1.0, 0.0]}, "std must be"),
    ],
)
def test_what_cannot_be_is_one_line(name, options, message, tmp_path):
    save("vit", tmp_path)
    with pytest.raises(fedkd.FedKDError, match=message) as raised:
        fedkd.students.UnbuiltStudent(name.replace("FOLDER", str(tmp_path)), options).build(4, (3, 32, 32))
    assert "\n" not in str(raised.value)


class Unread(fedkd.FederatedDataModule):
    def prepare_data(self):
        pytest.fail("read the data")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bert", r"\(bert\) is no image classifier of transformers"),
        ("none", "No student checkpoint '.*none': the folder does not exist"),
        ("empty", "No student checkpoint in folder .*empty': it has no config.json"),
    ],
)
def test_what_cannot_be_made_is_one_line_before_the_data_is_read(name, message, tmp_path):
    t.BertConfig(**SIZE).save_pretrained(tmp_path / "bert")
    (tmp_path / "empty").mkdir()
    run = fedkd.Federation(1, run_dir=tmp_path / "run", trainer=CPU)
    with pytest.raises(fedkd.FedKDError, match=message):
        run.fit(fedkd.DistillationModule(f"hf/{tmp_path / name}"), Unread(fedkd.data.Digits()))
    assert not (tmp_path / "run").exists()


def test_weights_that_lack_a_part_of_the_network_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    name = save("vit", tmp_path)
    kept = {
        key: value
        for key, value in load_file(tmp_path / "model.safetensors").items()
        if "query" not in key and "q_proj" not in key
    }
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(fedkd.FedKDError, match=r"lack \d+ of its network, such as 'vit\..*(query|q_proj)"):
        create(name, 4, pretrained=True)


def test_a_checkpoints_own_python_is_not_run(tmp_path):
    marker = tmp_path / "ran"
    (tmp_path / "code.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n")
    config = {"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(fedkd.FedKDError, match="Cannot load AutoConfig"):
        create(f"hf/{tmp_path}", 3)
    assert not marker.exists()
