"""From teacher and data to what the student is taught: clean images or views, features, public split."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from protocols import prepare
from torch import Tensor, nn

from fedkd.core.errors import FedKDError
from fedkd.core.local import Connect
from fedkd.core.messages import ClientTask, ClientUpdate
from fedkd.data import Augmentation, ClientSite, FederatedDataModule, ImageSet, Views
from fedkd.teachers import Teacher, TeacherOutputs
from fedkd.teachers.heads.modules import LinearClassifier
from fedkd.teachers.outputs.prepare import logits_from

VIEWS = Views(3, Augmentation(2, True))
SHARDS = [np.arange(0, 20), np.empty(0, np.int64), np.arange(20, 30)]
PUBLIC = np.arange(30, 40)


class Corner(Teacher):
    """Looks at a corner, so that crops and flips matter; counts the images that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self._looked = [0]  # not None: a plain attribute would be part of the fingerprint
        self.backbone = nn.Identity()

    not_in_features = Teacher.not_in_features | {"_looked"}

    @property
    def looked(self) -> int:
        return self._looked[0]

    def features(self, images: Tensor) -> Tensor:
        self._looked[0] += len(images)
        return images[:, :, :4, :2].flatten(1)


class Given(Corner):
    """It brings its head along."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(24, 3)


class Overridden(Given):
    """It makes logits without its head."""

    def forward(self, images: Tensor) -> Tensor:
        return 7 * self.features(images)[:, :3]


class Weighted(Corner):
    """Fits something on the public split, once its head is there."""

    def fit_weights(self, outputs: Tensor, targets: Tensor) -> None:
        assert self.head is not None
        self.got = outputs, targets


def test_every_view_is_judged_by_the_head_that_the_images_themselves_fitted(images: ImageSet, tmp_path: Path) -> None:
    fixed, consistent = Corner(), Corner()
    one = prepare(fixed, images, images, SHARDS, cache=tmp_path)
    three = prepare(consistent, images, images, SHARDS, cache=tmp_path, views=VIEWS)
    # the training set is the test set here: one pass of the images themselves in all, and one of three views
    assert (fixed.looked, consistent.looked) == (40, 3 * 40)
    assert one.logits.shape == (40, 3)
    assert three.logits.shape == (40, 3, 3)
    assert all(torch.equal(a, b) for a, b in zip(fixed.head.buffers(), consistent.head.buffers(), strict=True))
    assert (one.head_bytes, one.accuracy) == (three.head_bytes, three.accuracy)
    assert torch.equal(one.test_logits, three.test_logits)
    index = torch.arange(40)
    for v in range(3):
        seen = VIEWS.augmentation(images.images, index, torch.tensor(v), VIEWS.seed).float() / 255
        torch.testing.assert_close(three.logits[:, v], consistent(seen), rtol=1e-2, atol=1e-2)
    assert (three.logits - one.logits[:, None]).abs().max() > 0.1


def test_clean_images_are_not_looked_at_where_nothing_is_fitted(images: ImageSet, tmp_path: Path) -> None:
    test = images.subset(range(5))
    for teacher in (Given(), Overridden()):
        outputs = prepare(teacher, images, test, SHARDS, cache=tmp_path, views=VIEWS)
        assert teacher.looked == 3 * 40 + 5
        assert (outputs.logits.shape, outputs.head_bytes) == ((40, 3, 3), 0)


@pytest.mark.parametrize("views", [None, VIEWS])
@pytest.mark.parametrize("kind", [Corner, Given, Overridden])
def test_the_feature_file_holds_what_the_student_is_to_see(
    kind: type[Corner], views: Views | None, images: ImageSet, tmp_path: Path
) -> None:
    teacher = kind()
    outputs = prepare(teacher, images, images, SHARDS, cache=tmp_path, views=views, features=True)
    assert outputs.feature_file is not None
    features = np.load(outputs.feature_file, mmap_mode="r")
    assert features.shape == (40, 3 if views else 1, 24)
    index = torch.arange(40)
    for v in range(features.shape[1]):
        pixels = images.images if views is None else views.augmentation(images.images, index, torch.tensor(v), 0)
        np.testing.assert_allclose(features[:, v], teacher.features(pixels.float() / 255), rtol=1e-3)
    assert prepare(teacher, images, images, SHARDS, cache=tmp_path).feature_file is None


def test_the_clients_logits_are_told_apart(images: ImageSet, tmp_path: Path) -> None:
    outputs = prepare(Corner(), images, images, SHARDS, cache=tmp_path)
    assert torch.equal(of_clients(outputs, SHARDS), outputs.logits[:30])
    outputs = prepare(Corner(), images, images, SHARDS, cache=tmp_path, views=VIEWS)
    assert torch.equal(of_clients(outputs, SHARDS[2:]), outputs.logits[20:30].reshape(30, 3))


def of_clients(found: SimpleNamespace, shards: list[np.ndarray]) -> Tensor:
    names = {field.name for field in fields(TeacherOutputs)}
    outputs = TeacherOutputs(**{name: value for name, value in vars(found).items() if name in names})
    return outputs.of_clients(shards)[0]


@pytest.mark.parametrize("views", [None, VIEWS])
@pytest.mark.parametrize("public", [None, PUBLIC])
def test_weights_are_fitted_on_the_public_split(
    public: np.ndarray | None, views: Views | None, images: ImageSet, tmp_path: Path
) -> None:
    teacher = Weighted()
    prepare(teacher, images, images, SHARDS, public=public, views=views, cache=tmp_path)
    outputs, targets = teacher.got
    rows = torch.arange(30, 40) if public is not None else torch.arange(0)
    assert torch.equal(targets, images.targets[rows])
    assert (outputs.dtype, outputs.shape) == (torch.float32, (len(rows), 24))
    torch.testing.assert_close(outputs, teacher.features(images.images[rows].float() / 255), rtol=1e-3, atol=1e-4)


class Adapting(Corner):
    """Turns its features round before it is asked for any, at a price."""

    def __init__(self) -> None:
        super().__init__()
        self.sign = 1

    def features(self, images: Tensor) -> Tensor:
        return self.sign * super().features(images)

    def adapt(self, data: FederatedDataModule, connect: Connect) -> None:
        assert (self.looked, len(data.train), len(data.shards)) == (0, 40, 3)
        self.sign = -1
        with connect(data.sites()) as exchange:
            tasks = [ClientTask(0, 1, extras={"down": torch.zeros(50)})]
            assert [update.client for update in exchange(send_a_kilobyte, tasks)] == [1]


def send_a_kilobyte(site: ClientSite, task: ClientTask) -> ClientUpdate:
    """A work of a teacher's own."""
    return ClientUpdate(task.client, extras={"up": torch.zeros(250)})


