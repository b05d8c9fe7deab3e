"""A teacher is frozen, says what its features depend on, and is easily subclassed."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from protocols import prepare
from torch import Tensor, nn

from fedkd.core.errors import FedKDError
from fedkd.data import ImageSet
from fedkd.teachers import EnsembleTeacher, RidgeHead, Teacher, create, register


class Means(Teacher):
    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.mix = nn.Sequential(nn.Linear(3, 5, bias=False), nn.Dropout(0.5))
        nn.init.eye_(self.mix[0].weight)

    def features(self, images: Tensor) -> Tensor:
        return self.mix(self.gain * images.expand(-1, 3, -1, -1).mean((2, 3)))


class Given(Means):
    """Its features are logits already."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3, 3)
        self.head = nn.Identity()


class Overridden(Means):
    """It has a forward of its own."""

    def forward(self, images: Tensor) -> Tensor:
        return 7 * images.mean((2, 3))


def test_subclass_is_frozen_however_it_is_treated() -> None:
    teacher = Means()
    teacher.train()
    teacher.head = nn.Linear(5, 2)
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    out = teacher(torch.rand(2, 3, 4, 4, requires_grad=True))
    assert not out.requires_grad
    # Logits must be of use in a loss: inference tensors could not be saved for backward.
    student = torch.zeros(2, 2, requires_grad=True)
    (student * out).sum().backward()
    torch.testing.assert_close(student.grad, out)
    assert teacher.feature_dim == 5


def test_no_head_is_a_clear_error() -> None:
    with pytest.raises(FedKDError, match="Means has no head yet"):
        Means()(torch.rand(1, 3, 4, 4))


def test_fingerprint_changes_with_what_features_depend_on_and_nothing_else() -> None:
    teacher = Means()
    before = teacher.fingerprint()
    assert Means().fingerprint() == before
    assert copy.deepcopy(teacher).fingerprint() == before
    assert pickle.loads(pickle.dumps(teacher)).fingerprint() == before
    teacher.head = nn.Linear(5, 2)
    teacher.head_method = RidgeHead(0.5)
    teacher.prepare(["a", "b"])
    assert teacher.fingerprint() == before, "the head is not part of the features"

    assert Means(gain=2.0).fingerprint() != before
    assert Given().fingerprint() != before
    changed = Means()
    changed.mix[0].weight[0, 0] += 1e-6
    assert changed.fingerprint() != before
    dropout = Means()
    dropout.mix[1].p = 0.6
    assert dropout.fingerprint() != before
    assert Means().bfloat16().fingerprint() != before


def test_identity_tells_what_makes_logits_apart_before_any_data_is_seen() -> None:
    before = Means().identity()
    assert before.startswith(f"Means {Means().fingerprint()[:16]}, head_method=RidgeHead(")
    assert Means(gain=2.0).identity() != before
    assert Given().identity() != before
    teacher = Means()
    teacher.prepare(["a", "b"])
    teacher.head, teacher.head_is_fitted = nn.Linear(5, 2), True
    assert teacher.identity() == before, "what follows from the data is not the teacher's"
    teacher.head_method = RidgeHead(0.5)
    assert teacher.identity() != before
    changed = Overridden()
    changed.head = nn.Linear(5, 2)
    assert changed.identity() != Overridden().identity(), "all of it makes its logits"
    both = EnsembleTeacher([Means(), Overridden()])
    alike = EnsembleTeacher([Means(), Overridden()])
    alike.prepare(["a", "b"])
    assert both.identity() == alike.identity()
    assert both.identity() != EnsembleTeacher([Means(), Overridden()], weights=[1, 2]).identity()
    assert both.identity() != EnsembleTeacher([teacher, Overridden()]).identity(), "a member's head counts"


