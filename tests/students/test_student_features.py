"""A student's features are what its last layer sees; the projector and the frozen head behind them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fedkd import students
from fedkd.core.errors import FedKDError
from fedkd.students import ProjectedStudent, feature_layer, features_and_logits


@pytest.mark.parametrize("name", students.students)
def test_every_named_student_has_features(name):
    student = students.create(name, num_classes=5, in_channels=1, image_size=16).eval()
    layer = feature_layer(student, 5, (1, 16, 16))
    images = torch.rand(2, 1, 16, 16)
    features, logits = features_and_logits(student, images, layer)
    last = student.get_submodule(layer)
    assert features.shape == (2, last.in_features)
    torch.testing.assert_close(logits, last(features))
    torch.testing.assert_close(logits, student(images))
    features.sum().backward()
    assert any(parameter.grad is not None for parameter in student.parameters())
    assert last.weight.grad is None


class Two(nn.Module):
    """Two layers with as many outputs as classes, of which the one that is called last makes the logits."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 3)
        self.first = nn.Linear(64, 3)
        self.unused = nn.Linear(64, 3)

    def forward(self, images):
        return 2 * self.last(self.first(images.flatten(1)).relu())


def test_the_layer_that_is_called_last_is_taken():
    student = Two().train()
    assert feature_layer(student, 3, (1, 8, 8)) == "last"
    assert student.training
    assert not any(module._forward_pre_hooks for module in student.modules())


def test_a_student_without_such_a_layer_is_named():
    student = nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten())
    with pytest.raises(FedKDError, match=r"Sequential has no features to distill.*to 3 classes.*such as KD"):
        feature_layer(student, 3, (1, 8, 8))


def test_a_projector_changes_no_logits():
    student, images = Two(), torch.rand(4, 1, 8, 8)
    wrapped = ProjectedStudent(student, "last", feature_dim=7)
    assert torch.equal(wrapped(images), student(images))
    features, logits = wrapped.features_and_logits(images)
    assert features.shape == (4, 7)
    assert torch.equal(logits, student(images))
    assert {name.split(".")[0] for name in wrapped.state_dict()} == {"student", "projector"}


@pytest.mark.parametrize("unit", [False, True])
def test_a_frozen_head_makes_the_logits_and_is_no_state(unit):
    images, weight, bias = torch.rand(4, 1, 8, 8), torch.randn(3, 7), torch.randn(3)
    wrapped = ProjectedStudent(Two(), "last", feature_dim=7)
    names = wrapped.state_dict().keys()
    wrapped.freeze_head(weight, bias, unit=unit)
    features, logits = wrapped.features_and_logits(images)
    seen = features / features.norm(dim=1, keepdim=True) if unit else features
    torch.testing.assert_close(logits, seen @ weight.T + bias)
    torch.testing.assert_close(wrapped(images), logits)
    assert wrapped.state_dict().keys() == names
    assert wrapped.constants().keys() == {"head_weight", "head_bias"}

    tensors = {**wrapped.state_dict(), **wrapped.constants()}
    again = ProjectedStudent.restore(Two(), wrapped.describe(), tensors)
    again.load_state_dict(tensors)  # the constants were taken out
    assert torch.equal(again(images), wrapped(images))
    assert torch.equal(copy.deepcopy(wrapped)(images), wrapped(images))
