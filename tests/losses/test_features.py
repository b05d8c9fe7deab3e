"""Losses on features, and the frozen head: by hand and by their identities."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from fedkd.core.errors import FedKDError
from fedkd.losses import (
    RKD,
    FeatureCosine,
    FeatureMSE,
    FrozenHead,
    Outputs,
    TeacherFacts,
    affine_map,
    feature_cosine,
    feature_moments,
    feature_mse,
    feature_sums,
    local_facts,
    rkd_angle,
    rkd_distance,
)
from fedkd.teachers import LinearClassifier, ZeroShotHead


class Pool(nn.Module):
    """Averages the log-probabilities of two heads, each on features of its own."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, features):
        return (self.one(features[:, :4]).log_softmax(1) + self.two(features[:, 4:]).log_softmax(1)) / 2


def centered(logits):
    """Take off what all classes share."""
    return logits - logits.mean(1, keepdim=True)


def test_feature_distances_by_hand():
    student, teacher = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[4.0, 3.0], [0.0, 2.0]])
    assert feature_mse(student, teacher).item() == pytest.approx((1 + 1 + 1 + 4) / 4)
    assert feature_cosine(student, teacher).item() == pytest.approx(((1 - 24 / 25) + 1) / 2)
    with pytest.raises(FedKDError, match=r"features of one shape, got \(2, 2\) and \(2, 3\)"):
        feature_mse(torch.zeros(2, 2), torch.zeros(2, 3))


def test_moments_by_hand():
    # mean (2, 1); centered (-1, 1), (1, -1), (0, 0) have squares of 4 in 6 entries
    features = torch.tensor([[1.0, 2.0], [3.0, 0.0], [2.0, 1.0], [99.0, 99.0]])
    features = features[[2, 0, 1]]
    mean, scale = feature_moments(feature_sums(features, chunk=2))
    one_by_one = [feature_sums(features[i : i + 1]) for i in range(3)]  # as three clients send them
    torch.testing.assert_close(feature_moments(torch.stack(one_by_one).sum(0)).mean, mean)
    torch.testing.assert_close(mean, torch.tensor([2.0, 1.0]))
    assert scale == pytest.approx(math.sqrt(4 / 6))
    views = torch.stack([features, features], dim=1).half().numpy()  # (N, 2, D), as a cache keeps it
    torch.testing.assert_close(feature_moments(feature_sums(views))[0], mean)
    assert feature_moments(feature_sums(torch.ones(3, 2))).scale == 1.0  # constant features: nothing to scale by
    with pytest.raises(FedKDError, match="no client has an image"):
        feature_moments(feature_sums(torch.ones(0, 2)))


@pytest.mark.parametrize("make", [FeatureMSE, FeatureCosine, FrozenHead])
def test_moments_make_a_weight_mean_the_same_for_every_teacher(make):
    features, targets = torch.randn(50, 4), torch.zeros(50, dtype=torch.long)
    student = Outputs(torch.randn(50, 3), torch.randn(50, 4))

    def term(teacher):
        loss = make()
        assert not loss.is_fitted
        loss.fit_to_teacher(TeacherFacts(moments=feature_moments(feature_sums(teacher))))
        assert loss.is_fitted
        return loss(student, targets, Outputs(torch.zeros(50, 3), teacher))["feature"]

    torch.testing.assert_close(term(30 * features + 100), term(features), rtol=1e-4, atol=1e-4)


def test_feature_mse_is_the_unexplained_share():
    teacher = 7 * torch.randn(40, 6) + 3
    loss = FeatureMSE(ce_weight=0.0)
    loss.fit_to_teacher(TeacherFacts(moments=feature_moments(feature_sums(teacher))))
    constant = Outputs(torch.zeros(40, 2), torch.zeros(40, 6))  # always answers the mean
    targets = torch.zeros(40, dtype=torch.long)
    assert loss(constant, targets, Outputs(torch.zeros(40, 2), teacher))["feature"].item() == pytest.approx(1, rel=1e-4)


def test_features_must_be_there():
    outputs = Outputs(torch.zeros(2, 3))
    with pytest.raises(FedKDError, match="compares features, and the student gives none"):
        FeatureMSE()(outputs, torch.tensor([0, 1]), outputs)
    with pytest.raises(FedKDError, match="FeatureCosine needs the moments of the teacher's features"):
        FeatureCosine().fit_to_teacher(TeacherFacts())
    with pytest.raises(FedKDError, match="FeatureCosine needs the teacher's features, but got only its logits"):
        local_facts(FeatureCosine(), torch.zeros(2, 3))


TRIANGLE = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])  # distances 3, 4, 5: their mean is 4
FLAT = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])  # distances 1, 2, 1


def test_relative_distances_by_hand():
    # in pairs 01, 02, 12: (3, 4, 5) / 4 against (1, 2, 1) / (4/3); Huber's loss of small d is d^2 / 2
    differences = [3 / 4 - 3 / 4, 1 - 3 / 2, 5 / 4 - 3 / 4]
    expected = sum(d**2 / 2 for d in differences) / 3
    assert rkd_distance(TRIANGLE, FLAT).item() == pytest.approx(expected, abs=1e-6)
    assert rkd_distance(10 * TRIANGLE + 1, FLAT).item() == pytest.approx(expected, abs=1e-6)


