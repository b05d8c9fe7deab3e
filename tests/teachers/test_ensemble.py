"""Several teachers as one: what they say is pooled as the formula says, and fitted weights are the best."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import BrightRowTeacher, datamodule, module
from protocols import prepare
from torch import Tensor, nn

import fedkd
from fedkd.core.errors import FedKDError
from fedkd.data import Augmentation, ImageSet, Views
from fedkd.teachers import (
    EnsembleTeacher,
    PrototypeHead,
    RidgeHead,
    Teacher,
    TeacherCache,
    create,
)
from fedkd.teachers.heads.ensemble import fitted_weights

SHARDS = [np.arange(0, 20), np.empty(0, np.int64), np.arange(20, 30)]
PUBLIC = np.arange(30, 40)


class Given(Teacher):
    """Its features are logits: the colors' strengths, times a gain."""

    def __init__(self, gain: float = 1.0, offset: float = 0.0) -> None:
        super().__init__()
        self.gain, self.offset = gain, offset
        self.head = nn.Identity()

    def features(self, images: Tensor) -> Tensor:
        return self.gain * images.mean((2, 3)) + self.offset


class Fitted(Teacher):
    """It has five features and no head."""

    def features(self, images: Tensor) -> Tensor:
        return torch.cat([images.mean((2, 3)), images[:, :2].amax((2, 3))], dim=1)


class Own(Given):
    """It has a forward of its own."""

    def forward(self, images: Tensor) -> Tensor:
        return -images.mean((2, 3))


def test_pool_by_hand(images: ImageSet) -> None:
    pixels = images.images[:5].float() / 255
    teacher = EnsembleTeacher([Given(2.0), Given(3.0, offset=100.0), Own()], weights=[1, 2, 1])
    teacher.prepare(images.classes)
    means = pixels.mean((2, 3))
    pooled = 0.25 * 2 * means + 0.5 * 3 * means - 0.25 * means  # the weighted mean logits
    torch.testing.assert_close(teacher(pixels).softmax(1), pooled.softmax(1))
    logs = [(gain * means).log_softmax(1) for gain in (2, 3, -1)]
    torch.testing.assert_close(teacher(pixels), 0.25 * logs[0] + 0.5 * logs[1] + 0.25 * logs[2])
    assert teacher(pixels).max() <= 0  # the offset of 100 is gone


def test_one_member_is_that_member_and_equal_members_change_nothing(images: ImageSet, tmp_path: object) -> None:
    alone = prepare(Fitted(), images, images, SHARDS, cache=str(tmp_path))
    for members in ([Fitted()], [Fitted(), Fitted(), Fitted()]):
        outputs = prepare(EnsembleTeacher(list(members)), images, images, SHARDS, cache=str(tmp_path))
        torch.testing.assert_close(outputs.logits.softmax(1), alone.logits.softmax(1), rtol=1e-4, atol=1e-5)
        assert outputs.head_bytes == len(members) * alone.head_bytes
        assert outputs.head_bytes_down == len(members) * alone.head_bytes_down


def test_each_member_gets_its_own_kind_of_head(images: ImageSet, tmp_path: object) -> None:
    teacher = EnsembleTeacher([Fitted(RidgeHead(0.1)), Given(), Fitted(PrototypeHead()), Own()])
    outputs = prepare(teacher, images, images, SHARDS, cache=str(tmp_path))
    assert teacher.head is not None
    heads = teacher.head.heads
    assert [type(head).__name__ for head in heads] == ["LinearClassifier", "Identity", "Sequential", "Identity"]
    assert teacher.widths == (5, 3, 5, 3)
    assert outputs.logits.shape == (40, 3)
    torch.testing.assert_close(outputs.logits, teacher(images.images.float() / 255), rtol=1e-2, atol=1e-2)
    again = prepare(teacher, images, images, [np.arange(9)], cache=str(tmp_path))
    assert not torch.equal(again.logits, outputs.logits)  # fitted anew, to other shards


def test_fitted_weights_are_the_least_of_a_fine_grid() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 3, (200,), generator=generator)
    truth = F.one_hot(targets, 3).float()
    members = [
        truth + torch.randn(200, 3, generator=generator),
        2 * truth + 4 * torch.randn(200, 3, generator=generator),
    ]
    opinions = torch.stack(members).log_softmax(2)
    weights = fitted_weights(opinions, targets)
    grid = torch.linspace(0, 1, 1001)
    losses = torch.stack([F.cross_entropy(w * opinions[0] + (1 - w) * opinions[1], targets) for w in grid])
    assert 0 < int(losses.argmin()) < 1000
    assert float(weights[0]) == pytest.approx(float(grid[losses.argmin()]), abs=2e-3)
    assert float(weights.sum()) == pytest.approx(1)


def test_a_member_that_is_wrong_gets_no_weight() -> None:
    targets = torch.arange(60) % 3
    right = 3 * F.one_hot(targets, 3).float()
    weights = fitted_weights(torch.stack([-right, right, -right]).log_softmax(2), targets)
    assert float(weights[1]) > 0.999


def test_weights_are_fitted_to_the_public_images_alone(images: ImageSet, tmp_path: object) -> None:
    spoilt = ImageSet(images.images, images.targets.clone(), images.classes)
    spoilt.targets[:30] = (spoilt.targets[:30] + 1) % 3  # wrong labels everywhere else
    teacher = EnsembleTeacher([Given(-9.0), Given(9.0)], weights="fitted")
    outputs = prepare(teacher, spoilt, images, SHARDS, public=PUBLIC, cache=str(tmp_path))
    assert outputs.accuracy == 1.0
    assert teacher.head is not None
    assert float(teacher.head.weights[1]) > 0.999
    assert outputs.head_bytes == 0
    with pytest.raises(FedKDError, match="weights 'fitted' needs public images: set public_fraction above 0"):
        prepare(teacher, spoilt, images, SHARDS, cache=str(tmp_path))


