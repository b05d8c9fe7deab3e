"""The federated ridge head is the centralized one, whatever the partition, and its bytes are counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from protocols import fit_head
from torch import Tensor

from fedkd.core.errors import FedKDError
from fedkd.partition import IID, ClassSpecific, Dirichlet, Partitioner
from fedkd.teachers import GaussianPrivacy, RidgeHead, RidgeStatistics
from fedkd.teachers.heads.calibration import scale_grid
from fedkd.teachers.heads.modules import LinearClassifier
from fedkd.teachers.heads.ridge_solution import REGULARIZATIONS, RidgeProblem, solve_ridge
from fedkd.teachers.heads.ridge_statistics import is_held_out

N, D, K = 120, 7, 4


def problem(seed: int = 0) -> tuple[np.ndarray, Tensor]:
    rng = np.random.default_rng(seed)
    targets = rng.permutation(np.arange(N) % K)
    centers = rng.normal(size=(K, D))
    features = centers[targets] + rng.normal(size=(N, D)) + 3.0  # far from zero: the bias matters
    return features.astype(np.float32), torch.from_numpy(targets)


def centralized(features: np.ndarray, targets: Tensor, regularization: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Solve on all data at once: the penalized normal equations, bias included but not penalized."""
    x = np.concatenate([features.astype(np.float64), np.ones((len(features), 1))], axis=1)
    y = np.eye(K)[targets.numpy()]
    penalty = regularization * features.astype(np.float64).var(axis=0).sum() * len(features) / D
    solved = np.linalg.solve(x.T @ x + penalty * np.diag([1.0] * D + [0.0]), x.T @ y)
    return solved[:-1], solved[-1], penalty


PARTITIONS: dict[str, tuple[Partitioner, int]] = {
    "one client": (IID(), 1),
    "iid": (IID(), 8),
    "dirichlet": (Dirichlet(0.01), 20),
    "one class a client": (ClassSpecific(1), K),
}


@pytest.mark.parametrize("name", list(PARTITIONS))
def test_equals_the_centralized_solution_for_every_partition(name: str) -> None:
    features, targets = problem()
    partitioner, clients = PARTITIONS[name]
    shards = partitioner(targets.numpy(), clients, np.random.default_rng(1))
    if name == "dirichlet":
        assert any(len(shard) == 0 for shard in shards), "this partition was meant to have empty clients"
    weight, bias, _ = centralized(features, targets, 0.05)
    total = sum(
        (RidgeStatistics.from_features(torch.from_numpy(features[s]), targets[s], K) for s in shards[1:]),
        RidgeStatistics.from_features(torch.from_numpy(features[shards[0]]), targets[shards[0]], K),
    )
    solution = solve_ridge(total, 0.05)
    np.testing.assert_allclose(solution.weight, weight, atol=1e-12)
    np.testing.assert_allclose(solution.bias, bias, atol=1e-12)

    head = fit_head(RidgeHead(0.05), features, targets, shards, K).module
    whole = fit_head(RidgeHead(0.05), features, targets, [np.arange(N)], K).module
    assert isinstance(head, LinearClassifier)
    assert isinstance(whole, LinearClassifier)
    np.testing.assert_allclose(head.weight, weight, rtol=1e-6, atol=1e-7)  # float32
    torch.testing.assert_close(head.weight, whole.weight, rtol=0, atol=1e-7)
    assert head.scale == whole.scale


def test_equals_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, targets = problem()
    _, _, penalty = centralized(features, targets, 0.3)
    reference = linear_model.Ridge(alpha=penalty).fit(features.astype(np.float64), np.eye(K)[targets.numpy()])
    statistics = RidgeStatistics.from_features(torch.from_numpy(features), targets, K)
    solution = solve_ridge(statistics, 0.3)
    np.testing.assert_allclose(solution.weight.T, reference.coef_, atol=1e-10)
    np.testing.assert_allclose(solution.bias, reference.intercept_, atol=1e-10)


