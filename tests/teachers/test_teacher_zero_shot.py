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
from tiny_checkpoints import text_config, word_tokenizer

from fedkd.data import Digits, ImageSet
from fedkd.errors import FedKDError
from fedkd.teachers import ZeroShotTeacher, create, prepare_teacher

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
Tiny = Callable[[str], str]


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_logits_are_transformers_own(family: str, tiny: Tiny, photo: np.ndarray) -> None:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    teacher = create(tiny(family), templates=["a photo of a {}."])
    assert isinstance(teacher, ZeroShotTeacher)
    teacher.prepare(["cat", "dog", "bird"])
    batch = np.stack([photo[y : y + 32, y : y + 32] for y in (0, 150, 300)])
    logits = teacher(torch.from_numpy(batch).permute(0, 3, 1, 2) / 255)

    model = AutoModel.from_pretrained(tiny(family)).eval()
    prompts = ["a photo of a cat.", "a photo of a dog.", "a photo of a bird."]
    padding: Any = {"padding": "max_length", "max_length": 16} if family == "siglip" else {"padding": True}
    tokens = AutoTokenizer.from_pretrained(tiny(family))(prompts, return_tensors="pt", **padding)
    if family == "siglip":
        tokens.pop("attention_mask")  # SigLIP's own tokenizer makes none
    pixels = AutoImageProcessor.from_pretrained(tiny(family))([Image.fromarray(i) for i in batch], return_tensors="pt")
    with torch.no_grad():
        expected = model(**tokens, **pixels).logits_per_image
    torch.testing.assert_close(logits, expected, rtol=0.01, atol=0.01 * float(expected.std()))
    if family == "siglip":
        assert float(teacher.head.scale) == pytest.approx(np.exp(2.0))
        assert float(teacher.head.bias) == -3.0


def test_templates_are_normalised_averaged_and_normalised(tiny: Tiny) -> None:
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


def test_a_clip_trained_on_captions_of_digits_classifies_digits(tmp_path: Path) -> None:
    train, test = Digits().load()
    train_tiny_clip(train, tmp_path / "clip")
    train, test = (ImageSet(data.images, data.targets, WORDS) for data in (train, test))

    teacher = create(str(tmp_path / "clip"))
    assert isinstance(teacher, ZeroShotTeacher)
    signal = prepare_teacher(teacher, train, test, [np.arange(len(train))], cache=tmp_path / "cache")
    assert signal.accuracy > 0.8  # chance is 0.1
    assert signal.head_bytes == 0  # class names are all it needs
    assert min(signal.per_class_accuracy) > 0.5

    # The names decide: other names in other places give the same columns in other places.
    order = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    renamed = create(str(tmp_path / "clip"))
    renamed.prepare([WORDS[k] for k in order])
    images = test.images.float() / 255
    torch.testing.assert_close(renamed(images), teacher(images)[:, order], rtol=1e-4, atol=1e-4)
    wrong = (order[renamed(images).argmax(1)] == test.targets).double().mean()
    assert float(wrong) == pytest.approx(signal.accuracy, abs=0.01)
