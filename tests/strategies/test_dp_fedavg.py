"""DP-FedAvg: clipping and noise by hand, the accountant against the Gaussian mechanism's exact epsilon."""

from __future__ import annotations

import csv
import math
import sys
from statistics import NormalDist

import pytest
import torch
from helpers import datamodule, module
from rounds import cohort, state, update

import fedkd
from fedkd.strategies import (
    SCAFFOLD,
    Compose,
    DPFedAvg,
    FeatureStart,
    FedAdam,
    FedDF,
    FedProx,
    ServerDistillation,
)

pytest.importorskip("dp_accounting")


def mean_of(strategy, updates, start=None) -> torch.Tensor:
    start = start or state(*[0.0] * len(updates[0].delta["w"]))
    return strategy.aggregate(start, updates).weights.parameters["w"]


def exact_epsilon(mu: float, delta: float) -> float:
    """Return the epsilon of a Gaussian mechanism of sensitivity mu times its noise: Balle and Wang, theorem 5."""
    phi = NormalDist().cdf
    low, high = 0.0, 200.0
    for _ in range(200):
        middle = (low + high) / 2
        if phi(mu / 2 - middle / mu) - math.exp(middle) * phi(-mu / 2 - middle / mu) > delta:
            low = middle
        else:
            high = middle
    return high


def test_without_noise_it_is_the_plain_mean_of_clipped_deltas():
    updates = [update(0, 3.0, 4.0, num_examples=1), update(1, 0.0, 0.5, num_examples=99)]
    # (0.6, 0.8) and (0, 0.5), whatever the numbers of examples
    assert mean_of(DPFedAvg(1.0, 0.0), updates).tolist() == pytest.approx([0.3, 0.65])


def test_the_noise_has_its_size_and_comes_from_seed_and_round():
    updates = cohort([[0.0] * 100_000] * 4)
    noise = mean_of(DPFedAvg(clip_norm=2.0, noise_multiplier=3.0), updates)
    assert noise.std().item() == pytest.approx(2 * 3 / 4, rel=0.01)
    assert noise.mean().item() == pytest.approx(0.0, abs=0.02)
    later = mean_of(DPFedAvg(2.0, 3.0), updates, state(*[0.0] * 100_000, round=1))
    other = mean_of(DPFedAvg(2.0, 3.0, seed=1), updates)
    assert torch.equal(noise, mean_of(DPFedAvg(2.0, 3.0), updates))
    for independent in (later, other):
        assert torch.corrcoef(torch.stack([noise, independent]))[0, 1].abs() < 0.02
    secret = DPFedAvg(2.0, 3.0, seed=None)
    assert not torch.equal(mean_of(secret, updates), mean_of(secret, updates))


@pytest.mark.parametrize(("noise_multiplier", "rounds"), [(2.0, 1), (4.0, 10), (20.0, 100)])
def test_epsilon_of_a_full_cohort_is_near_the_exact_one(noise_multiplier, rounds):
    # a replaced client moves the sum by 2 C, and rounds of Gaussian noise compose to one of sqrt(rounds)
    exact = exact_epsilon(2 / noise_multiplier * rounds**0.5, 1e-5)
    found = DPFedAvg(1.0, noise_multiplier).epsilon(rounds, 10, 10)
    assert exact <= found <= 1.25 * exact  # Renyi accounting is an upper bound


def test_epsilon_grows_with_rounds_and_cohort_and_falls_with_noise():
    epsilon = DPFedAvg(noise_multiplier=4.0).epsilon
    assert 0 == epsilon(0, 10, 1000) < epsilon(1, 10, 1000) < epsilon(50, 10, 1000) < epsilon(50, 100, 1000)
    assert epsilon(50, 100, 1000) < epsilon(50, 1000, 1000)
    assert DPFedAvg(noise_multiplier=8.0).epsilon(50, 10, 1000) < epsilon(50, 10, 1000)
    assert DPFedAvg(noise_multiplier=4.0, delta=1e-7).epsilon(50, 10, 1000) > epsilon(50, 10, 1000)
    assert DPFedAvg(noise_multiplier=0.0).epsilon(1, 10, 1000) == math.inf
    assert DPFedAvg(clip_norm=9.0, noise_multiplier=4.0).epsilon(50, 10, 1000) == epsilon(50, 10, 1000)


def test_epsilon_is_in_every_rounds_row(tmp_path):
    strategy = Compose([DPFedAvg(1.0, 4.0), FedAdam()])  # what is done to the noisy mean costs no privacy
    federation = fedkd.Federation(
        rounds=2, clients_per_round=2, strategy=strategy, run_dir=tmp_path / "run", trainer={"accelerator": "cpu"}
    )
    with pytest.warns(UserWarning, match="the noise is drawn from seed 0.*Epsilon holds only against those"):
        federation.fit(module(), datamodule(num_clients=5))
    with open(tmp_path / "run" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    found = [float(row["epsilon"]) for row in rows]
    assert [row["noise_seed"] for row in rows] == ["0", "0"]
    assert found == [DPFedAvg(1.0, 4.0).epsilon(rounds, 2, 5) for rounds in (1, 2)]


def test_a_student_with_buffers_is_refused(tmp_path):
    federation = fedkd.Federation(strategy=DPFedAvg(), run_dir=tmp_path / "run", trainer={"accelerator": "cpu"})
    with pytest.raises(fedkd.FedKDError, match=r"the student has buffers.*model\.student_options: \{norm: group\}"):
        federation.fit(module("resnet8", student_options={"norm": "batch"}), datamodule())
    grouped = module("resnet8", student_options={"norm": "group"})
    grouped.build(["a", "b"], (1, 8, 8))
    DPFedAvg().check(grouped, datamodule())


def test_nothing_beside_it_reads_the_clients_updates():
    for other in (SCAFFOLD(), FedDF()):
        for pair in ([DPFedAvg(), other], [other, DPFedAvg()], [Compose([DPFedAvg()]), other]):
            with pytest.raises(fedkd.FedKDError, match=r"cannot be composed with .*it protects the clients' updates"):
                Compose(pair)
    with pytest.raises(
        fedkd.FedKDError, match="DPFedAvg cannot be composed with FeatureStart: clients would send sums"
    ):
        Compose([FeatureStart(), DPFedAvg()])
    Compose([DPFedAvg(), FedProx(0.1), ServerDistillation()])  # the foundation model teaches: no update is read


def test_a_missing_accountant_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting.rdp", None)
    with pytest.raises(fedkd.MissingResourceError, match=r"^DPFedAvg needs the package dp-accounting: pip install "):
        DPFedAvg()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip_norm": 0}, "clip_norm must be > 0, got 0"),
        ({"noise_multiplier": -1}, "noise_multiplier must be >= 0, got -1"),
        ({"delta": 1}, "delta must be > 0 and < 1, got 1"),
    ],
)
def test_values_out_of_range_are_named(arguments, message):
    with pytest.raises(fedkd.FedKDError, match=message):
        DPFedAvg(**arguments)
    with pytest.raises(fedkd.FedKDError, match="clients_per_round must be >= 1 and <= 5, got 6"):
        DPFedAvg().epsilon(1, 6, 5)
