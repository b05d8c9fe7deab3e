"""Zero-shot teachers classify with nothing but class names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from protocols import prepare
from tiny_checkpoints import text_config, word_tokenizer

from fedkd.core.errors import FedKDError
from fedkd.data import Digits, ImageSet
from fedkd.teachers import ZeroShotTeacher, create
from fedkd.teachers.huggingface.templates import CIFAR, GENERAL, choose_templates, is_cifar, plain_name

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
Tiny = Callable[[str], str]


@pytest.mark.parametrize("family", ["clip", "siglip", "siglip2", "align"])
def test_logits_are_transformers_own(family: str, tiny: Tiny, photo: np.ndarray) -> None:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    teacher = create(tiny(family), templates=["a photo of a {}."])
    assert isinstance(teacher, ZeroShotTeacher)
    teacher.prepare(["cat", "dog", "bird"])
    batch = np.stack([photo[y : y + 32, y : y + 32] for y in (0, 150, 300)])
    logits = teacher(torch.from_numpy(batch).permute(0, 3, 1, 2) / 255)

    model = AutoModel.from_pretrained(tiny(family)).eval()
    prompts = ["a photo of a cat.", "a photo of a dog.", "a photo of a bird."]
    length = {"siglip": 16, "siglip2": 32}
    padding: Any = {"padding": "max_length", "max_length": length[family]} if family in length else {"padding": True}
    tokens = AutoTokenizer.from_pretrained(tiny(family))(prompts, return_tensors="pt", **padding)
    if family in length:
        tokens.pop("attention_mask", None)  # SigLIP attends to the padding
    pixels = AutoImageProcessor.from_pretrained(tiny(family))([Image.fromarray(i) for i in batch], return_tensors="pt")
    with torch.no_grad():
        expected = model(**tokens, **pixels).logits_per_image
    torch.testing.assert_close(logits, expected, rtol=0.02, atol=0.02 * float(expected.std()))
    if family in length:
        assert float(teacher.head.scale) == pytest.approx(np.exp(2.0))
        assert float(teacher.head.bias) == -3.0
    if family == "align":
        assert float(teacher.head.scale) == pytest.approx(1 / 0.25)  # it learns a temperature instead


def test_templates_are_normalized_averaged_and_normalized(tiny: Tiny) -> None:
    def text(*templates: str) -> torch.Tensor:
        teacher = ZeroShotTeacher(tiny("clip"), templates=list(templates))
        teacher.prepare(["cat", "dog"])
        return teacher.head.text

    one, two, both = text("a {}."), text("photo of the {}."), text("a {}.", "photo of the {}.")
    torch.testing.assert_close(both, F.normalize(one + two, dim=1))
    torch.testing.assert_close(both.norm(dim=1), torch.ones(2))
    assert not torch.allclose(one, two, atol=1e-3)


def test_features_are_of_unit_length(tiny: Tiny) -> None:
    features = ZeroShotTeacher(tiny("siglip")).features(torch.rand(4, 1, 8, 8))
    torch.testing.assert_close(features.norm(dim=1), torch.ones(4))


def test_templates_are_checked(tiny: Tiny) -> None:
    with pytest.raises(FedKDError, match=r"'a photo' has no '\{\}'"):
        ZeroShotTeacher(tiny("clip"), templates=["a photo"])
    with pytest.raises(FedKDError, match="templates is empty"):
        ZeroShotTeacher(tiny("clip"), templates=[])
    with pytest.raises(FedKDError, match=r"Unknown set of templates 'cifar10'\. Did you mean 'cifar'\?"):
        ZeroShotTeacher(tiny("clip"), templates="cifar10")  # type: ignore[arg-type]


CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def test_clips_own_templates_for_cifar() -> None:
    assert len(set(CIFAR)) == len(CIFAR) == 18
    assert CIFAR[:3] == ("a photo of a {}.", "a blurry photo of a {}.", "a black and white photo of a {}.")
    assert {"a good photo of the {}.", "a photo of a small {}.", "a photo of the big {}."} <= set(CIFAR)


def test_templates_follow_the_data_and_the_model() -> None:
    assert choose_templates("auto", CIFAR10, "clip") == CIFAR
    assert choose_templates("auto", reversed(CIFAR10), "siglip") == CIFAR
    assert choose_templates("auto", CIFAR10[:9], "clip") == GENERAL
    assert choose_templates("auto", ["cat", "dog"], "siglip2") == ("This is a photo of {}.",)
    assert choose_templates("general", CIFAR10, "siglip") == GENERAL
    assert choose_templates(["{}!"], CIFAR10, "clip") == ("{}!",)
    assert is_cifar(name.title() for name in CIFAR10)


def test_the_classes_of_cifar100_are_recognized() -> None:
    names = ["maple_tree", "aquarium fish", "lawn_mower", "worm", "sweet_pepper"]
    assert not is_cifar(names)
    from fedkd.teachers.huggingface import templates

    assert len(templates._CIFAR100) == 100
    assert is_cifar(name.replace(" ", "_") for name in templates._CIFAR100)
    assert {plain_name(name) for name in names} <= templates._CIFAR100


def test_a_teacher_takes_the_templates_of_its_data(tiny: Tiny) -> None:
    auto, given = ZeroShotTeacher(tiny("clip")), ZeroShotTeacher(tiny("clip"), templates=list(CIFAR))
    for teacher in (auto, given):
        teacher.prepare(CIFAR10)
    assert torch.equal(auto.head.text, given.head.text)
    for teacher in (auto, given):
        teacher.prepare(["cat", "dog"])
    assert not torch.equal(auto.head.text, given.head.text)


def test_wordnet_ids_are_no_names(tiny: Tiny) -> None:
    with pytest.warns(UserWarning, match=r"2 of 3 class names are WordNet ids, the first is 'n01440764'\. .* name the"):
        ZeroShotTeacher(tiny("clip")).prepare(["dog", "n01440764", "n01443537"])


def test_siglip_is_asked_in_small_letters(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, seen = ZeroShotTeacher(tiny("siglip2")), []
    tokenizer = teacher.tokenizer
    monkeypatch.setattr(
        teacher, "tokenizer", lambda prompts, **options: seen.extend(prompts) or tokenizer(prompts, **options)
    )
    teacher.prepare(["Persian_Cat"])
    assert seen == ["this is a photo of persian cat."]


def train_tiny_clip(data: ImageSet, folder: Path) -> None:
    """Train a CLIP with two small towers on captions of digits, and save it with its processor files."""
    import transformers as t

    torch.manual_seed(0)
    captions = ["a photo of a {}.", "a picture of the number {}.", "the digit {}."]
    tokenizer = word_tokenizer([caption.format(word) for caption in captions for word in WORDS], 16)
    processor = t.CLIPImageProcessor(
        size={"shortest_edge": 16},
        crop_size={"height": 16, "width": 16},
        resample=2,
        image_mean=[0.3] * 3,
        image_std=[0.4] * 3,
    )
    small = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    config = t.CLIPConfig(
        text_config={**text_config(tokenizer, 16), **small},
        vision_config={**small, "image_size": 16, "patch_size": 4},
        projection_dim=32,
    )
    model = t.CLIPModel(config).train()
    images = processor(
        [Image.fromarray(i).convert("RGB") for i in data.images[:, 0].numpy()], return_tensors="pt"
    ).pixel_values
    # One caption of each class in a batch, so that all the others are true negatives.
    members = [torch.nonzero(data.targets == k).flatten() for k in range(10)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    steps = 400
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        chosen = torch.stack([of[torch.randint(len(of), (6,))] for of in members])  # (10 classes, 6)
        caption = captions[int(torch.randint(len(captions), ()))]
        tokens = tokenizer([caption.format(word) for word in WORDS], return_tensors="pt", padding=True)
        out = model(pixel_values=images[chosen.flatten()], **tokens)
        logits = out.logits_per_image  # (60, 10)
        of_images = F.cross_entropy(logits, torch.arange(10).repeat_interleave(6))
        of_texts = F.cross_entropy(logits.view(10, 6, 10).permute(1, 2, 0).reshape(60, 10), torch.arange(10).repeat(6))
        optimizer.zero_grad()
        ((of_images + of_texts) / 2).backward()
        optimizer.step()
        schedule.step()
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.slow
def test_a_clip_trained_on_captions_of_digits_classifies_digits(tmp_path: Path) -> None:
    train, test = Digits().load()
    train_tiny_clip(train, tmp_path / "clip")
    train, test = (ImageSet(data.images, data.targets, WORDS) for data in (train, test))

    teacher = create(str(tmp_path / "clip"))
    assert isinstance(teacher, ZeroShotTeacher)
    outputs = prepare(teacher, train, test, [np.arange(len(train))], cache=tmp_path / "cache")
    assert outputs.accuracy > 0.8  # chance is 0.1
    assert outputs.head_bytes == 0  # class names are all it needs
    assert min(outputs.per_class_accuracy) > 0.5

    # The names decide: other names in other places give the same columns in other places.
    order = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    renamed = create(str(tmp_path / "clip"))
    renamed.prepare([WORDS[k] for k in order])
    images = test.images.float() / 255
    torch.testing.assert_close(renamed(images), teacher(images)[:, order], rtol=1e-4, atol=1e-4)
    wrong = (order[renamed(images).argmax(1)] == test.targets).double().mean()
    assert float(wrong) == pytest.approx(outputs.accuracy, abs=0.01)
