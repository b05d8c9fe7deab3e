"""Prototype, linear and combined heads: by hand, against one place, and by what they promise."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from protocols import fit_head, prepare
from torch import Tensor, nn

from fedkd.core.errors import FedKDError
from fedkd.data import ImageSet
from fedkd.partition import IID, ClassSpecific, Dirichlet, Partitioner
from fedkd.teachers import GaussianPrivacy, LinearHead, PrototypeHead, RidgeHead, ZeroShotHead, ZeroShotRidge
from fedkd.teachers.heads.calibration import scale_grid
from fedkd.teachers.heads.head import FederatedHead
from fedkd.teachers.heads.ridge_solution import solve_ridge
from fedkd.teachers.heads.ridge_statistics import RidgeStatistics
from fedkd.teachers.teacher import Teacher

N, D, K = 160, 6, 4
EVERYTHING = [np.arange(N)]


def problem(seed: int = 0, shift: float = 1.0) -> tuple[np.ndarray, Tensor]:
    rng = np.random.default_rng(seed)
    targets = rng.permutation(np.arange(N) % K)
    features = rng.normal(size=(K, D))[targets] + 0.8 * rng.normal(size=(N, D)) + shift
    return features.astype(np.float32), torch.from_numpy(targets)


# -- prototypes ----------------------------------------------------------------------------------------------------


def test_prototypes_by_hand() -> None:
    # class 0: (2, 0), (0, 2); class 1: (3, 4) twice
    features = np.array([[2, 0], [0, 2], [3, 4], [3, 4]], np.float32)
    targets = torch.tensor([0, 0, 1, 1])
    shards = [np.array([0, 2]), np.array([1, 3])]
    x = torch.tensor([[1.0, 0.0], [6.0, 8.0]])

    cosine = fit_head(PrototypeHead(), features, targets, shards, 2)
    scale = cosine.chosen["scale"]
    # unit vectors (1, 0), (0, 1): their mean is along (1, 1) / sqrt 2; class 1 is (0.6, 0.8)
    expected = torch.tensor([[0.5**0.5, 0.6], [1.4 * 0.5**0.5, 1.0]])
    torch.testing.assert_close(cosine.module(x), scale * expected)

    euclidean = fit_head(PrototypeHead("euclidean"), features, targets, shards, 2)
    # means (1, 1) and (3, 4); within-class squared distances 2, 2, 0, 0 have the mean 1
    distances = torch.tensor([[1.0, 20.0], [25 + 49.0, 9 + 16.0]])
    logits = euclidean.module(x) / euclidean.chosen["scale"]
    torch.testing.assert_close(logits - logits[:, :1], distances[:, :1] - distances)

    assert cosine.bytes_up == 2 * 8 * (3 * 2 + 49)  # per class sum x and the count; the loss at 49 scales
    assert euclidean.bytes_up == 2 * 8 * (4 * 2 + 49)  # and sum |x|^2
    assert cosine.bytes_down == cosine.bytes_up


PARTITIONS: list[tuple[Partitioner, int]] = [(IID(), 7), (Dirichlet(0.02), 12), (ClassSpecific(1), K)]


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize(("partitioner", "clients"), PARTITIONS)
def test_prototypes_are_the_same_for_every_partition(distance: str, partitioner: Partitioner, clients: int) -> None:
    features, targets = problem()
    shards = partitioner(targets.numpy(), clients, np.random.default_rng(1))
    head = PrototypeHead(distance)  # type: ignore[arg-type]
    one, other = (fit_head(head, features, targets, each, K) for each in (EVERYTHING, shards))
    assert one.chosen == other.chosen
    x = torch.from_numpy(features)
    torch.testing.assert_close(one.module(x), other.module(x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_leave_one_out_is_a_fit_without_the_image(distance: str) -> None:
    features, targets = problem()
    head = PrototypeHead(distance)  # type: ignore[arg-type]
    x = torch.from_numpy(features).double()
    x = F.normalize(x, dim=1) if distance == "cosine" else x
    total = head.sums(x, targets, K)
    quick, _ = head.leave_one_out(total, x, targets)
    for i in (0, 50, N - 1):
        rest = np.delete(np.arange(N), i)
        weight, bias = head.classifier(head.sums(x[rest], targets[rest], K))
        slow = x[i] @ weight + bias
        if distance == "euclidean":  # r^2 is a unit only, and not computed anew
            slow = slow * head._radius(head.sums(x[rest], targets[rest], K)) / head._radius(total)
        torch.testing.assert_close(quick[i], slow)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_prototype_scale_is_the_grids_best_on_unseen_images(distance: str) -> None:
    features, targets = problem()
    head = PrototypeHead(distance)  # type: ignore[arg-type]
    fitted = fit_head(head, features, targets, [np.arange(0, 70), np.arange(70, N)], K)
    x = torch.from_numpy(features).double()
    x = F.normalize(x, dim=1) if distance == "cosine" else x
    logits, _ = head.leave_one_out(head.sums(x, targets, K), x, targets)
    losses = [float(F.cross_entropy(scale * logits, targets)) for scale in scale_grid(12)]
    best = int(np.argmin(losses))
    assert fitted.chosen["scale"] == float(scale_grid(12)[best])
    assert best > 0


def test_euclidean_prototypes_do_not_depend_on_the_features_scale_and_offset() -> None:
    features, targets = problem()
    one = fit_head(PrototypeHead("euclidean"), features, targets, EVERYTHING, K)
    other = fit_head(PrototypeHead("euclidean"), features * 50 + 7, targets, EVERYTHING, K)
    assert one.chosen == other.chosen
    x = torch.from_numpy(features)
    torch.testing.assert_close(
        one.module(x).log_softmax(1), other.module(x * 50 + 7).log_softmax(1), rtol=1e-3, atol=1e-2
    )


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_a_class_that_nobody_has_is_the_least_likely(distance: str) -> None:
    features, targets = problem(shift=20.0)
    fitted = fit_head(PrototypeHead(distance), features, targets, EVERYTHING, K + 1)  # type: ignore[arg-type]
    logits = fitted.module(torch.from_numpy(features))
    assert logits.isfinite().all()
    assert not (logits.argmax(1) == K).any()
    assert (logits[:, K] < logits.gather(1, targets[:, None])[:, 0]).all()


@pytest.mark.parametrize("head", [PrototypeHead(), PrototypeHead("euclidean"), LinearHead(rounds=2), RidgeHead()])
@pytest.mark.parametrize("count", [1, 2])
def test_few_images_and_constant_features_give_finite_logits(head: FederatedHead, count: int) -> None:
    features = np.ones((count, D), np.float32)
    module = fit_head(head, features, torch.arange(count), [np.arange(count)], K).module
    assert module(torch.from_numpy(features)).isfinite().all()
    assert not list(module.parameters())  # frozen
    assert fit_head(head, features, torch.arange(count), [np.arange(count)], K).sends


# -- linear --------------------------------------------------------------------------------------------------------


def test_one_full_step_on_every_client_is_one_step_on_all_data() -> None:
    features, targets = problem()
    head = LinearHead(rounds=1, lr=0.3, batch_size=N, weight_decay=0.1)
    federated = fit_head(head, features, targets, [np.arange(0, 30), np.empty(0, np.int64), np.arange(30, N)], K)
    x = torch.from_numpy(features).double()
    z = ((x - x.mean(0)) / x.std(0, unbiased=False)).requires_grad_(False)
    weight, bias = torch.zeros(D, K, dtype=torch.float64, requires_grad=True), torch.zeros(K, dtype=torch.float64)
    bias.requires_grad_()
    F.cross_entropy(z @ weight + bias, targets).backward()
    assert weight.grad is not None
    assert bias.grad is not None
    expected = z @ (-0.3 * weight.grad) - 0.3 * bias.grad
    torch.testing.assert_close(federated.module(x.float()), expected.float(), rtol=1e-4, atol=1e-5)


def test_weight_decay_pulls_weights_and_not_biases() -> None:
    features, targets = problem()
    weak, strong = (fit_head(LinearHead(weight_decay=w), features, targets, EVERYTHING, K).module for w in (0.0, 0.5))
    assert strong.weight.norm() < 0.6 * weak.weight.norm()
    one_class = torch.zeros_like(targets)  # nothing but the bias can learn
    weak, strong = (fit_head(LinearHead(weight_decay=w), features, one_class, EVERYTHING, K).module for w in (0.0, 0.5))
    assert float(weak.bias[0]) > 2
    torch.testing.assert_close(strong.bias, weak.bias, rtol=0, atol=0.01)


def test_linear_head_learns_and_follows_its_seed_alone() -> None:
    features, targets = problem()
    shards = IID()(targets.numpy(), 4, np.random.default_rng(0))
    x = torch.from_numpy(features)
    fits = [fit_head(LinearHead(seed=seed), features, targets, shards, K) for seed in (0, 0, 1)]
    logits = [fit.module(x) for fit in fits]
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])
    long = fit_head(LinearHead(rounds=100), features, targets, shards, K).module(x)
    losses = [float(F.cross_entropy(each, targets)) for each in (logits[0], long)]
    assert losses[1] < losses[0] < 0.5 * np.log(K)
    assert losses[1] < 0.3
    scaled = fit_head(LinearHead(), features * 1000, targets, shards, K).module(x * 1000)
    torch.testing.assert_close(scaled, logits[0], rtol=1e-3, atol=1e-3)
    parameters = (D + 1) * K
    assert fits[0].bytes_up == 4 * (8 * (2 * D + 1) + 20 * 4 * parameters)
    assert fits[0].bytes_down == 4 * (8 * 2 * D + 20 * 4 * parameters)  # mean and std once, and the classifiers


def test_clients_that_pull_apart_are_what_a_closed_form_spares() -> None:
    features, targets = problem()
    shards = ClassSpecific(1)(targets.numpy(), K, np.random.default_rng(0))
    skewed, whole = (
        fit_head(LinearHead(5, local_epochs=20), features, targets, each, K) for each in (shards, EVERYTHING)
    )
    x = torch.from_numpy(features)
    losses = [float(F.cross_entropy(fit.module(x), targets)) for fit in (skewed, whole)]
    assert losses[0] > losses[1] + 0.05


# -- zero-shot and ridge -------------------------------------------------------------------------------------------


def words(quality: float) -> ZeroShotHead:
    """Return a zero-shot head whose text embeddings are more or less the class centers of `problem`."""
    rng = np.random.default_rng(0)
    rng.permutation(np.arange(N) % K)
    centers = torch.from_numpy(rng.normal(size=(K, D)))
    noise = torch.randn(K, D, generator=torch.Generator().manual_seed(1))
    return ZeroShotHead(F.normalize(quality * centers + (1 - quality) * noise, dim=1), 3.0)


def test_combination_is_the_best_of_its_grid_and_no_worse_than_either() -> None:
    features, targets = problem(shift=0.0)
    few = [np.arange(0, 12), np.arange(12, 24)]
    zero_shot = words(0.8)
    fitted = fit_head(ZeroShotRidge(0.1).starting_from(zero_shot), features, targets, few, K)
    rows = np.arange(24)
    x, y = torch.from_numpy(features[rows]), targets[rows]
    solution = solve_ridge(RidgeStatistics.from_features(x, y, K), 0.1)
    ridge, given = solution.leave_one_out(x, y), zero_shot(x).double()
    best = min(
        (float(F.cross_entropy(a * given + s * ridge, y)), a, s)
        for a in (0.0, 0.25, 0.5, 1.0)
        for s in [0.0, *scale_grid().tolist()]
    )
    assert (fitted.chosen["zero_shot_weight"], fitted.chosen["scale"]) == best[1:]
    assert best[1] > 0
    assert best[2] > 0  # both are of use here
    expected = best[1] * given + best[2] * solution.predict(x)
    torch.testing.assert_close(fitted.module(x).double(), expected, rtol=1e-4, atol=1e-4)

    unseen = np.arange(24, N)
    loss = {
        name: float(F.cross_entropy(module(torch.from_numpy(features[unseen])), targets[unseen]))
        for name, module in {
            "both": fitted.module,
            "words": zero_shot,
            "ridge": fit_head(RidgeHead(0.1), features, targets, few, K).module,
        }.items()
    }
    assert loss["both"] < min(loss["words"], loss["ridge"]) + 0.05
    assert loss["both"] < max(loss["words"], loss["ridge"]) + 0.05
    sums = (D + 1) * (D + 2) // 2 + (D + 1) * K
    assert fitted.bytes_up == 2 * 8 * (sums + 4 * 34)
    solution_numbers = D * K + K + D + D * (D + 1) // 2 + 1  # weight, bias, mean, precision and count
    text_head = 4 * (D * K + 2)  # text embeddings, scale and bias
    assert fitted.bytes_down == 2 * (8 * solution_numbers + 16 * 4 * 34 + text_head)


def test_combination_ignores_useless_words_and_keeps_good_ones() -> None:
    features, targets = problem(shift=0.0)
    useless = fit_head(ZeroShotRidge().starting_from(words(0.0)), features, targets, EVERYTHING, K)
    assert useless.chosen["zero_shot_weight"] <= 0.25
    private = ZeroShotRidge(privacy=GaussianPrivacy(1e-3)).starting_from(words(1.0))
    fitted = fit_head(private, features, targets, EVERYTHING, K)
    assert (fitted.chosen["zero_shot_weight"], fitted.chosen["scale"]) == (1.0, 0.0)  # labels are drowned in noise
    x = torch.from_numpy(features)
    torch.testing.assert_close(fitted.module(x), words(1.0)(x))


def test_methods_are_values() -> None:
    for method in (RidgeHead(privacy=GaussianPrivacy(1.0)), PrototypeHead(), LinearHead(), ZeroShotRidge()):
        assert copy.deepcopy(method) == method
        assert pickle.loads(pickle.dumps(method)) == method
        assert method.starting_from(nn.Identity()) == method  # what they start from is no setting
    assert "epsilon=1.0" in repr(RidgeHead(privacy=GaussianPrivacy(1.0)))


def test_zero_shot_teacher_with_a_fitted_head(tiny: Callable[[str], str], images: ImageSet, tmp_path: object) -> None:
    from fedkd.teachers import ZeroShotTeacher

    shards = [np.arange(0, 25), np.arange(25, 40)]

    def ask(head: FederatedHead | None) -> tuple[Teacher, float, int]:
        teacher = ZeroShotTeacher(tiny("clip"), templates=["a photo of the {}."], head=head)
        outputs = [prepare(teacher, images, images, shards, cache=str(tmp_path)) for _ in range(2)]
        assert torch.equal(outputs[0].logits, outputs[1].logits)  # fitted anew, to the same
        return teacher, outputs[0].accuracy, outputs[0].head_bytes

    plain, combined, ridge = ask(None), ask(ZeroShotRidge()), ask(RidgeHead())
    assert plain[0].fingerprint() == combined[0].fingerprint() == ridge[0].fingerprint()  # one cache serves all
    assert isinstance(plain[0].head, ZeroShotHead)
    assert (plain[2], combined[2] > ridge[2] > 0) == (0, True)
    assert combined[1] > plain[1]  # random weights know no words


def test_errors() -> None:
    features, targets = problem()
    with pytest.raises(FedKDError, match=r"Unknown distance 'cosin'. Did you mean 'cosine'\?"):
        PrototypeHead("cosin")  # type: ignore[arg-type]
    with pytest.raises(FedKDError, match="lr must be > 0, got 0"):
        LinearHead(lr=0)
    with pytest.raises(FedKDError, match="ZeroShotRidge needs a teacher with a text tower"):
        fit_head(ZeroShotRidge(), features, targets, EVERYTHING, K)
    for head in (PrototypeHead(), LinearHead(), RidgeHead()):
        with pytest.raises(FedKDError, match="no client has an image"):
            fit_head(head, features, targets, [np.empty(0, np.int64)], K)