def test_regularization_means_the_same_at_every_scale_and_offset() -> None:
    features, targets = problem()
    one = fit_head(RidgeHead(0.1), features, targets, [np.arange(N)], K).module
    other = fit_head(RidgeHead(0.1), features * 100 - 50, targets, [np.arange(N)], K).module
    x = torch.from_numpy(features)
    torch.testing.assert_close(one(x), other(x * 100 - 50), rtol=1e-4, atol=1e-3)


def test_statistics_by_hand() -> None:
    # Two images, (1, 2) of class 1 and (3, 4) of class 0, with a one appended to each.
    statistics = RidgeStatistics.from_features(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 0]), 2)
    assert statistics.second_moments.tolist() == [10, 14, 4, 20, 6, 2]
    assert statistics.cross_moments.tolist() == [[3, 1], [4, 2], [1, 1]]
    assert statistics.count == 2
    assert statistics.class_counts.tolist() == [1, 1]


def test_bytes_are_counted_by_hand() -> None:
    features, targets = problem()
    shards = [np.arange(0, 50), np.empty(0, np.int64), np.arange(50, N)]
    fitted, given = (fit_head(RidgeHead(choice), features, targets, shards, K) for choice in ("auto", 0.1))
    clients = 2  # the empty one sends nothing and is sent nothing
    sums = (D + 1) * (D + 2) // 2 + (D + 1) * K
    assert fitted.bytes_up == clients * 8 * (2 * sums + 33)
    assert given.bytes_up == clients * 8 * (sums + 33)
    solution = D * K + K + D + D * (D + 1) // 2 + 1  # weights, bias, mean, precision, n
    assert fitted.bytes_down == given.bytes_down == clients * 8 * (solution + 33)


def noisy_problem() -> tuple[np.ndarray, Tensor]:
    """Return features of which most are noise, so that little regularization fits the noise."""
    rng = np.random.default_rng(3)
    targets = rng.permutation(np.arange(300) % K)
    features = rng.normal(size=(300, 60))
    features[:, :K] += 2 * np.eye(K)[targets]
    return features.astype(np.float32), torch.from_numpy(targets)


def test_regularization_is_chosen_by_squared_error_on_held_out_images() -> None:
    features, targets = noisy_problem()
    held_out = is_held_out(np.arange(300))
    fit, other = (
        RidgeStatistics.from_features(torch.from_numpy(features[rows]), targets[rows], K)
        for rows in (~held_out, held_out)
    )
    errors = []
    for regularization in REGULARIZATIONS:  # image by image, which the server cannot do
        predicted = solve_ridge(fit, regularization).predict(torch.from_numpy(features[held_out]))
        errors.append(float((predicted - F.one_hot(targets[held_out], K)).square().sum()))
    from_sums = RidgeProblem.from_statistics(fit).errors(REGULARIZATIONS, other)
    np.testing.assert_allclose(from_sums, errors, rtol=1e-9)

    best = int(np.argmin(errors))
    assert 0 < best < len(errors) - 1  # inside the grid
    fitted = fit_head(RidgeHead(), features, targets, [np.arange(300)], K)
    assert fitted.chosen["regularization"] == REGULARIZATIONS[best]
    given = fit_head(RidgeHead(REGULARIZATIONS[best]), features, targets, [np.arange(300)], K)
    torch.testing.assert_close(fitted.module.weight, given.module.weight, rtol=0, atol=1e-6)  # solved on all images


@pytest.mark.parametrize("name", list(PARTITIONS))
def test_chosen_regularization_is_the_same_for_every_partition(name: str) -> None:
    features, targets = noisy_problem()
    partitioner, clients = PARTITIONS[name]
    shards = partitioner(targets.numpy(), clients, np.random.default_rng(1))
    fitted = fit_head(RidgeHead(), features, targets, shards, K)
    whole = fit_head(RidgeHead(), features, targets, [np.arange(300)], K)
    assert fitted.chosen == whole.chosen
    torch.testing.assert_close(fitted.module.weight, whole.module.weight, rtol=0, atol=1e-6)


