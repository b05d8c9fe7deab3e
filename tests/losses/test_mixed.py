"""The loss of mixed images, against soft targets by hand and against single images."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F

from fedkd import losses
from fedkd.losses import DistillationLoss, Mixed, Outputs

B, K, D, WEIGHT = 6, 4, 5, 0.3
LOSSES = [
    name
    for name in losses.__all__
    if inspect.isclass(found := getattr(losses, name))
    and issubclass(found, DistillationLoss)
    and not inspect.isabstract(found)
    and found is not DistillationLoss
]


def outputs(seed: int) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    return Outputs(*(torch.randn(B, size, generator=generator, dtype=torch.float64).float() for size in (K, D)))


def pair(weight: float = WEIGHT) -> Mixed:
    """Return what images are to be learned as that are mixed each with the one before it."""
    teacher, targets = outputs(1), torch.arange(B) % K
    return Mixed(torch.tensor(weight), (targets, targets.roll(1, 0)), (teacher, teacher.before()))


def student() -> Outputs:
    return Outputs(*(each.requires_grad_() for each in outputs(2)))


def gradient(loss: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, at)[0]


def test_the_cross_entropy_is_that_of_soft_targets():
    ours, mixed = student(), pair()
    soft = WEIGHT * F.one_hot(mixed.targets[0], K) + (1 - WEIGHT) * F.one_hot(mixed.targets[1], K)
    alone = mixed._replace(teachers=(None, None))
    found = losses.KD().forward_mixed(ours, alone)
    torch.testing.assert_close(found["loss"], F.cross_entropy(ours.logits, soft.float()))
    assert found["loss"] == found["ce"]


@pytest.mark.parametrize("T", [1.0, 4.0])
def test_a_divergence_has_the_gradient_of_mixed_probabilities(T):
    ours, mixed = student(), pair()
    p, other = ((each.logits / T).softmax(1) for each in mixed.teachers)
    soft = WEIGHT * p + (1 - WEIGHT) * other
    found = losses.KD(ce_weight=0, kd_weight=1, temperature=T).forward_mixed(ours, mixed)["loss"]
    log_q = (ours.logits / T).log_softmax(1)
    by_hand = T**2 * F.kl_div(log_q, soft, reduction="batchmean")
    torch.testing.assert_close(gradient(found, ours.logits), gradient(by_hand, ours.logits))
    # what they differ by is the mixture's Jensen-Shannon divergence, which no student changes
    spread = WEIGHT * F.kl_div(soft.log(), p, reduction="batchmean")
    spread += (1 - WEIGHT) * F.kl_div(soft.log(), other, reduction="batchmean")
    log_q = (ours.logits / T).log_softmax(1)
    torch.testing.assert_close(found, T**2 * (F.kl_div(log_q, soft, reduction="batchmean") + spread))


def test_squared_differences_have_the_gradient_of_mixed_logits_and_features():
    ours, mixed = student(), pair()
    (logits, features), (other_logits, other_features) = mixed.teachers
    for loss, at, mean in (
        (losses.LogitMSE(0, 1), ours.logits, WEIGHT * logits + (1 - WEIGHT) * other_logits),
        (losses.FeatureMSE(0, 1), ours.features, WEIGHT * features + (1 - WEIGHT) * other_features),
    ):
        blended = Outputs(mean, mean) if at is ours.features else Outputs(mean)
        blended = blended._replace(logits=mixed.teachers[0].logits) if at is ours.features else blended
        by_hand = loss(ours, mixed.targets[0], blended)["loss"]
        torch.testing.assert_close(
            gradient(loss.forward_mixed(ours, mixed)["loss"], at), gradient(by_hand, at), rtol=1e-4, atol=1e-6
        )


def test_relations_are_those_of_mixed_features():
    ours, mixed = student(), pair()
    (logits, features), (_, other) = mixed.teachers
    teacher = Outputs(logits, WEIGHT * features + (1 - WEIGHT) * other)
    found, by_hand = losses.RKD(0).forward_mixed(ours, mixed), losses.RKD(0)(ours, mixed.targets[0], teacher)
    torch.testing.assert_close(found["loss"], by_hand["loss"])
    torch.testing.assert_close(losses.RKD(0).distill_mixed(ours, mixed)["loss"], by_hand["loss"])
    labels = losses.RKD(1, 0, 0).forward_mixed(ours, mixed)["loss"]
    torch.testing.assert_close(labels, losses.KD(1, 0).forward_mixed(ours, mixed)["loss"])


@pytest.mark.parametrize("name", LOSSES)
def test_a_whole_share_is_the_loss_of_single_images(name):
    loss, ours = getattr(losses, name)(), student()
    for weight, side in ((1.0, 0), (0.0, 1)):
        mixed = pair(weight)
        targets, teacher = mixed.targets[side], mixed.teachers[side]
        for found, single in (
            (loss.forward_mixed(ours, mixed), loss(ours, targets, teacher)),
            (loss.distill_mixed(ours, mixed), loss.distill(ours, teacher)),
        ):
            assert found.keys() == single.keys()
            for term, value in found.items():
                torch.testing.assert_close(value, single[term], rtol=1e-5, atol=1e-6)
                assert value.requires_grad == (term == "loss")


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "RKD"])
def test_every_loss_is_linear_in_the_shares(name):
    loss, ours, mixed = getattr(losses, name)(), student(), pair()
    first, second = (loss(ours, *each)["loss"] for each in zip(mixed.targets, mixed.teachers, strict=True))
    torch.testing.assert_close(loss.forward_mixed(ours, mixed)["loss"], WEIGHT * first + (1 - WEIGHT) * second)
    assert first != second


def test_a_label_loss_counts_both_labels():
    mixed, counts, ours = pair(), torch.tensor([5, 1, 2, 9]), student()
    label_loss = losses.BalancedSoftmax()

    def labels(logits, targets):
        return label_loss(logits, targets, counts)

    for loss in (losses.KD(), losses.RKD()):
        found = loss.forward_mixed(ours, mixed, labels=labels)["ce"]
        first, second = (labels(ours.logits, each) for each in mixed.targets)
        torch.testing.assert_close(found, (WEIGHT * first + (1 - WEIGHT) * second).detach())
