"""MixUp and CutMix by hand: which pixels come from where, and in which shares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from fedkd.core.errors import FedKDError
from fedkd.data import Augmentation, BatchLoader, CutMix, FederatedDataModule, ImageSet, MixUp, Rows, Views

IMAGES = torch.randint(0, 256, (50, 3, 6, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
DATA = ImageSet(IMAGES, torch.arange(50) % 7, tuple("abcdefg"))


def loader(mix, **options) -> BatchLoader:
    options = {"batch_size": 8, "shuffle": True, "seed": 5, **options}
    return BatchLoader(Rows.of(DATA), augmentation=Augmentation(mix=mix), **options)


def test_mixup_adds_the_image_before_in_the_rest_of_the_share():
    batches = list(loader(MixUp(0.5)))
    for batch in batches:
        single = IMAGES[batch.index].float() / 255
        share = batch.mix_weight
        for i in range(len(single)):
            torch.testing.assert_close(batch.images[i], share * single[i] + (1 - share) * single[i - 1])
        assert torch.equal(batch.targets, DATA.targets[batch.index])
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert len({float(batch.mix_weight) for batch in batches}) == len(batches) == 7


def test_cutmix_pastes_a_box_whose_area_is_the_rest_of_the_share():
    shares = []
    for batch in loader(CutMix(1.0), batch_size=2):
        single = IMAGES[batch.index].float() / 255
        kept = (batch.images == single).all(dim=1)  # (B, H, W); equal by chance with probability 1e-7
        pasted = (batch.images == single.roll(1, 0)).all(dim=1)
        assert torch.equal(kept, ~pasted)
        assert torch.equal(kept[0], kept[1])
        assert float(batch.mix_weight) == pytest.approx(float(kept[0].float().mean()), abs=1e-6)
        rows, columns = (~kept[0]).nonzero(as_tuple=True)
        if len(rows):  # a box has no hole
            assert len(rows) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        shares.append(float(batch.mix_weight))
    assert len(set(shares)) > 10


def test_a_batch_of_one_image_is_that_image():
    *_, last = loader(CutMix(), batch_size=7)
    assert torch.equal(last.images, IMAGES[last.index].float() / 255)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_shares_follow_the_beta_distribution(alpha):
    shares = MixUp(alpha).draw(20_000, (8, 8), seed=0).weight.double()
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.015)
    assert float(shares.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


def test_boxes_have_the_authors_sides_and_centers_everywhere():
    draws = CutMix().draw(20_000, (32, 32), seed=0)
    top, bottom, left, right = draws.box.unbind(1)
    assert torch.equal(draws.weight, 1 - (bottom - top) * (right - left) / 1024)
    assert (draws.box.min(), draws.box.max()) == (0, 32)
    inner = (top > 0) & (bottom < 32) & (left > 0) & (right < 32)
    assert torch.equal((bottom - top)[inner], (right - left)[inner])  # the image's own proportions


def test_a_probability_leaves_batches_as_they_are_to_the_bit():
    plain = list(BatchLoader(Rows.of(DATA), batch_size=8, shuffle=True, seed=5))
    for mix in (MixUp(probability=0), CutMix(probability=0)):
        for batch, single in zip(loader(mix), plain, strict=True):
            assert float(batch.mix_weight) == 1
            assert torch.equal(batch.images, single.images)
    mixed = MixUp(probability=0.25).draw(20_000, (8, 8), seed=0).weight < 1
    assert float(mixed.float().mean()) == pytest.approx(0.25, abs=0.02)


def test_numbers_follow_from_seed_and_epoch_alone():
    def weights(seed=5, epoch=0):
        made = loader(MixUp(), seed=seed)
        made.epoch = epoch
        return [float(batch.mix_weight) for batch in made]

    first = weights()
    torch.manual_seed(3), np.random.seed(3)
    assert weights() == first
    assert not set(first) & {*weights(seed=6), *weights(epoch=1)}


def test_views_are_mixed_in_training_and_not_in_prediction():
    views = Views(2, Augmentation(1, True, mix=MixUp()))
    trained = next(iter(BatchLoader(Rows.of(DATA), batch_size=8, augmentation=views)))
    predicted = next(iter(BatchLoader(Rows.of(DATA), batch_size=8, augmentation=views.only(1))))
    assert trained.mix_weight is not None
    assert predicted.mix_weight is None


def test_wrong_values_are_named():
    with pytest.raises(FedKDError, match=r"alpha must be >= 0.001 and <= 1000000.0, got 0"):
        MixUp(0)
    with pytest.raises(FedKDError, match=r"probability must be >= 0 and <= 1, got 2"):
        CutMix(probability=2)
    with pytest.raises(FedKDError, match=r"mix is the class MixUp: give an instance of it, MixUp"):
        Augmentation(mix=MixUp)
    with pytest.raises(FedKDError, match=r"mix must be fedkd.data.MixUp or fedkd.data.CutMix, got MixUp"):
        Augmentation(mix=v2.MixUp(num_classes=7))
    with pytest.raises(
        FedKDError, match=r"augmentation\.mix mixes the images of a batch, so set batch_size to 2 or more"
    ):
        FederatedDataModule(augmentation=Augmentation(mix=MixUp()), batch_size=1)
