"""Further transforms: each image has numbers of its own, which follow from (run, round, client), epoch and image."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from helpers import Remote, datamodule, module, same, weights
from torchvision.transforms import v2

import fedkd
from fedkd.core.config import one_line
from fedkd.core.errors import FedKDError
from fedkd.core.seeding import seed_all
from fedkd.data import Augmentation, BatchLoader, FederatedDataModule, ImageSet, MixUp, Rows, Views
from fedkd.teachers.outputs.passes import Pass

IMAGES = torch.randint(0, 256, (12, 3, 8, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
DATA = ImageSet(IMAGES, torch.arange(12) % 3, tuple("abc"))
JITTER = v2.ColorJitter(brightness=0.9, contrast=0.5)
BOTH = Augmentation(1, True, transforms=[v2.RandAugment(), JITTER])


def shown(augmentation, indices=range(12), epoch=0, seed=5, **options) -> dict[int, torch.Tensor]:
    """Return what an epoch shows of each image, by its number."""
    loader = BatchLoader(Rows.of(DATA, indices), batch_size=5, seed=seed, augmentation=augmentation, **options)
    loader.epoch = epoch
    return {int(i): image for batch in loader for i, image in zip(batch.index, batch.images, strict=True)}


def test_a_transform_gets_the_cropped_image_as_uint8_and_numbers_of_its_own():
    augmentation = Augmentation(1, True, transforms=[JITTER])
    index, view = torch.arange(12), torch.full((12,), 3)
    seeds = augmentation.transform_seeds(index, view, 5)
    for i, image in shown(augmentation, epoch=3).items():
        cropped = Augmentation(1, True)(IMAGES[i][None], index[i : i + 1], view[:1], 5)[0]
        seed_all(int(seeds[i]))
        assert torch.equal(image, JITTER(cropped).float() / 255)
    assert len(set(seeds.tolist())) == 12


def test_order_batches_and_other_images_change_nothing():
    whole, part = shown(BOTH), shown(BOTH, [7, 2, 9], shuffle=True)
    assert all(torch.equal(image, whole[i]) for i, image in part.items())


def test_equal_images_are_shown_differently_and_anew_in_every_epoch_and_run():
    gray = ImageSet(torch.full((2, 1, 8, 8), 100, dtype=torch.uint8), torch.zeros(2).long(), ("a", "b"))

    def brightness(epoch, seed):
        loader = BatchLoader(Rows.of(gray), batch_size=2, seed=seed, augmentation=Augmentation(transforms=[JITTER]))
        loader.epoch = epoch
        return next(iter(loader)).images.mean(dim=(1, 2, 3)).tolist()

    found = [*brightness(0, 0), *brightness(1, 0), *brightness(0, 1)]
    assert len(set(found)) == 6
    assert brightness(1, 0) == found[2:4]


def test_the_global_generators_are_neither_read_nor_moved():
    def states():
        return random.getstate()[1], np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    torch.manual_seed(1)
    before = states()
    first = shown(BOTH)
    assert states() == before
    torch.manual_seed(2)
    again = shown(BOTH)
    assert all(torch.equal(first[i], again[i]) for i in first)


def test_batches_stay_channels_last():
    loader = BatchLoader(Rows.of(DATA), batch_size=5, augmentation=BOTH)
    assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in loader)


def test_floats_are_rounded_to_8_bits():
    to_float = v2.ToDtype(torch.float32, scale=True)
    same_image = shown(Augmentation(transforms=[to_float]))
    assert all(torch.equal(image, IMAGES[i].float() / 255) for i, image in same_image.items())
    halved = shown(Augmentation(transforms=[to_float, lambda image: image / 2]))
    for i, image in halved.items():
        torch.testing.assert_close(image, IMAGES[i].float() / 510, rtol=0, atol=0.5001 / 255)
        assert torch.equal(image, (image * 255).round() / 255)


def test_a_view_is_what_the_transforms_made_of_it():
    views = Views(2, BOTH, seed=4)
    seen = {v: shown(views.only(v)) for v in range(2)}
    for image, pair in ((i, (seen[0][i], seen[1][i])) for i in range(12)):
        assert not torch.equal(*pair)
        assert any(torch.equal(shown(views, epoch=1, seed=9)[image], each) for each in pair)
    passed = Pass(torch.nn.Module(), DATA, views, True, 8)._views_of(IMAGES[:5], 0).unflatten(0, (5, 2))  # (b, V, ...)
    assert all(torch.equal(passed[i, v].float() / 255, seen[v][i]) for i in range(5) for v in range(2))


def test_teacher_outputs_are_cached_by_what_the_teacher_sees():
    teacher = fedkd.teachers.create("digits-tiny")

    def key(augmentation):
        return Pass(teacher, DATA, Views(2, augmentation), False, 8).key

    keys = [key(Augmentation(1, transforms=[v2.RandAugment(magnitude=m)])) for m in (3, 4)]
    assert len({key(Augmentation(1)), *keys}) == 3
    assert key(Augmentation(1, mix=MixUp())) == key(Augmentation(1))


OTHER_ARGUMENTS = [
    (v2.RandAugment(), v2.RandAugment(num_ops=3)),
    (v2.RandAugment(), v2.RandAugment(interpolation=v2.InterpolationMode.BILINEAR)),
    (v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10), v2.AutoAugment(v2.AutoAugmentPolicy.SVHN)),
    (v2.RandomErasing(), v2.RandomErasing(value="random")),
    (v2.RandomApply([v2.GaussianBlur(3)]), v2.RandomApply([v2.GaussianBlur(5)])),
    (v2.Lambda(lambda image: image), v2.Lambda(lambda image: 255 - image)),
]


@pytest.mark.parametrize(("left", "right"), OTHER_ARGUMENTS)
def test_the_text_of_a_run_tells_all_arguments(left, right):
    one, other = (one_line(Augmentation(transforms=[each])) for each in (left, right))
    assert one != other
    assert one == repr(Augmentation(transforms=left))


def test_without_new_settings_the_text_is_what_it_was():
    assert repr(Augmentation(4, True)) == "Augmentation(crop_padding=4, flip=True)"
    assert (
        repr(Views(3, Augmentation(1)))
        == "Views(count=3, augmentation=Augmentation(crop_padding=1, flip=False), seed=0)"
    )


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        (
            [v2.RandomCrop(4)],
            r"must keep an image's shape \(3, 8, 8\), but after RandomCrop there is uint8 \(3, 4, 4\)",
        ),
        ([v2.Normalize([0.5], [0.5])], r"transforms: Normalize fails on an image uint8 \(3, 8, 8\): Input tensor"),
        (
            [v2.ToDtype(torch.float32, True), v2.Normalize([0.5], [0.1])],
            "after Normalize values reach from -5 to 4.96. Leave Normalize out: students and teachers normalize",
        ),
        ([v2.ToPILImage()], "but after ToPILImage there is a Image"),
        ([v2.ToDtype(torch.int64)], r"must end in uint8 or float, but after ToDtype there is int64 \(3, 8, 8\)"),
    ],
)
def test_what_does_not_suit_the_images_is_refused_when_these_are_known(transforms, message):
    pairs = [(image, int(label)) for image, label in zip(IMAGES, DATA.targets, strict=True)]
    data = FederatedDataModule.from_datasets(pairs, pairs, augmentation=Augmentation(transforms=transforms))
    with pytest.raises(FedKDError, match=message):
        data.setup()


def test_what_is_no_transform_of_an_image_is_refused_at_once():
    with pytest.raises(FedKDError, match=r"transforms has the class RandAugment: give an instance of it, RandAugment"):
        Augmentation(transforms=[v2.RandAugment])
    with pytest.raises(FedKDError, match=r"must be transforms of images, such as RandAugment\(\), got 3"):
        Augmentation(transforms=3)
    with pytest.raises(FedKDError, match=r"CutMix mixes a batch, not an image: set mix, to fedkd.data.CutMix\("):
        Augmentation(transforms=[v2.CutMix(num_classes=3)])


def test_it_pickles():
    again = pickle.loads(pickle.dumps(BOTH))
    assert repr(again) == repr(BOTH)
    assert all(torch.equal(image, shown(again)[i]) for i, image in shown(BOTH).items())


def test_clients_in_another_order_and_made_of_bytes_learn_the_same(tmp_path):
    found = []
    for backend in (fedkd.InProcess(), Remote()):
        trained = module()
        fedkd.Federation(rounds=2, backend=backend, run_dir=tmp_path / type(backend).__name__).fit(
            trained, datamodule(augmentation=BOTH)
        )
        found.append(weights(trained))
    assert same(*found)
