from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset, TensorDataset

from fedkd.core.errors import FedKDError
from fedkd.data import Datasets, ImageSet


def make_set(n: int = 6, channels: int = 3, size: int = 4, classes: int = 3) -> ImageSet:
    images = torch.randint(0, 256, (n, channels, size, size), generator=torch.Generator().manual_seed(0))
    return ImageSet(images.to(torch.uint8), torch.arange(n) % classes, tuple("abc"[:classes]))


def rgb(height: int = 2, width: int = 3) -> np.ndarray:
    return np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3) * 5


@pytest.mark.parametrize(
    "image",
    [
        rgb(),
        rgb().astype(np.float64) / 255,
        Image.fromarray(rgb()),
        Image.fromarray(np.dstack([rgb(), np.full((2, 3), 9, np.uint8)])),  # RGBA
        torch.from_numpy(rgb()).permute(2, 0, 1),
        torch.from_numpy(rgb()).permute(2, 0, 1).double() / 255,
    ],
    ids=["uint8 array", "float array", "RGB", "RGBA", "uint8 tensor", "float tensor"],
)
def test_every_kind_of_image_gives_the_same_pixels(image: object) -> None:
    data = ImageSet.from_dataset([(image, 1)])
    assert data.images.tolist() == [rgb().transpose(2, 0, 1).tolist()]
    assert data.targets.tolist() == [1]
    assert data.classes == ("0", "1")
    assert data.image_shape == (3, 2, 3)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((8, 0), np.float32),
        torch.zeros(1, 0, 8),
        Image.new("L", (0, 8)),
    ],
)
def test_an_image_without_pixels_is_one_line(image: object) -> None:
    with pytest.raises(FedKDError, match=r"An image must have at least one pixel, got .*8"):
        ImageSet.from_dataset([(image, 0)])
    with pytest.raises(FedKDError, match=r"at least one pixel each, got the shape \(2, 1, 0, 8\)"):
        ImageSet(torch.zeros(2, 1, 0, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), ("a",))


@pytest.mark.parametrize("image", [rgb()[..., 0], Image.fromarray(rgb()[..., 0]), torch.from_numpy(rgb()[..., 0])])
def test_gray_stays_one_channel(image: object) -> None:
    assert ImageSet.from_dataset([(image, 0)]).images.tolist() == [[rgb()[..., 0].tolist()]]


@pytest.mark.parametrize("gray_first", [True, False])
def test_gray_among_color_becomes_color(gray_first: bool) -> None:
    gray, color = rgb()[..., 0], rgb()
    data = ImageSet.from_dataset([(gray, 0), (color, 1)] if gray_first else [(color, 1), (gray, 0)])
    i = 0 if gray_first else 1
    assert data.images[i].tolist() == [gray.tolist()] * 3
    assert data.images[1 - i].tolist() == color.transpose(2, 0, 1).tolist()


class Named(TensorDataset):
    classes = ("cat", "dog")


def test_class_names_come_from_the_dataset_even_behind_a_subset() -> None:
    dataset = Named(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 1, 0]))
    data = ImageSet.from_dataset(Subset(dataset, [2, 0]))
    assert (data.classes, data.targets.tolist()) == (("cat", "dog"), [1, 0])
    assert ImageSet.from_dataset(dataset, classes=["x", "y"]).classes == ("x", "y")


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "empty"),
        ([(rgb(2, 3), 0), (rgb(3, 3), 0)], r"image 1 is 3x3 .* before it are 2x3: resize"),
        ([(rgb().astype(np.float32), 0)], r"in \[0, 1\], got \[0, 85\]"),
        ([(np.full((2, 2), np.nan), 0)], r"in \[0, 1\]"),
        ([(rgb().astype(np.int32), 0)], "got int32"),
        ([(torch.zeros(4, 2, 2), 0)], r"\(C, H, W\) with 1 or 3 channels, got \(4, 2, 2\)"),
        ([(Image.new("F", (2, 2)), 0)], "mode 'F'"),
        ([("cat.png", 0)], "got str"),
        ([(rgb(), 1.5)], "label of item 0 must be an integer class number from 0, got 1.5"),
        ([(rgb(), -1)], "integer class number from 0, got -1"),
    ],
)
def test_what_is_not_an_image_or_label_is_named(items: list, message: str) -> None:
    with pytest.raises(FedKDError, match=message):
        ImageSet.from_dataset(items)