def test_a_fifth_is_held_out_whatever_the_place_in_the_shard() -> None:
    whole = is_held_out(np.arange(100_000))
    assert abs(whole.mean() - 0.2) < 0.005  # 4 standard deviations
    shard = np.array([99_999, 5, 70_000, 12])
    assert is_held_out(shard).tolist() == whole[shard].tolist()
    assert is_held_out(np.empty(0, np.int64)).tolist() == []
    # the published first numbers of SplitMix64 with seed 0
    first = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC, 0x1B39896A51A8749B]
    assert whole[:5].tolist() == [number % 5 == 0 for number in first]


def test_leave_one_out_is_what_refitting_without_the_image_gives() -> None:
    features, targets = problem()
    statistics = RidgeStatistics.from_features(torch.from_numpy(features), targets, K)
    solution = solve_ridge(statistics, 0.1)
    _, _, penalty = centralized(features, targets, 0.1)
    quick = solution.leave_one_out(torch.from_numpy(features), targets)
    for i in (0, 17, N - 1):
        rest = np.delete(np.arange(N), i)
        x = np.concatenate([features[rest].astype(np.float64), np.ones((N - 1, 1))], axis=1)
        y = np.eye(K)[targets[rest].numpy()]
        solved = np.linalg.solve(x.T @ x + penalty * np.diag([1.0] * D + [0.0]), x.T @ y)
        np.testing.assert_allclose(quick[i], features[i] @ solved[:-1] + solved[-1], atol=1e-9)


def test_scale_is_the_grids_best_on_unseen_images() -> None:
    features, targets = problem()
    head = fit_head(RidgeHead(0.1), features, targets, [np.arange(0, 60), np.arange(60, N)], K).module
    statistics = RidgeStatistics.from_features(torch.from_numpy(features), targets, K)
    unseen = solve_ridge(statistics, 0.1).leave_one_out(torch.from_numpy(features), targets)
    losses = torch.stack([F.cross_entropy(scale * unseen, targets) for scale in scale_grid()])
    assert 0 < int(losses.argmin()) < len(losses) - 1  # inside the grid
    assert float(head.scale) == pytest.approx(float(scale_grid()[losses.argmin()]))
    assert losses.min() < 0.9 * losses[0]  # unscaled logits are too flat


def test_head_is_frozen_and_linear() -> None:
    features, targets = problem()
    head = fit_head(RidgeHead(), features, targets, [np.arange(N)], K).module
    assert list(head.parameters()) == []
    assert isinstance(head, LinearClassifier)
    x = torch.randn(3, D)
    torch.testing.assert_close(head(x), head.scale * (x @ head.weight + head.bias))


@pytest.mark.parametrize("count", [1, 2])
def test_few_images_and_constant_features_give_finite_logits(count: int) -> None:
    features, targets = np.ones((count, D), np.float32), torch.arange(count)
    head = fit_head(RidgeHead(), features, targets, [np.arange(count)], K).module
    assert head(torch.from_numpy(features)).isfinite().all()


def test_errors() -> None:
    features, targets = problem()
    with pytest.raises(FedKDError, match="no client has an image"):
        fit_head(RidgeHead(), features, targets, [np.empty(0, np.int64)], K)
    with pytest.raises(FedKDError, match=r"regularization must be > 0, got 0"):
        RidgeHead(0)
    with pytest.raises(FedKDError, match=r"regularization must be > 0 or 'auto', got 'auot'"):
        RidgeHead("auot")  # type: ignore[arg-type]
    one = RidgeStatistics.from_features(torch.ones(1, 2), torch.tensor([0]), 2)
    with pytest.raises(FedKDError, match="different features"):
        one + RidgeStatistics.from_features(torch.ones(1, 3), torch.tensor([0]), 2)


def doubled(features: np.ndarray, targets: Tensor) -> tuple[np.ndarray, Tensor]:
    """Return a problem in which every image of class 0 stands twice."""
    again = (targets == 0).numpy()
    return np.concatenate([features, features[again]]), torch.cat([targets, targets[again]])