def test_cache_knows_the_members_and_not_the_weights(images: ImageSet) -> None:
    before = EnsembleTeacher([Given(), Fitted()]).fingerprint()
    other_weights = EnsembleTeacher([Given(), Fitted(PrototypeHead())], weights=[1, 3])
    other_weights.prepare(images.classes)
    assert other_weights.fingerprint() == before
    assert copy.deepcopy(other_weights).fingerprint() == before
    assert pickle.loads(pickle.dumps(other_weights)).fingerprint() == before
    for members in ([Given(2.0), Fitted()], [Fitted(), Given()], [Given()], [Own(), Fitted()]):
        assert EnsembleTeacher(list(members)).fingerprint() != before


class Scaled(EnsembleTeacher):
    """Its features are the members' features, times a number."""

    def __init__(self, factor: float) -> None:
        super().__init__([Fitted()])
        self.factor = factor

    def features(self, images: Tensor) -> Tensor:
        return self.factor * super().features(images)


class Doubled(EnsembleTeacher):
    """Its features are twice the members' features."""

    def features(self, images: Tensor) -> Tensor:
        return 2 * super().features(images)


def test_the_code_and_settings_of_a_subclass_count() -> None:
    teachers = [EnsembleTeacher([Fitted()]), Doubled([Fitted()]), Scaled(2.0), Scaled(3.0)]
    assert len({teacher.fingerprint() for teacher in teachers}) == 4
    assert Doubled([Fitted()]).fingerprint() == Doubled([Fitted()], [1.0]).fingerprint()


def test_members_by_name_are_frozen(tiny: Callable[[str], str], images: ImageSet, tmp_path: object) -> None:
    teacher = EnsembleTeacher([tiny("resnet"), create("digits-tiny")])
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.train().modules())
    outputs = prepare(teacher, images, images, SHARDS, cache=str(tmp_path))
    torch.testing.assert_close(outputs.logits, teacher(images.images.float() / 255), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], r"weights must be one number per teacher, 2, got 1: \[1.0\]"),
        ([1.0, -1.0], r"weights must be >= 0 and not all 0, got \[1.0, -1.0\]"),
        ([0.0, 0.0], "not all 0"),
        ([float("nan"), 1.0], "not all 0, got"),
        ("fited", "weights must be a list of numbers, 'fitted' or null, got 'fited'. Did you mean 'fitted'"),
        (["a", 1.0], r"weights must be a list of numbers, 'fitted' or null, got \['a', 1.0\]"),
        ([True, 1.0], "weights must be a list of numbers"),
        (np.ones(2), r"weights must be a list of numbers, 'fitted' or null, got array"),
        (1.0, "weights must be a list of numbers, 'fitted' or null, got 1.0"),
    ],
)
def test_wrong_weights_are_named(weights: object, message: str) -> None:
    with pytest.raises(FedKDError, match=message):
        EnsembleTeacher([Given(), Own()], weights=weights)  # type: ignore[arg-type]


def test_an_ensemble_of_none_is_an_error() -> None:
    with pytest.raises(FedKDError, match="teachers is empty"):
        EnsembleTeacher([])


class Counted(Fitted):
    """It counts the images that it looks at."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.looks = 0

    not_in_features = Fitted.not_in_features | {"looks"}

    def features(self, images: Tensor) -> Tensor:
        self.looks += len(images)
        return self.gain * super().features(images)


@pytest.mark.parametrize("views", [None, Views(3, Augmentation(1, True))])
def test_members_look_once_whoever_asks(images: ImageSet, tmp_path: Path, views: Views | None) -> None:
    first, second = Counted(1.0), Counted(2.0)
    cache, count = TeacherCache(tmp_path), 1 if views is None else views.count
    alone = cache.get(first, images, views=views)
    assert first.looks == count * len(images)

    ensemble = EnsembleTeacher([second, first])
    ensemble.prepare(images.classes)
    probe = first.looks, second.looks
    joined = cache.get(ensemble, images, views=views, batch_size=16)
    assert (first.looks, second.looks) == (probe[0], probe[1] + count * len(images))
    np.testing.assert_array_equal(joined[..., 5:], alone)
    np.testing.assert_array_equal(joined[..., :5], cache.get(second, images, views=views))
    again = cache.get(EnsembleTeacher([first, second]), images, views=views)
    np.testing.assert_array_equal(again, joined[..., [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]])
    assert first.looks + second.looks == sum(probe) + count * len(images)


class OfOneShape(BrightRowTeacher):
    """Takes gray images of 8x8 and nothing else."""

    def features(self, images):
        assert images.shape[1:] == (1, 8, 8), images.shape
        return super().features(images)


def test_members_are_probed_with_the_datas_shape(tmp_path):
    ensemble = EnsembleTeacher([OfOneShape(), OfOneShape()])
    before = ensemble.identity(), ensemble.fingerprint()
    trained = module(teacher=ensemble)
    fedkd.Federation(1, run_dir=tmp_path, trainer={"accelerator": "cpu"}).fit(trained, datamodule(3))
    assert ensemble.widths == (3, 3)
    assert ensemble.teachers[0].feature_dim == 3
    assert (ensemble.identity(), ensemble.fingerprint()) == before
