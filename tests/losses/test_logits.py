"""Losses on logits: by hand, by their identities, and against another package's numbers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fedkd.losses import (
    DIST,
    DKD,
    KD,
    CenteredDKD,
    CenteredKD,
    Outputs,
    StandardizedKD,
    centered_divergence,
    dist_distances,
    kd_divergence,
    logit_mse,
    not_true_divergence,
    rkd_angle,
    rkd_distance,
    standardize,
    target_divergence,
)


def logits(*rows):
    """Return logits whose softmax is the given rows of probabilities, shifted to show that it does not matter."""
    return torch.tensor(rows).log() + 5.0


def test_not_true_leaves_out_the_own_class():
    # own class 0; the others: teacher (1, 3) / 4, student (1, 1) / 2
    teacher, student = logits([0.6, 0.1, 0.3]), logits([0.2, 0.4, 0.4])
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert not_true_divergence(student, teacher, torch.tensor([0])).item() == pytest.approx(expected, abs=1e-6)
    changed = student + torch.tensor([[9.0, 0.0, 0.0]])  # what the student says of the own class is not looked at
    assert not_true_divergence(changed, teacher, torch.tensor([0])).item() == pytest.approx(expected, abs=1e-6)
    # own class 1: teacher (2, 1) / 3, student (1, 2) / 3
    expected = 2 / 3 * math.log(2) + 1 / 3 * math.log(0.5)
    assert not_true_divergence(student, teacher, torch.tensor([1])).item() == pytest.approx(expected, abs=1e-6)


def test_not_true_at_a_temperature_is_that_of_divided_logits():
    student, teacher, targets = torch.randn(4, 5), torch.randn(4, 5), torch.tensor([4, 0, 2, 2])
    torch.testing.assert_close(
        not_true_divergence(student, teacher, targets, 3.0), not_true_divergence(student / 3, teacher / 3, targets)
    )


def test_target_part_is_a_divergence_of_two():
    # own class 2: teacher 0.3 against 0.7, student 0.4 against 0.6
    teacher, student = logits([0.6, 0.1, 0.3]), logits([0.2, 0.4, 0.4])
    expected = 0.3 * math.log(0.3 / 0.4) + 0.7 * math.log(0.7 / 0.6)
    assert target_divergence(student, teacher, torch.tensor([2])).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_two_parts_make_up_kd(temperature):
    # DKD, equation 7: KL = TCKD + (1 - p) NCKD, image by image
    for _ in range(5):
        student, teacher, target = torch.randn(1, 6), torch.randn(1, 6), torch.randint(6, (1,))
        p = (teacher / temperature).softmax(1)[0, target]
        tckd = target_divergence(student, teacher, target, temperature)
        nckd = not_true_divergence(student, teacher, target, temperature)
        torch.testing.assert_close(tckd + (1 - p[0]) * nckd, kd_divergence(student, teacher, temperature))


def test_dkd_multiplies_by_the_squared_temperature():
    student, teacher, targets = torch.randn(3, 4), torch.randn(3, 4), torch.tensor([0, 1, 3])
    terms = DKD(ce_weight=0.1, temperature=3.0)(Outputs(student), targets, Outputs(teacher))
    torch.testing.assert_close(terms["tckd"], 9 * target_divergence(student, teacher, targets, 3.0))
    torch.testing.assert_close(terms["nckd"], 9 * not_true_divergence(student, teacher, targets, 3.0))


def test_dkd_survives_a_teacher_that_is_sure():
    student, teacher = torch.zeros(1, 3, requires_grad=True), torch.tensor([[200.0, 0.0, 0.0]])
    target_divergence(student, teacher, torch.tensor([0])).backward()
    torch.testing.assert_close(student.grad, torch.tensor([[-2 / 3, 1 / 3, 1 / 3]]))  # q - p of the two, shared out


def test_correlation_within_images_and_classes_by_hand():
    # probabilities (3/5, 1/5, 1/5) and (1/5, 1/5, 3/5); the student the same with its images exchanged
    teacher = logits([0.6, 0.2, 0.2], [0.2, 0.2, 0.6])
    student = teacher.flip(0)
    # within an image: (2, -1, -1) . (-1, -1, 2) / 6 = -1/2; within classes 0 and 2: -1, class 1 constant: 0
    inter, intra = dist_distances(student, teacher)
    assert inter.item() == pytest.approx(1.5, abs=1e-5)
    assert intra.item() == pytest.approx((2 + 1 + 2) / 3, abs=1e-5)


def test_correlation_does_not_see_a_linear_change():
    p = torch.rand(4, 5).softmax(1)
    student = (0.3 * p + 0.7 * torch.full_like(p, 0.2)).log()  # less sure, by a linear map
    inter, intra = dist_distances(student, p.log())
    assert inter.item() == pytest.approx(0, abs=1e-5)
    assert intra.item() == pytest.approx(0, abs=1e-5)
    terms = DIST(temperature=2.0)(Outputs(student), torch.zeros(4, dtype=torch.long), Outputs(torch.randn(4, 5)))
    assert terms["inter"] > 0.04


def test_logit_mse_by_hand():
    # centered: (1, -1, 0) against (0, 2, -2): (1 + 9 + 4) / 3
    student, teacher = torch.tensor([[8.0, 6.0, 7.0]]), torch.tensor([[-5.0, -3.0, -7.0]])
    assert logit_mse(student, teacher).item() == pytest.approx(14 / 3, abs=1e-5)
    assert logit_mse(student, teacher - 16.0).item() == pytest.approx(14 / 3, abs=1e-5)


def test_logit_mse_is_twice_the_limit_of_kd():
    student, teacher, temperature = torch.randn(4, 6).double(), torch.randn(4, 6).double(), 300.0
    limit = temperature**2 * kd_divergence(student.float(), teacher.float(), temperature)
    assert logit_mse(student, teacher).item() == pytest.approx(2 * limit.item(), rel=0.02)


def test_standardizing_by_hand():
    # (1, 2, 3): mean 2, sigma sqrt(2/3)
    side = math.sqrt(1.5)
    torch.testing.assert_close(standardize(torch.tensor([[1.0, 2.0, 3.0]])), torch.tensor([[-side, 0.0, side]]))
    torch.testing.assert_close(standardize(torch.ones(1, 3)), torch.zeros(1, 3))


def test_standardized_distillation_does_not_see_scale_or_offset():
    student, targets, teacher = torch.randn(4, 5), torch.tensor([0, 1, 2, 3]), torch.randn(4, 5)
    loss = StandardizedKD(ce_weight=0.0, kd_weight=1.0, temperature=2.0)
    first = loss(Outputs(student), targets, Outputs(teacher))["loss"]
    torch.testing.assert_close(loss(Outputs(0.1 * student - 3), targets, Outputs(50 * teacher + 7))["loss"], first)
    z = [standardize(x) for x in (student, teacher)]
    torch.testing.assert_close(first, 4 * kd_divergence(*z, 2.0))


def given(rows, columns, step):
    """Return a matrix that any program can make again: sines."""
    return 3 * torch.sin(step * torch.arange(rows * columns, dtype=torch.float64)).reshape(rows, columns).float()


TORCHDISTILL = {
    "kd": 3.2091088,
    "dist": 5.2212687,
    "standardized": 0.17607024,
    "distance": 0.21976648,
    "angle": 0.23776940,
}
"""What torchdistill 1.1.5 gives for `given` matrices: KDLoss, DISTLoss, LogitStdKDLoss and both parts of RKDLoss."""


def test_the_numbers_of_torchdistill():
    student, teacher = given(4, 5, 1.3), given(4, 5, 2.1)
    targets = torch.zeros(4, dtype=torch.long)
    kd = KD(ce_weight=0.25, kd_weight=0.75, temperature=3.0)(Outputs(student), targets, Outputs(teacher))
    assert kd["loss"].item() == pytest.approx(TORCHDISTILL["kd"], rel=1e-5)
    dist = DIST(ce_weight=0.0, inter_weight=2.0, intra_weight=0.5, temperature=1.5)
    found = dist(Outputs(student), targets, Outputs(teacher))["loss"].item()
    assert found == pytest.approx(TORCHDISTILL["dist"], rel=1e-5)
    # its sigma divides by K - 1: at K = 5 that is our temperature times sqrt(5/4)
    standard = kd_divergence(standardize(student), standardize(teacher), 2.0 * math.sqrt(5 / 4)).item()
    assert standard == pytest.approx(TORCHDISTILL["standardized"], rel=1e-4)
    # its means are over all pairs and triplets, those of an image with itself included
    assert rkd_distance(student, teacher).item() * (4 * 3) / 4**2 == pytest.approx(TORCHDISTILL["distance"], rel=1e-4)
    assert rkd_angle(student, teacher).item() * (4 * 3 * 2) / 4**3 == pytest.approx(TORCHDISTILL["angle"], rel=1e-4)


def test_cross_entropy_is_torchs():
    student, targets = torch.randn(3, 4), torch.tensor([1, 0, 3])
    terms = DIST()(Outputs(student), targets, Outputs(torch.randn(3, 4)))
    torch.testing.assert_close(terms["ce"], F.cross_entropy(student, targets))


def test_centered_divergence_of_two_images_by_hand():
    # teacher rows 0 and 2 log 3 in the first class: centered -log 3 and log 3; a student of equal rows is centered to 0
    teacher = torch.tensor([[0.0, 0.0], [2 * math.log(3), 0.0]])
    student = torch.tensor([[4.0, -1.0], [4.0, -1.0]])
    # both teacher rows then are (1/4, 3/4) in some order, the student's (1/2, 1/2)
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert centered_divergence(student, teacher).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_centered_divergence_does_not_see_what_all_images_share_and_gives_a_bias_no_gradient(temperature):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 5, generator=generator) for _ in range(2))
    plain = centered_divergence(student, teacher, temperature)
    shifted = centered_divergence(student + torch.arange(5.0), teacher - 3 * torch.arange(5.0), temperature)
    torch.testing.assert_close(shifted, plain)
    bias = torch.zeros(5, requires_grad=True)
    features = student.clone().requires_grad_()
    centered_divergence(features + bias, teacher, temperature).backward()
    assert bias.grad.abs().max() < 1e-7
    assert features.grad.sum(0).abs().max() < 1e-7
    q, p = ((x - x.mean(0)).div(temperature).softmax(1) for x in (student, teacher))
    by_hand = ((q - p) - (q - p).mean(0)) / (6 * temperature)
    torch.testing.assert_close(features.grad, by_hand)


@pytest.mark.parametrize("kind", [CenteredKD, CenteredDKD])
def test_a_batch_of_one_image_teaches_nothing_when_centered(kind):
    student = torch.randn(1, 5, requires_grad=True)
    loss = kind()(Outputs(student), torch.tensor([2]), Outputs(torch.randn(1, 5)))["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.grad.abs().max() < 1e-6
    assert kind.min_batch_size == 2


@pytest.mark.parametrize(
    ("centered", "plain", "weights"),
    [(CenteredKD, KD, {"kd_weight": 2.0}), (CenteredDKD, DKD, {"tckd_weight": 0.7, "nckd_weight": 3.0})],
)
def test_a_centered_loss_is_the_plain_one_of_logits_that_are_centered_already(centered, plain, weights):
    student, teacher = (x - x.mean(0) for x in (torch.randn(7, 4), torch.randn(7, 4)))
    targets = torch.randint(4, (7,))
    settings = {"ce_weight": 0.3, "temperature": 1.7, **weights}
    found = centered(**settings)(Outputs(student), targets, Outputs(teacher))
    for name, value in plain(**settings)(Outputs(student), targets, Outputs(teacher)).items():
        torch.testing.assert_close(found[name], value)


def test_centered_dkd_does_not_see_which_class_a_client_has_and_gives_a_bias_no_gradient():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 5, generator=generator) for _ in range(2))
    targets, loss = torch.full((6,), 3), CenteredDKD()
    own_class = 8.0 * F.one_hot(torch.tensor(3), 5)  # the teacher is sure of the client's class, in every image alike
    plain = loss(Outputs(student), targets, Outputs(teacher))["loss"]
    torch.testing.assert_close(loss(Outputs(student), targets, Outputs(teacher + own_class))["loss"], plain)
    bias = torch.zeros(5, requires_grad=True)
    loss(Outputs(student + bias), targets, Outputs(teacher))["loss"].backward()
    assert bias.grad.abs().max() < 1e-6
    student.requires_grad_()
    loss(Outputs(student), targets, Outputs(teacher))["loss"].backward()
    assert student.grad.abs().max() > 0.01


@pytest.mark.parametrize("kind", [DIST, StandardizedKD])
def test_a_student_whose_logits_are_constant_learns_with_bounded_gradients(kind):
    """A new last layer may be 0, and then every logit is."""
    generator = torch.Generator().manual_seed(0)
    inputs, weight = torch.randn(200, 8, generator=generator), torch.randn(8, 5, generator=generator)
    teacher, targets = Outputs(3 * inputs @ weight), torch.zeros(200, dtype=torch.int64)
    layer = torch.nn.Linear(8, 5)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer, loss = torch.optim.SGD(layer.parameters(), lr=0.1), kind(ce_weight=0.0)
    largest = 0.0
    for _ in range(200):
        optimizer.zero_grad()
        loss(Outputs(layer(inputs)), targets, teacher)["loss"].backward()
        largest = max(largest, float(layer.weight.grad.norm()))
        optimizer.step()
    assert 0 < largest < 100
    assert (layer(inputs).argmax(1) == teacher.logits.argmax(1)).float().mean() > 0.8


def test_the_floors_change_nothing_for_a_student_whose_logits_differ():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(20, 6, generator=generator) for _ in range(2))
    assert torch.equal(standardize(student, 0.01), standardize(student))
    p, q = student.softmax(1), teacher.softmax(1)
    by_torch = 1 - torch.corrcoef(torch.stack([p[0], q[0]]))[0, 1]
    torch.testing.assert_close(dist_distances(student[:1], teacher[:1])[0], by_torch)


def test_a_constant_teacher_has_no_correlation_and_gives_no_gradient():
    student = torch.randn(4, 5, requires_grad=True)
    inter, intra = dist_distances(student, torch.zeros(4, 5))
    assert inter.item() == intra.item() == 1
    (inter + intra).backward()
    assert student.grad.abs().max() == 0