def test_an_image_of_weight_two_is_two_images() -> None:
    features, targets = problem()
    weights = torch.tensor([2.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    weighted = RidgeStatistics.from_features(torch.from_numpy(features), targets, K, weights)
    twice, labels = doubled(features, targets)
    repeated = RidgeStatistics.from_features(torch.from_numpy(twice), labels, K)
    torch.testing.assert_close(weighted.second_moments, repeated.second_moments)
    torch.testing.assert_close(weighted.cross_moments, repeated.cross_moments)
    assert weighted.count == pytest.approx(repeated.count)


def test_leaving_out_an_image_of_weight_two_leaves_out_both() -> None:
    features, targets = problem()
    weights = torch.tensor([2.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    statistics = RidgeStatistics.from_features(torch.from_numpy(features), targets, K, weights)
    penalty = 0.05 * RidgeProblem.from_statistics(statistics)._unit
    solution = solve_ridge(statistics, 0.05)
    found = solution.leave_one_out(torch.from_numpy(features), targets, weights[targets])
    for image in (int((targets == 0).nonzero()[0]), int((targets == 2).nonzero()[0])):
        rest = np.arange(N) != image
        others = RidgeStatistics.from_features(torch.from_numpy(features[rest]), targets[rest], K, weights)
        problem_without = RidgeProblem.from_statistics(others)
        expected = problem_without.solve(penalty / problem_without._unit).predict(torch.from_numpy(features[[image]]))
        # the mean moves too when an image is left out; what is exact is the fit with a bias that is not penalized
        torch.testing.assert_close(found[[image]], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", list(PARTITIONS))
def test_balanced_classes_count_alike_for_every_partition(name: str) -> None:
    features, targets = problem()
    few = (targets != 0) | (torch.arange(N) % 4 == 0)  # class 0 is rare
    features, targets = features[few.numpy()], targets[few]
    partitioner, clients = PARTITIONS[name]
    shards = partitioner(targets.numpy(), clients, np.random.default_rng(1))
    head = fit_head(RidgeHead(0.05, class_balanced=True), features, targets, shards, K)
    counts = torch.bincount(targets).double()
    balanced = RidgeStatistics.from_features(torch.from_numpy(features), targets, K, len(targets) / (K * counts))
    torch.testing.assert_close(balanced.class_counts, torch.full((K,), len(targets) / K, dtype=torch.float64))
    solution = solve_ridge(balanced, 0.05)
    torch.testing.assert_close(head.module.weight.double(), solution.weight, rtol=1e-4, atol=1e-6)


def test_a_standardized_head_does_not_see_the_sizes_of_features() -> None:
    features, targets = problem()
    sizes = np.array([1, 10, 0.1, 100, 1, 1, 0.001])
    shards = [np.arange(0, N, 2), np.arange(1, N, 2)]
    plain = fit_head(RidgeHead(standardize=True), features, targets, shards, K).module(torch.from_numpy(features))
    sized = fit_head(RidgeHead(standardize=True), features * sizes, targets, shards, K)
    torch.testing.assert_close(sized.module(torch.from_numpy(features * sizes).float()), plain, rtol=1e-3, atol=1e-3)
    scaled = features / features.std(0)
    same = fit_head(RidgeHead(), scaled, targets, shards, K).module(torch.from_numpy(scaled))
    torch.testing.assert_close(same, plain, rtol=1e-3, atol=1e-3)
    constant = np.concatenate([features, np.full((N, 1), 3.0, np.float32)], axis=1)
    assert torch.isfinite(
        fit_head(RidgeHead(standardize=True), constant, targets, shards, K).module(torch.from_numpy(constant))
    ).all()


def test_privacy_takes_neither() -> None:
    for option in ("standardize", "class_balanced"):
        with pytest.raises(FedKDError, match=f"{option}: true needs sums without noise"):
            RidgeHead(privacy=GaussianPrivacy(1.0), **{option: True})
