"""A classifier's own labels, matched with the data's classes and summed into them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from protocols import prepare
from tiny_checkpoints import LABELS

from fedkd.core.errors import FedKDError
from fedkd.data import ImageSet
from fedkd.teachers import ClassifierTeacher
from fedkd.teachers.huggingface.classifier import LabelHead, match_labels

Tiny = Callable[[str], str]


def test_labels_are_summed_by_hand() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).log()  # in proportion to probabilities
    torch.testing.assert_close(LabelHead([[0, 1], [3]])(logits), torch.tensor([[3.0, 4.0]]).log())
    torch.testing.assert_close(LabelHead([[3], [2]])(logits), torch.tensor([[4.0, 3.0]]).log())


def test_labels_of_the_classes_names_are_used_as_they_are(tiny: Tiny) -> None:
    from transformers import AutoModelForImageClassification

    teacher = ClassifierTeacher(tiny("classifier"))
    assert teacher.own_labels == LABELS
    teacher.prepare(["BIRD", "dog", "tabby-cat".replace("-", "_")])
    images = torch.rand(5, 3, 32, 32)
    model = AutoModelForImageClassification.from_pretrained(tiny("classifier")).eval()
    with torch.no_grad():
        own = model(pixel_values=teacher.preprocess(images)).logits
    torch.testing.assert_close(teacher(images), own[:, [3, 2, 0]])
    assert own.std(0).min() > 1e-4


def test_a_given_map_sums_probabilities_and_leaves_the_cache_valid(
    tiny: Tiny, images: ImageSet, tmp_path: Path
) -> None:
    cats = {"cat": ["Tabby, tabby_cat", "persian cat"]}
    teacher = ClassifierTeacher(tiny("classifier"), labels=cats)
    outputs = prepare(teacher, images, images, [np.arange(40)], cache=tmp_path)  # cat, dog, bird
    own = teacher.features(images.images / 255).softmax(1)
    expected = torch.stack([own[:, 0] + own[:, 1], own[:, 2], own[:, 3]], 1)
    torch.testing.assert_close(outputs.logits.softmax(1), expected, rtol=2e-3, atol=2e-3)
    assert outputs.head_bytes == 0

    prepare(
        ClassifierTeacher(tiny("classifier"), labels={"cat": ["Persian cat"]}),
        images,
        images,
        [np.arange(40)],
        cache=tmp_path,
    )
    assert len(list(tmp_path.glob("*.npy"))) == 1, "the labels are not part of what is cached"


def test_labels_that_do_not_match_are_an_error_that_lists_both_sides(tiny: Tiny) -> None:
    with pytest.raises(FedKDError) as caught:
        ClassifierTeacher(tiny("classifier")).prepare(["cat", "dog", "fish"])
    message = str(caught.value)
    assert "no label for 2 of the 3 classes ('cat', 'fish'); its 4 labels are: 'Tabby, tabby_cat', 'Persian" in message
    assert "{'cat': ['Tabby, tabby_cat']}" in message  # the one that is most like it
    assert "\n" not in message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cats": ["dog"]}, r"Unknown class in labels 'cats'\. Did you mean 'cat'\?"),
        ({"cat": ["Persan cat"]}, r"Unknown label of class cat 'Persan cat'\. Did you mean 'Persian cat'\?"),
        ({"cat": ["Persian cat", "dog"]}, "Label 'dog' belongs to two classes: cat, dog"),
        ({"cat": []}, r"no label for 1 of the 3 classes \('cat'\)"),
        ({"cat": ["crane"]}, r"'crane' occurs in several labels, 'crane, wader' \(number \d\) and 'hoist, crane'"),
        ({"cat": ["Prsian"]}, "Did you mean 'Persian cat'"),
        ({"cat": [99]}, r"Label of class cat: number 99 is outside 0\.\."),
    ],
)
def test_wrong_maps_are_errors(given: dict[str, list[str]], message: str) -> None:
    labels = [*LABELS, "crane, wader", "hoist, crane"]
    with pytest.raises(FedKDError, match=message):
        match_labels(["cat", "dog", "bird"], labels, given, "c")


def test_a_label_may_be_given_by_its_number() -> None:
    assert match_labels(["crane"], ["crane", "crane"], {"crane": [1]}, "c") == [[1]]


def test_a_whole_label_goes_before_a_synonym() -> None:
    assert match_labels(["crane"], ["crane", "hoist, crane"], {}, "c") == [[0]]
    assert match_labels(["crane"], ["hoist, crane", "heron"], {"crane": ["heron", "Heron"]}, "c") == [[1]]


def test_a_backbone_is_no_classifier(tiny: Tiny) -> None:
    with pytest.raises(FedKDError, match=r"lacks 2 weights of its model, such as 'classifier\.bias'"):
        ClassifierTeacher(tiny("vit"))


def test_probabilities_do_not_change_where_labels_are_one_to_one() -> None:
    logits = torch.randn(6, 3)
    assert torch.equal(LabelHead([[0], [1], [2]])(logits), logits)
    assert math.isclose(float(LabelHead([[0, 1, 2]])(logits)[0]), float(logits[0].logsumexp(0)), rel_tol=1e-6)
