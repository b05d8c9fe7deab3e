"""Items of a map-style dataset: pairs, rows with columns, or one clear line."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import fedkd
from fedkd.data import ImageSet

IMAGES = torch.randint(0, 256, (4, 3, 5, 5), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


class Rows(list):
    """As a HuggingFace dataset: rows are mappings, and ``features`` describe the columns."""

    def __init__(self, image: str, label: str, names: list[str] | None = None) -> None:
        super().__init__({"id": i, image: IMAGES[i], label: i % 2} for i in range(4))
        self.features = {"id": None, image: None, label: SimpleNamespace(names=names)}


@pytest.mark.parametrize(("image", "label"), [("image", "label"), ("img", "fine_label"), ("pixels", "target")])
def test_rows_with_columns(image, label):
    found = ImageSet.from_dataset(Rows(image, label, ["cat", "dog"]))
    assert torch.equal(found.images, IMAGES)
    assert found.targets.tolist() == [0, 1, 0, 1]
    assert found.classes == ("cat", "dog")
    assert ImageSet.from_dataset(Rows(image, label)).classes == ("0", "1")


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([(IMAGES[0], 1, "a.png")], r"Item 0 .* pair \(image, label\), got 3 parts"),
        ([IMAGES[0]], "got a Tensor"),
        (Rows("picture", "label"), r"Item 0 .* columns id, picture, label: it needs an image, one of image, img"),
    ],
)
def test_other_items_are_one_line(items, message):
    with pytest.raises(fedkd.FedKDError, match=message):
        ImageSet.from_dataset(items)


def test_further_columns_become_attributes_and_go_with_their_images():
    rows = [
        {"image": IMAGES[i], "label": i % 2, "site": site, "age": 30 + i, "flip": i > 1, "score": 0.5, "n": n}
        for i, (site, n) in enumerate([("b", 1), ("a", 2), (None, 3), ("b", "x")])
    ]
    found = ImageSet.from_dataset(rows)
    assert {name: values.tolist() for name, values in found.attributes.items()} == {
        "site": ["b", "a", "", "b"],
        "age": [30, 31, 32, 33],
        "flip": ["False", "False", "True", "True"],
        "n": ["1", "2", "3", "x"],
    }  # no score: a fraction names no group
    assert found.subset([3, 1]).attributes["site"].tolist() == ["b", "a"]
    assert found.fingerprint == ImageSet(found.images, found.targets, found.classes).fingerprint


def test_an_attribute_of_another_length_is_one_line():
    with pytest.raises(fedkd.FedKDError, match=r"attribute 'site' must have one value for each of the 4 images, got 3"):
        ImageSet(IMAGES, torch.tensor([0, 1, 0, 1]), ("a", "b"), {"site": [1, 2, 3]})