def test_outputs_of_a_subclass(images: ImageSet, tmp_path: object) -> None:
    test = images.subset(np.arange(12))
    shards = [np.arange(0, 20), np.empty(0, np.int64), np.arange(20, 40)]
    teacher = Means()
    teacher.head_method = RidgeHead(0.01)
    outputs = prepare(teacher, images, test, shards, cache=str(tmp_path))
    assert outputs.accuracy == 1.0  # the classes differ by their color
    assert outputs.logits.shape == (40, 3)
    torch.testing.assert_close(outputs.logits, teacher(images.images.float() / 255), rtol=1e-2, atol=1e-2)
    assert outputs.head_bytes == 2 * 8 * (6 * 7 // 2 + 6 * 3 + 33)


def test_head_is_fitted_to_the_shards_alone_and_anew_for_other_shards(images: ImageSet, tmp_path: object) -> None:
    teacher = Means()
    spoilt = ImageSet(images.images, images.targets.clone(), images.classes)
    spoilt.targets[30:] = (spoilt.targets[30:] + 1) % 3  # wrong labels where no client looks
    one = prepare(teacher, images, images, [np.arange(30)], cache=str(tmp_path)).logits
    other = prepare(teacher, spoilt, images, [np.arange(30)], cache=str(tmp_path)).logits
    assert torch.equal(one, other)
    assert not torch.equal(one, prepare(teacher, images, images, [np.arange(9)], cache=str(tmp_path)).logits)


def test_given_head_and_overridden_forward_are_used_as_they_are(images: ImageSet, tmp_path: object) -> None:
    for teacher in (Given(), Overridden()):
        head = teacher.head
        outputs = prepare(teacher, images, images, [np.arange(40)], cache=str(tmp_path))
        expected = teacher(images.images.float() / 255)
        torch.testing.assert_close(outputs.logits, expected, rtol=2e-3, atol=1e-3)
        assert teacher.head is head
        assert outputs.head_bytes == 0
    assert outputs.accuracy == 1.0


def test_accuracies_by_hand(images: ImageSet, tmp_path: object) -> None:
    # Class 0 has three images, one of them labeled so by mistake; class 1 one; class 2 none.
    order = [0, 3, 1, 4]
    test = ImageSet(images.images[order], torch.tensor([0, 0, 0, 1]), images.classes)
    outputs = prepare(Overridden(), images, test, [np.arange(40)], cache=str(tmp_path))
    assert outputs.accuracy == 0.75
    assert outputs.per_class_accuracy[:2] == pytest.approx([2 / 3, 1.0])
    assert np.isnan(outputs.per_class_accuracy[2])
    assert outputs.balanced_accuracy == pytest.approx(5 / 6)


def test_wrong_number_of_classes_is_an_error(images: ImageSet, tmp_path: object) -> None:
    teacher = Means()
    teacher.head = nn.Identity()
    with pytest.raises(FedKDError, match="5 classes, but the data has 3"):
        prepare(teacher, images, images, [np.arange(40)], cache=str(tmp_path))


def test_a_registered_teacher_is_made_by_name() -> None:
    register("means", family="test")(Means)
    teacher = create("means", gain=3.0)
    assert isinstance(teacher, Means)
    assert teacher.gain == 3.0
    with pytest.raises(FedKDError, match=r"Unknown option of teacher means 'gian'. Did you mean 'gain'\?"):
        create("means", gian=3.0)
    with pytest.raises(FedKDError, match="already used"):
        register("dinov2-s")(Means)


def test_a_head_that_is_none_is_said_at_once() -> None:
    with pytest.raises(FedKDError, match=r"head must be a FederatedHead such as RidgeHead\(\), got 'PrototypeHead'"):
        create("digits-tiny", head="PrototypeHead")


@pytest.mark.parametrize(("supported", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_is_the_half_precision_that_the_gpu_has(
    monkeypatch: pytest.MonkeyPatch, supported: bool, dtype: torch.dtype
) -> None:
    from fedkd.teachers.huggingface.feature import _half_of_cuda

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported or including_emulation)
    assert _half_of_cuda() == dtype
