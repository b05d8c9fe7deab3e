"""The Gaussian mechanism is calibrated as its theorem says, and heads add the noise that their sensitivity needs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from protocols import fit_head
from torch import Tensor

from fedkd.core.errors import FedKDError
from fedkd.teachers import GaussianPrivacy, PrototypeHead, RidgeHead, RidgeStatistics
from fedkd.teachers.heads.calibration import best, loss_sums
from fedkd.teachers.heads.privacy import CHOICE_SHARE, SUMS_SHARE, clip_norm, gaussian_delta
from fedkd.teachers.heads.ridge_solution import RidgeProblem, solve_ridge

K, D = 3, 4


def problem(n: int = 3000, seed: int = 0) -> tuple[np.ndarray, Tensor]:
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, K, n)
    features = rng.normal(size=(n, D)) / 2
    features[:, :K] += np.eye(K)[targets]
    return features.astype(np.float32), torch.from_numpy(targets)


@pytest.mark.parametrize(("epsilon", "mu"), [(0.1, 0.3), (1.0, 0.3), (1.0, 2.0), (8.0, 1.7)])
def test_delta_is_the_hockey_stick_divergence(epsilon: float, mu: float) -> None:
    # the definition, integrated: max(0, p - e^epsilon q) of N(mu, 1) against N(0, 1)
    x = np.linspace(-30, 30, 600_001)
    p, q = (np.exp(-((x - shift) ** 2) / 2) / math.sqrt(2 * math.pi) for shift in (mu, 0.0))
    integral = np.maximum(0, p - math.exp(epsilon) * q).sum() * (x[1] - x[0])
    assert gaussian_delta(epsilon, mu) == pytest.approx(integral, rel=1e-5)


@pytest.mark.parametrize("epsilon", [0.01, 0.5, 1.0, 8.0, 1000.0])
@pytest.mark.parametrize("delta", [1e-9, 1e-5, 0.1])
def test_noise_is_the_least_that_suffices(epsilon: float, delta: float) -> None:
    mu = GaussianPrivacy(epsilon, delta).mu
    assert gaussian_delta(epsilon, mu) <= delta
    assert gaussian_delta(epsilon, mu * (1 + 1e-6)) > delta


def test_known_values() -> None:
    # what the code published with the paper gives for epsilon 1, delta 1e-5, sensitivity 1
    assert GaussianPrivacy(1.0, 1e-5).sigma(1.0) == pytest.approx(3.730632, abs=1e-6)
    classical = math.sqrt(2 * math.log(1.25 / 1e-5))  # 4.845, valid for epsilon <= 1
    assert GaussianPrivacy(1.0, 1e-5).sigma(1.0) < 0.78 * classical
    # as epsilon -> 0 only the distance of the two distributions counts: 2 Phi(mu / 2) - 1 = delta
    mu = GaussianPrivacy(1e-9, 0.1).mu
    assert math.erf(mu / 2 / math.sqrt(2)) == pytest.approx(0.1, rel=1e-6)


def test_two_exchanges_spend_the_budget_exactly() -> None:
    privacy = GaussianPrivacy(2.0)
    mus = [1.0 / privacy.sigma(1.0, share) for share in (SUMS_SHARE, CHOICE_SHARE)]
    assert math.hypot(*mus) == pytest.approx(privacy.mu)  # two Gaussians seen together are one at this distance


def test_noise_has_the_stated_variance_and_no_release_shares_it() -> None:
    privacy = GaussianPrivacy(1.0, seed=3)
    zeros = torch.zeros(40_000)
    noise = privacy.add_noise(zeros, 2.0, 0.5, "a", 0)
    sigma = privacy.sigma(2.0, 0.5)
    assert sigma == pytest.approx(2 * math.sqrt(2) * privacy.sigma(1.0))
    assert float(noise.std()) == pytest.approx(sigma, rel=0.02)  # 5 standard deviations
    assert abs(float(noise.mean())) < 5 * sigma / 200
    assert torch.equal(noise, privacy.add_noise(zeros, 2.0, 0.5, "a", 0))
    for other in (
        privacy.add_noise(zeros, 2.0, 0.5, "a", 1),
        GaussianPrivacy(1.0).add_noise(zeros, 2.0, 0.5, "a", 0),
        privacy.add_noise(zeros + 1, 2.0, 0.5, "a", 0) - 1,  # such as the same client's sums for another head
    ):
        assert abs(float((noise * other).mean())) < 5 * sigma**2 / 200


def test_features_are_clipped() -> None:
    features = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    torch.testing.assert_close(clip_norm(features, 2.0), torch.tensor([[1.2, 1.6], [0.3, 0.4], [0.0, 0.0]]))
    assert float(GaussianPrivacy(1.0, clip=0.1).clipped(1e4 * features).norm(dim=1).max()) <= 0.1 + 1e-15


@pytest.mark.parametrize("clip", [0.5, 1.0, 3.0])
def test_sensitivity_of_ridge_sums(clip: float) -> None:
    privacy = GaussianPrivacy(1.0, clip=clip)
    # how much one image changes what is sent, the last column of A aside, which is derived from B
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(200, D, generator=generator, dtype=torch.float64)
    vectors = torch.cat([clip * vectors / vectors.norm(dim=1, keepdim=True), clip * torch.eye(D, dtype=torch.float64)])
    changes = []
    for x in vectors:
        statistics = RidgeStatistics.from_features(x[None], torch.tensor([1]), K)
        upper = torch.outer(x, x)[tuple(torch.triu_indices(D, D))]
        changes.append(math.hypot(float(upper.norm()), float(statistics.cross_moments.norm())))
    claimed = math.sqrt(
        RidgeStatistics.from_features(vectors, torch.zeros(len(vectors)).long(), K).noisy(privacy).noise
    )
    claimed /= privacy.sigma(1.0, SUMS_SHARE)
    assert max(changes) == pytest.approx(claimed)  # reached by an axis
    assert max(changes) <= claimed * (1 + 1e-12)


def test_ridge_sums_are_unbiased_and_consistent() -> None:
    privacy = GaussianPrivacy(1.0)
    features, targets = problem()
    plain = RidgeStatistics.from_features(privacy.clipped(torch.from_numpy(features)), targets, K)
    noisy = [plain.noisy(privacy, i) for i in range(400)]
    sigma = math.sqrt(noisy[0].noise)
    deviations = torch.stack([one.cross_moments for one in noisy]) - plain.cross_moments  # (400, D + 1, K)
    assert float(deviations.std()) == pytest.approx(sigma, rel=0.05)
    assert float(deviations.mean(0).abs().max()) < 5 * sigma / 20
    one = noisy[0]
    assert float(one.second_moments[-1]) == pytest.approx(float(one.class_counts.sum()))  # n from the noisy B
    assert (one + noisy[1]).noise == pytest.approx(2 * sigma**2)


def test_sums_that_noise_made_indefinite_are_solved() -> None:
    # S = diag(4, -1): a direction of negative variance is one of none
    second = torch.tensor([4.0, 0, 0, -1.0, 0, 2.0], dtype=torch.float64)
    cross = torch.tensor([[2.0, -2.0], [1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    solution = solve_ridge(RidgeStatistics(second, cross), 0.1)  # lambda = 0.1 (4 - 1) / 2
    expected = torch.tensor([[2.0, -2.0], [1.0, -1.0]], dtype=torch.float64) / torch.tensor([[4.15], [0.15]])
    torch.testing.assert_close(solution.weight, expected)
    noisy = RidgeProblem.from_statistics(RidgeStatistics(second, cross, noise=0.5))
    assert noisy.least == pytest.approx(2.0)  # 2 sqrt(0.5 * 2)
    assert noisy.effective(0.1) == pytest.approx(2.0 / 1.5)
    expected = torch.tensor([[2.0, -2.0], [1.0, -1.0]], dtype=torch.float64) / torch.tensor([[6.0], [1.0]])
    torch.testing.assert_close(noisy.solve(0.1).weight, expected)


def test_sensitivity_of_prototypes() -> None:
    for distance, clip in (("cosine", 1.0), ("euclidean", 2.0)):
        head = PrototypeHead(distance, GaussianPrivacy(1.0, clip=clip))  # type: ignore[arg-type]
        x = torch.nn.functional.normalize(torch.ones(1, D, dtype=torch.float64), dim=1) * clip
        change = float(head.sums(x, torch.tensor([2]), K).norm())
        assert head.privacy is not None
        noise = torch.stack([head.noisy(torch.zeros(50, 50), client) for client in range(8)])
        assert float(noise.std()) == pytest.approx(head.privacy.sigma(change, SUMS_SHARE), rel=0.03)


def test_one_image_changes_each_answer_by_one_at_most() -> None:
    privacy = GaussianPrivacy(1.0)
    logits = torch.tensor([[[0.0, 0.0]], [[1e3, 0.0]], [[0.0, 1e3]]])  # three candidates, one image
    sigma = privacy.sigma(math.sqrt(3), CHOICE_SHARE)
    change = loss_sums(logits, torch.tensor([0]), GaussianPrivacy(1e10), 0)  # hardly any noise
    torch.testing.assert_close(change, torch.tensor([-0.5, -1.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-3)
    noise = torch.cat([loss_sums([row[:0] for row in logits], torch.empty(0).long(), privacy, c) for c in range(2000)])
    assert float(noise.std()) == pytest.approx(sigma, rel=0.05)


def test_choice_prefers_caution_where_noise_hides_the_difference() -> None:
    privacy = GaussianPrivacy(1.0)
    noise = privacy.sigma(math.sqrt(3), CHOICE_SHARE)
    answers = [torch.tensor([2.4 * noise, noise, 0.0])]
    assert best(answers, None) == 2
    assert best(answers, privacy) == 0  # the tolerance is 1 + sqrt(2 log 3) = 2.48 deviations
    assert best([torch.tensor([2.5 * noise, noise, 0.0])], privacy) == 1
    assert best(4 * [torch.tensor([2.5 * noise / 2.1, noise, 0.0])], privacy) == 0  # four clients: twice the noise


@pytest.mark.parametrize(("head", "too_strict"), [(RidgeHead, 0.02), (PrototypeHead, 0.002)])
def test_private_heads_lose_little_when_images_are_many(head: type, too_strict: float) -> None:
    features, targets = problem(6000)
    shards = [np.arange(0, 2000), np.empty(0, np.int64), np.arange(2000, 5000)]
    unseen, right = torch.from_numpy(features[5000:]), targets[5000:]

    def accuracy(privacy: GaussianPrivacy | None) -> float:
        fitted = fit_head(head(privacy=privacy), features, targets, shards, K)
        assert fitted.module(unseen).isfinite().all()
        return float((fitted.module(unseen).argmax(1) == right).double().mean())

    def mean_accuracy(epsilon: float) -> float:  # over draws of the noise
        return float(np.mean([accuracy(GaussianPrivacy(epsilon, seed=seed)) for seed in range(5)]))

    without = accuracy(None)
    assert mean_accuracy(4.0) > without - 0.03
    assert mean_accuracy(too_strict) < without - 0.1  # privacy this strict must cost


def test_silent_clients_would_tell() -> None:
    features, targets = problem(100)
    shards = [np.arange(100), np.empty(0, np.int64)]
    for head in (RidgeHead, PrototypeHead):
        private, plain = (fit_head(head(privacy=p), features, targets, shards, K) for p in (GaussianPrivacy(8.0), None))
        alone = fit_head(head(privacy=GaussianPrivacy(8.0)), features, targets, shards[:1], K)
        assert private.bytes_up == 2 * alone.bytes_up
        assert "noise" in private.sends
        assert "noise" not in plain.sends


def test_errors() -> None:
    for arguments, message in (
        ({"epsilon": 0}, "epsilon must be > 0, got 0"),
        ({"epsilon": 1, "delta": 1}, "delta must be > 0 and < 1, got 1"),
        ({"epsilon": 1, "clip": -1}, "clip must be > 0, got -1"),
    ):
        with pytest.raises(FedKDError, match=message):
            GaussianPrivacy(**arguments)
    with pytest.raises(FedKDError, match="no client has an image, according to the clients' sums"):
        fit_head(RidgeHead(privacy=GaussianPrivacy(1e6)), *problem(0), [np.empty(0, np.int64)], K)
