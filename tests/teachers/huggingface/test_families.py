"""Checkpoints of many families, saved and loaded, give the features that their own model gives."""

from __future__ import annotations

import copy
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from protocols import prepare
from transformers import YolosConfig, YolosModel

from fedkd.core.errors import FedKDError, MissingResourceError
from fedkd.data import ImageSet
from fedkd.teachers import FeatureTeacher, ZeroShotTeacher, create, teachers
from fedkd.teachers.huggingface.pooling import num_prefix_tokens, num_suffix_tokens, pool

CLS = ("dinov2", "dinov2-registers", "dinov3", "vit", "mae", "beit", "deit", "timm-vit")
POOLED = ("dinov3-convnext", "convnext", "convnextv2", "resnet", "swin", "swinv2", "efficientnet", "timm")
PREFIX = {"dinov2-registers": 1 + 3, "dinov3": 1 + 2, "deit": 2}
DIMS = {**dict.fromkeys(CLS, 16 * 2), **dict.fromkeys(POOLED, 16), "efficientnet": 320, "timm": 1024}
Tiny = Callable[[str], str]


def pixels(photo: np.ndarray, *corners: int) -> np.ndarray:
    return np.stack([photo[y : y + 32, y : y + 32] for y in corners])  # (B, 32, 32, 3)


def as_images(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize("family", [*CLS, *POOLED])
def test_features_are_the_models_own_pooled(family: str, tiny: Tiny, photo: np.ndarray) -> None:
    from transformers import AutoImageProcessor, AutoModel

    teacher = create(tiny(family))
    assert isinstance(teacher, FeatureTeacher)
    batch = pixels(photo, 0, 150, 300)
    features = teacher.features(as_images(batch))
    assert features.dtype == torch.float32
    assert features.shape == (3, DIMS[family])
    assert torch.equal(features, teacher.features(as_images(batch))), "it is the same each time"

    processor, model = AutoImageProcessor.from_pretrained(tiny(family)), AutoModel.from_pretrained(tiny(family)).eval()
    own = processor([Image.fromarray(image) for image in batch], return_tensors="pt")["pixel_values"]
    if family == "mae":
        model.config.mask_ratio = 0.0  # all patches, though in a random order
    with torch.no_grad():
        output = model(pixel_values=own)
    hidden = output.last_hidden_state
    if family in CLS:
        assert hidden.shape[1] == PREFIX.get(family, 1) + (4 if family.startswith("dinov2") else 16)  # patches
        expected = torch.cat([hidden[:, 0], hidden[:, PREFIX.get(family, 1) :].mean(1)], 1)
    else:
        expected = output.pooler_output.flatten(1)
    # Images differ by more than the rounding of preprocessing to whole gray levels.
    assert features.std(0).mean() > 5 * (features - expected).abs().mean()
    assert (features - expected).abs().max() < 0.5 * features.std(0).max()


def test_the_detection_tokens_of_yolos_are_no_patches() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = YolosModel(YolosConfig(**sizes, image_size=[32, 32], patch_size=16, num_detection_tokens=7)).eval()
    with torch.no_grad():
        output = model(torch.rand(2, 3, 32, 32))
    hidden = output.last_hidden_state  # (2, 1 + 4 + 7, 16): CLS, patches, detection
    prefix = num_prefix_tokens(model, hidden, torch.Size([32, 32]))
    assert prefix == 1
    pooled = pool(output, "cls+mean", prefix, num_suffix_tokens(model))
    torch.testing.assert_close(pooled, torch.cat([hidden[:, 0], hidden[:, 1:5].mean(1)], dim=1))


def test_poolings(tiny: Tiny, photo: np.ndarray) -> None:
    images = as_images(pixels(photo, 0, 200))
    by_name = {name: FeatureTeacher(tiny("dinov2"), pooling=name).features(images) for name in ("cls", "mean")}  # type: ignore[arg-type]
    both = FeatureTeacher(tiny("dinov2"), pooling="cls+mean").features(images)
    assert torch.equal(both, torch.cat([by_name["cls"], by_name["mean"]], 1))
    assert torch.equal(FeatureTeacher(tiny("dinov2"), pooling="pooled").features(images), by_name["cls"])
    with pytest.raises(FedKDError, match="needs a CLS token"):
        FeatureTeacher(tiny("resnet"), pooling="cls").features(images)
    with pytest.raises(FedKDError, match=r"Unknown pooling 'clss'\. Did you mean 'cls'"):
        FeatureTeacher(tiny("vit"), pooling="clss")  # type: ignore[arg-type]


@pytest.mark.parametrize("family", [*CLS, *POOLED, "clip", "siglip", "siglip2", "align"])
def test_other_image_sizes(family: str, tiny: Tiny, photo: np.ndarray) -> None:
    teacher = FeatureTeacher(tiny(family), image_size=56)
    seen = []
    hook = teacher.preprocess.register_forward_hook(lambda *args: seen.append(args[-1].shape))
    features = teacher.features(as_images(pixels(photo, 0, 200)))
    hook.remove()
    assert seen == [(2, 3, 56, 56)]
    assert features.isfinite().all()
    assert not torch.equal(features[0], features[1])
    assert teacher.fingerprint() != FeatureTeacher(tiny(family)).fingerprint()


def test_dtype_is_kept_and_changes_the_fingerprint(tiny: Tiny, photo: np.ndarray) -> None:
    images = as_images(pixels(photo, 0, 200))
    auto, half = FeatureTeacher(tiny("dinov2")), FeatureTeacher(tiny("dinov2"), dtype="bfloat16")
    assert auto.model.dtype == torch.float32  # on the CPU
    assert half.to("cpu").model.dtype == torch.bfloat16
    assert half.features(images).dtype == torch.float32
    torch.testing.assert_close(half.features(images), auto.features(images), rtol=0.1, atol=0.1)
    assert half.fingerprint() != auto.fingerprint()


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["dinov2", "resnet", "clip"])
def test_on_cuda_it_works_in_bfloat16_and_comes_back(family: str, tiny: Tiny, images: ImageSet, tmp_path: Path) -> None:
    teacher = create(tiny(family))
    on_cpu = prepare(create(tiny(family)), images, images, [np.arange(40)], cache=tmp_path)
    on_cuda = prepare(teacher, images, images, [np.arange(40)], cache=tmp_path, device="cuda")
    assert teacher.device.type == "cpu"
    assert on_cuda.logits.device.type == "cpu"
    assert len(list(tmp_path.glob("*.npy"))) == 2, "another precision has another file"
    assert teacher.to("cuda").model.dtype == torch.bfloat16
    assert abs(on_cuda.accuracy - on_cpu.accuracy) < 0.1