def test_angles_by_hand():
    # cosines at 0, 1, 2: 0, 3/5, 4/5 against 1, -1, 1; Huber's loss is d^2 / 2 up to 1, then d - 1/2
    expected = (1 / 2 + (8 / 5 - 1 / 2) + (1 / 5) ** 2 / 2) / 3
    assert rkd_angle(TRIANGLE, FLAT).item() == pytest.approx(expected, abs=1e-5)


def test_relations_do_not_see_rotation_scale_or_offset():
    features, rotation = torch.randn(6, 4), torch.linalg.qr(torch.randn(4, 4))[0]
    moved = 3 * features @ rotation - 5
    assert rkd_distance(moved, features).item() == pytest.approx(0, abs=1e-6)
    assert rkd_angle(moved, features).item() == pytest.approx(0, abs=1e-6)


def angle_gradient(features, teacher):
    student = features.clone().requires_grad_()
    rkd_angle(student, teacher).backward()
    return student.grad


@pytest.mark.parametrize("edge", [0.0, 1e-12, 1e-6, 1e-4])
def test_images_with_almost_equal_features_have_an_angle_of_bounded_gradient(edge):
    torch.manual_seed(0)
    features, teacher = torch.randn(8, 16), torch.randn(8, 32)
    usual = angle_gradient(features, teacher).abs().max()
    features[:2] = 0
    features[0, 0] = edge
    assert angle_gradient(features, teacher).abs().max() < 2 * usual


def test_the_gradient_of_all_other_angles_is_the_papers():
    torch.manual_seed(0)
    features, teacher = torch.randn(6, 5), torch.randn(6, 7)
    features[1] = features[0] + torch.tensor([0.02, 0, 0, 0, 0])  # 0.6 % of the mean edge
    student, theirs = features.double().requires_grad_(), teacher.double()

    triplets = [each for each in itertools.product(range(6), repeat=3) if len(set(each)) == 3]
    i, j, k = torch.tensor(triplets).T

    def cosines(x):
        one, other = x[i] - x[j], x[k] - x[j]
        return (one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1))

    loss = nn.functional.smooth_l1_loss(cosines(student), cosines(theirs))
    (expected,) = torch.autograd.grad(loss, student)
    assert rkd_angle(features, teacher).item() == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(angle_gradient(features, teacher).double(), expected, rtol=1e-4, atol=1e-5)


def test_a_student_of_zeros_has_no_direction_to_turn():
    student = torch.tensor([[0.0, 0.0], [1.0, 0.0]], requires_grad=True)
    loss = feature_cosine(student, torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    loss.backward()
    assert loss.item() == 1
    assert student.grad.tolist() == [[0.0, 0.0], [0.0, -0.5]]


def test_equal_features_have_a_gradient_that_is_finite():
    student = torch.zeros(5, 3, requires_grad=True)
    outputs = Outputs(torch.zeros(5, 2), torch.randn(5, 7))
    RKD()(Outputs(torch.zeros(5, 2), student), torch.zeros(5, dtype=torch.long), outputs)["loss"].backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(
    "head",
    [
        LinearClassifier(torch.randn(6, 3), 10 * torch.randn(3), 4.0),
        ZeroShotHead(torch.randn(3, 6), 100.0, -16.0),
        Pool(),
    ],
)
def test_an_affine_head_is_read_off(head):
    weight, bias = affine_map(head, 6)
    features = 20 * torch.randn(9, 6)
    torch.testing.assert_close(features @ weight.T + bias, centered(head(features)), rtol=1e-4, atol=1e-2)


def test_a_head_that_is_not_affine_is_named():
    class Cosine(nn.Module):
        def forward(self, features):
            return nn.functional.normalize(features, dim=1)

    with pytest.raises(FedKDError, match=r"The teacher's Cosine is not linear in features.*A RidgeHead without"):
        affine_map(Cosine(), 4)


def test_the_frozen_classifier_is_the_teachers_on_its_own_features():
    features = 5 * torch.randn(30, 4) + 2
    head, moments = LinearClassifier(torch.randn(4, 3), torch.randn(3), 2.0), feature_moments(feature_sums(features))
    weight, bias = FrozenHead(distance="mse").classifier(head, moments)
    z = (features - moments.mean) / moments.scale  # a student that is right
    torch.testing.assert_close(z @ weight.T + bias, centered(head(features)), rtol=1e-3, atol=1e-3)

    weight, bias = FrozenHead(distance="cosine").classifier(head, moments)
    around = features - moments.mean
    length = around.square().sum(1).mean().sqrt()  # every answer gets the mean length
    directions = nn.functional.normalize(z, dim=1)
    torch.testing.assert_close(
        directions @ weight.T + bias, centered(head(moments.mean + length * directions)), rtol=1e-3, atol=1e-3
    )
    with pytest.raises(FedKDError, match=r"Unknown distance 'cosin'\. Did you mean 'cosine'"):
        FrozenHead(distance="cosin")