def test_a_teacher_may_adapt_before_it_is_asked(images: ImageSet, tmp_path: Path) -> None:
    plain = prepare(Corner(), images, images, SHARDS, cache=tmp_path)
    outputs = prepare(Adapting(), images, images, SHARDS, cache=tmp_path, features=True)
    assert np.load(outputs.feature_file).max() <= 0
    assert outputs.head_bytes == plain.head_bytes + 1000
    assert outputs.head_bytes_down == plain.head_bytes_down + 200


def test_a_wrong_number_of_classes_is_said(images: ImageSet, tmp_path: Path) -> None:
    teacher = Given()
    teacher.head = nn.Linear(24, 5)
    with pytest.raises(FedKDError, match="5 classes, but the data has 3"):
        prepare(teacher, images, images, SHARDS, cache=tmp_path, views=VIEWS)


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("count", [1, 2, 5, 16, 77])
def test_an_images_logits_do_not_depend_on_the_images_beside_it(num_classes: int, count: int) -> None:
    torch.manual_seed(0)
    outputs = np.random.default_rng(0).standard_normal((300, 1, 96)).astype(np.float16)
    teacher = Given()
    teacher.head = LinearClassifier(torch.randn(96, num_classes), torch.randn(num_classes), 3.0)
    whole = logits_from(teacher, outputs)
    for first in (0, 11, 300 - count):
        part = logits_from(teacher, outputs[first : first + count])
        assert torch.equal(part, whole[first : first + count])


def test_a_head_sees_enough_rows_for_the_usual_matrix_product() -> None:
    seen = []

    class Noting(nn.Linear):
        def forward(self, features: Tensor) -> Tensor:
            seen.append(len(features))
            return super().forward(features)

    teacher = Given()
    teacher.head = Noting(96, 3)
    outputs = np.ones((17, 1, 96), np.float16)
    logits = logits_from(teacher, outputs, chunk=16)
    assert seen == [16, 16]
    assert logits.shape == (17, 3)
    torch.testing.assert_close(logits[16], logits[0])