@pytest.mark.parametrize("family", ["dinov2", "timm", "clip"])
def test_fingerprint_is_of_the_content_not_of_the_place(family: str, tiny: Tiny, tmp_path: Path) -> None:
    teacher = create(tiny(family))
    moved = shutil.copytree(tiny(family), tmp_path / "moved")
    assert create(str(moved)).fingerprint() == teacher.fingerprint()
    assert copy.deepcopy(teacher).fingerprint() == teacher.fingerprint()
    assert pickle.loads(pickle.dumps(teacher)).fingerprint() == teacher.fingerprint()


def test_fingerprint_does_not_depend_on_use_or_on_templates(tiny: Tiny, photo: np.ndarray) -> None:
    teacher = ZeroShotTeacher(tiny("clip"))
    before = teacher.fingerprint()
    teacher.prepare(["cat", "dog"])
    teacher(as_images(pixels(photo, 0)))
    assert teacher.fingerprint() == before
    assert ZeroShotTeacher(tiny("clip"), templates=["{}"]).fingerprint() == before


def test_a_classifiers_checkpoint_without_pooler_gives_the_same_features_each_time(tiny: Tiny) -> None:
    one, two = create(tiny("classifier")), create(tiny("classifier"))
    assert one.fingerprint() == two.fingerprint()  # transformers draws the absent pooler at random
    with pytest.raises(FedKDError, match=r"lacks 2 weights of its model, such as 'pooler"):
        create(tiny("classifier"), pooling="pooled")


def test_the_image_tower_of_a_dual_encoder_is_a_backbone_too(tiny: Tiny, images: ImageSet, tmp_path: Path) -> None:
    assert isinstance(create(tiny("clip")), ZeroShotTeacher)
    teacher = FeatureTeacher(tiny("clip"))
    outputs = prepare(teacher, images, images, [np.arange(40)], cache=tmp_path)
    assert outputs.accuracy > 0.9
    with pytest.raises(FedKDError, match="has no text tower"):
        ZeroShotTeacher(tiny("vit"))