def test_label_outside_the_given_classes() -> None:
    with pytest.raises(FedKDError, match=r"Label 2 is outside 0\.\.1: there are 2 classes \(cat, dog\)"):
        ImageSet.from_dataset([(rgb(), 2)], classes=["cat", "dog"])


@pytest.mark.parametrize("label", [np.int64(1), torch.tensor(1), np.array(1)])
def test_integer_scalars_of_every_kind_are_labels(label: object) -> None:
    assert ImageSet.from_dataset([(rgb(), label)]).targets.tolist() == [1]


def test_fingerprint_follows_content_and_nothing_else() -> None:
    data = make_set()
    strided = data.images.to(memory_format=torch.channels_last)
    assert replace(data, images=strided).fingerprint == data.fingerprint == make_set().fingerprint
    images, targets = data.images.clone(), data.targets.clone()
    images[3, 1, 2, 0] ^= 1
    targets[0] = 1
    others = [
        replace(data, images=images),
        replace(data, targets=targets),
        replace(data, classes=("a", "b", "d")),
        replace(data, images=data.images.reshape(6, 3, 2, 8)),
    ]
    assert len({data.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_subset_keeps_order_and_classes() -> None:
    data = make_set()
    part = data.subset(np.array([4, 1]))
    assert torch.equal(part.images, data.images[[4, 1]])
    assert (part.targets.tolist(), part.classes, len(part)) == ([1, 1], ("a", "b", "c"), 2)


def test_image_set_refuses_what_does_not_fit_together() -> None:
    data = make_set()
    for change in (
        {"images": data.images.float()},
        {"images": data.images[0]},
        {"targets": data.targets[:5]},
        {"targets": data.targets.int()},
    ):
        with pytest.raises(FedKDError, match="must be"):
            replace(data, **change)


def test_datasets_share_the_training_classes() -> None:
    train = [(rgb(), 0), (rgb(), 2)]
    _, test = Datasets(train, [(rgb(), 1)]).load()
    assert test.classes == ("0", "1", "2")
    with pytest.raises(FedKDError, match="Label 3 is outside"):
        Datasets(train, [(rgb(), 3)]).load()
    with pytest.raises(FedKDError, match=r"classes \(a, b\) are not the training set's \(a, b, c\)"):
        Datasets(make_set(), make_set(classes=2)).load()
    assert Datasets(make_set(), make_set(), classes="xyz").load()[1].classes == ("x", "y", "z")


@pytest.mark.parametrize("transform", ["flip", "crop"])
def test_a_random_transform_of_the_dataset_is_refused_and_a_fixed_one_kept(transform):
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (30, 3, 8, 8), generator=generator).to(torch.uint8)

    class Transformed:
        def __init__(self, is_random):
            self.is_random = is_random

        def __len__(self):
            return len(pictures)

        def __getitem__(self, i):
            shift = int(torch.randint(0, 2, (), generator=generator)) if self.is_random else 1
            seen = pictures[i].flip(-1) if transform == "flip" and shift else pictures[i].roll(shift, -1)
            return seen, i % 2

    assert len(ImageSet.from_dataset(Transformed(False))) == 30
    with pytest.raises(FedKDError, match=r"Item \d+ of the dataset is another image .* data.augmentation"):
        ImageSet.from_dataset(Transformed(True))


def test_of_a_class_with_several_names_the_first_counts_while_it_is_the_only_such() -> None:
    class Synonyms(Named):
        # as in torchvision's ImageNet, where two classes are cranes
        classes = (("tench", "Tinca tinca"), ("crane",), "dog", ("maillot",), ("maillot", "tank suit"), ("crane",))

    names = ("tench", "crane", "dog", "maillot", "maillot, tank suit", "crane (2)")
    data = Synonyms(torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.arange(6))
    assert ImageSet.from_dataset(data).classes == names
    assert ImageSet.from_dataset([(rgb(), 0)], classes=Synonyms.classes).classes == names


def test_other_class_names_than_strings_are_refused() -> None:
    with pytest.raises(FedKDError, match="Class names must be strings, got 3"):
        ImageSet(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), ("a", 3))