def test_without_a_processor_imagenets_mean_is_used_with_a_warning(tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("vit"), tmp_path / "bare")
    (folder / "preprocessor_config.json").unlink()
    with pytest.warns(UserWarning, match="has no image processor"):
        teacher = FeatureTeacher(str(folder))
    gray = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    torch.testing.assert_close(teacher.preprocess(gray), torch.zeros(1, 3, 32, 32), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["dinov2-m", "facebook/dinov2-base-no", "nobody/no-such-model", "/no/such/folder"])
def test_what_is_not_there_fails_at_once_in_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing answers there
    start = time.monotonic()
    with pytest.raises(MissingResourceError) as caught:
        create(name)
    assert time.monotonic() - start < 5
    message = str(caught.value)
    assert "\n" not in message
    assert name in message
    assert "config.json and model.safetensors" in message
    assert ("127.0.0.1:9 cannot be reached" in message) == (not name.startswith("/"))
    if name == "dinov2-m":
        assert "Did you mean 'dinov2-" in message


def test_broken_checkpoints_are_one_line_errors(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingResourceError, match=r"has no config\.json") as caught:
        create(str(tmp_path / "empty"))
    assert "\n" not in str(caught.value)
    broken = shutil.copytree(tiny("vit"), tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(FedKDError, match="Cannot load AutoModel"):
        create(str(broken))
    lacking = shutil.copytree(tiny("vit"), tmp_path / "lacking")
    from safetensors.torch import load_file, save_file

    weights = load_file(lacking / "model.safetensors")
    name = next(key for key in weights if "layer" in key)
    save_file({k: v for k, v in weights.items() if k != name}, lacking / "model.safetensors", {"format": "pt"})
    with pytest.raises(FedKDError, match="lacks 1 weights of its model"):
        create(str(lacking))


def test_every_short_name_says_what_it_is() -> None:
    for name in teachers:
        entry = teachers[name]
        assert entry.name == name
        if entry.family == "test":
            continue
        assert entry.license in ("MIT", "Apache-2.0", "CC-BY-NC-4.0", "DINOv3 License", "not stated")
        assert entry.image_size
        assert entry.parameters
        assert "/" in entry.checkpoint


def test_every_family_has_a_short_name() -> None:
    dual = {"CLIP", "OpenCLIP", "MetaCLIP", "SigLIP", "SigLIP 2", "ALIGN"}
    transformers = {"DINOv2", "DINOv3", "ViT", "MAE", "BEiT", "DeiT", "Swin", "Swin V2"}
    convolutional = {"ConvNeXt", "ConvNeXt V2", "ResNet", "EfficientNet", "timm"}
    families = {teachers[name].family for name in teachers}
    assert dual | transformers | convolutional | {"ViT classifier"} <= families


def test_options_of_a_short_name_are_checked() -> None:
    with pytest.raises(FedKDError, match=r"Unknown option of teacher dinov2-s 'pool'"):
        create("dinov2-s", pool="cls")


def test_real_checkpoints(shared: Path, tmp_path: Path) -> None:
    """A DINOv2 and a timm EfficientNet tell real photographs apart far better than chance."""
    import io
    import tarfile

    found: dict[str, list[Any]] = {"airplane": [], "frog": [], "horse": []}
    with tarfile.open(shared / "data" / "cifar10-5k.tar.xz") as archive:
        for member in archive:  # only as far as needed: unpacking all of it takes seconds
            rows = found.get(Path(member.name).parent.name)
            if rows is not None and member.isfile() and len(rows) < 60:
                file = archive.extractfile(member)
                assert file is not None
                rows.append(np.array(Image.open(io.BytesIO(file.read())).convert("RGB")))
            if all(len(rows) == 60 for rows in found.values()):
                break
    names = sorted(found)
    arrays = np.concatenate([np.stack(found[name]) for name in names])
    targets = torch.arange(len(names)).repeat_interleave(60)
    data = ImageSet(torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous(), targets, tuple(names))
    even, odd = data.subset(np.arange(0, len(data), 2)), data.subset(np.arange(1, len(data), 2))
    for folder, dim in (("dinov2-small-saliency", 768), ("efficientnet-lite0", 1280)):
        if dim == 1280:
            pytest.importorskip("timm")
        teacher = create(str(shared / "models" / folder), image_size=70)
        assert teacher.feature_dim == dim
        outputs = prepare(teacher, even, odd, [np.arange(0, len(even))], cache=tmp_path)
        assert outputs.balanced_accuracy > 0.65, folder  # from 90 images; chance is 1/3
