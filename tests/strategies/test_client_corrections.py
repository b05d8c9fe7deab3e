"""FedProx, SCAFFOLD and FedDyn: their rounds by hand, and where they end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from corrections import (
    CURVATURE,
    GOAL,
    Parabola,
    Point,
    federate,
    gradient,
    network,
    optimum,
    parabolas,
    point,
    steps,
)
from helpers import datamodule, module, same, train_client, weights
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

import fedkd
from fedkd.core.messages import ClientTask, ClientUpdate, LocalRule, ServerState, Weights
from fedkd.partition import Dirichlet
from fedkd.strategies import SCAFFOLD, Compose, FedAvg, FedAvgM, FedDyn, FedProx, Strategy
from fedkd.strategies.client_side.scaffold import ControlVariate
from fedkd.training.objective import Objective

START = torch.tensor([0.5, -0.5, 0.25])
SIZES = (10, 20, 30)  # with batches of 10: one, two and three steps a round
SHARES = [1 / 6, 2 / 6, 3 / 6]


def ends_at(tmp_path, strategy, data=None, trained=None, **arguments):
    """Return where a federation over the parabolas ends."""
    return federate(tmp_path / "run", trained or point(), data or parabolas(SIZES), strategy, **arguments)["point"]


class ProximalLoss(Objective):
    """FedProx's term in the loss."""

    name = "proximal"

    def on_fit_start(self, trainer, pl_module):
        self.start = [value.detach().clone() for value in pl_module.student.parameters()]

    def term(self, module, batch, student):
        pairs = zip(module.student.parameters(), self.start, strict=True)
        return 0.5 * sum(((value - start) ** 2).sum() for value, start in pairs)


class FedProxInTheLoss(Strategy):
    def local_rule(self, state, client):
        return InTheLoss()


@dataclass(frozen=True)
class InTheLoss(LocalRule):
    def callbacks(self, task):
        return [ProximalLoss(0.7)]


def test_fedprox_by_hand(tmp_path):
    # one client, goal (1, 0, 2), curvature 1: w1 = w0 + 0.1 (goal - w0); w2 = w1 + 0.1 (goal - w1) - 0.1 mu (w1 - w0)
    first = START + 0.1 * (GOAL[0] - START)
    second = first + 0.1 * (GOAL[0] - first) - 0.1 * 0.5 * (first - START)
    found = ends_at(tmp_path, FedProx(0.5), parabolas((20,)), rounds=1)
    torch.testing.assert_close(found, second, rtol=0, atol=1e-6)
    torch.testing.assert_close(found, torch.tensor([0.5925, -0.4075, 0.57375]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "trainer",
    [
        {},
        {"gradient_clip_val": 0.05},
        {"accumulate_grad_batches": 2},
        {"accumulate_grad_batches": 3},  # an epoch has two batches: no window is full
        {"precision": "bf16-mixed", "gradient_clip_val": 0.05},
    ],
)
def test_fedprox_equals_the_term_in_the_loss(tmp_path, trainer):
    trainer = {"max_epochs": 2, **trainer}
    corrected = federate(tmp_path / "a", module(), datamodule(), FedProx(0.7), trainer=trainer)
    in_the_loss = federate(tmp_path / "b", module(), datamodule(), FedProxInTheLoss(), trainer=trainer)
    for name, value in in_the_loss.items():
        torch.testing.assert_close(corrected[name], value, rtol=0, atol=2e-6)
    plain = federate(tmp_path / "c", module(), datamodule(), FedAvg(), trainer=trainer)
    assert not torch.allclose(plain["net.1.weight"], corrected["net.1.weight"], rtol=0, atol=1e-5)


def test_a_strong_pull_holds_clients_at_the_global_student(tmp_path):
    # lr * mu = 1: each step goes back to the start before the gradient's own part
    data = datamodule(num_clients=1)
    found = federate(tmp_path / "run", module(), data, FedProx(10.0), rounds=1)["net.1.weight"]
    free = federate(tmp_path / "free", module(), datamodule(num_clients=1), FedAvg(), rounds=1)["net.1.weight"]
    start = weights(module())["net.1.weight"]
    assert (found - start).norm() < 0.5 * (free - start).norm()


def scaffold_rounds(option, rounds, shares, counts, lr=0.1, cohorts=None, momentum=0.0):
    """Run algorithm 1 as it is written, each client counted by its share."""
    x, c, own = START, torch.zeros(3), [torch.zeros(3)] * 3
    for number in range(rounds):
        cohort = range(3) if cohorts is None else cohorts[number]
        moved, changed = torch.zeros(3), torch.zeros(3)
        for i in cohort:
            c_i, c_now = own[i], c
            y = steps(i, x, counts[i], lr, lambda _, d=c_now - c_i: d, momentum)
            own[i] = gradient(i, x) if option == "I" else c_i - c + (x - y) / (counts[i] * lr)
            moved = moved + shares[i] * (y - x)
            changed = changed + shares[i] * (own[i] - c_i)
        x, c = x + moved / sum(shares[i] for i in cohort), c + changed
    return x


@pytest.mark.parametrize("option", ["I", "II"])
@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_scaffold_by_hand(tmp_path, option, rounds):
    found = ends_at(tmp_path, SCAFFOLD(option), rounds=rounds)
    torch.testing.assert_close(found, scaffold_rounds(option, rounds, SHARES, (1, 2, 3)), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("option", "expected"), [("I", 0.1074375), ("II", 0.10825)])
def test_scaffold_in_one_number(tmp_path, option, expected):
    # Two clients of one size, first coordinate: gradients y - 1 and 2 (y + 1), two steps of 0.1, from x = 0.5.
    # Round 1: y_1 = 0.55, 0.595; y_2 = 0.2, -0.04; x = 0.2775. Gradients met: (-0.5, -0.45) and (3, 2.4).
    # I:  c_1 = -0.5,   c_2 = 3,   c = 1.25.    Round 2: y_1 = 0.17475, 0.082275;  y_2 = 0.197, 0.1326
    # II: c_1 = -0.475, c_2 = 2.7, c = 1.1125.  Round 2: y_1 = 0.191, 0.11315;  y_2 = 0.18075, 0.10335
    found = ends_at(tmp_path, SCAFFOLD(option), parabolas((20, 20)))
    assert float(found[0]) == pytest.approx(expected, abs=1e-6)


def test_scaffold_with_a_sampled_cohort_by_hand(tmp_path):
    from fedkd.server.sampling import sample_cohort

    cohorts = [sample_cohort([0, 1, 2], 2, seed=0, round=number) for number in range(4)]
    assert len({tuple(cohort) for cohort in cohorts}) > 1
    found = ends_at(tmp_path, SCAFFOLD(), rounds=4, clients_per_round=2)
    torch.testing.assert_close(found, scaffold_rounds("II", 4, SHARES, (1, 2, 3), cohorts=cohorts), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("lr", "momentum"), [(0.1, 0.0), (0.02, 0.9)])
def test_scaffold_ends_at_the_global_optimum_and_fedavg_beside_it(tmp_path, lr, momentum):
    # with momentum, (x - y) / (K lr) is far more than a gradient: taken literally, these rounds diverge
    def distance(strategy):
        arguments = {"trained": point(lr, momentum), "rounds": 9, "trainer": {"max_epochs": 3}}
        return (ends_at(tmp_path / repr(strategy), strategy, parabolas(), **arguments) - optimum([1 / 3] * 3)).norm()

    assert distance(SCAFFOLD("I")) < 5e-3
    assert distance(SCAFFOLD("II")) < 5e-3
    assert distance(FedAvg()) > 0.1


@pytest.mark.parametrize("accumulate", [1, 2])  # of clients of 1, 2 and 3 batches: their last windows are not full
def test_with_shards_of_any_size_the_end_is_the_optimum_of_all_images(tmp_path, accumulate):
    for strategy in (SCAFFOLD("I"), SCAFFOLD("II"), FedDyn(3.0)):
        trainer = {"max_epochs": 2, "accumulate_grad_batches": accumulate}
        arguments = {"trained": point(lr=0.13), "rounds": 12, "trainer": trainer}
        found = ends_at(tmp_path / repr(strategy), strategy, **arguments)
        torch.testing.assert_close(found, optimum(SHARES), rtol=0, atol=1e-3)


def test_scaffold_with_an_adaptive_optimizer_keeps_gradients(tmp_path):
    trained, data = point(), parabolas((20,))
    trained.optimizer = lambda parameters: torch.optim.Adam(parameters, lr=0.1)
    _, update = train_client(trained, data, SCAFFOLD())
    first = START - 0.1 * gradient(0, START).sign()  # Adam's first step is its learning rate
    mean = (gradient(0, START) + gradient(0, first)) / 2
    torch.testing.assert_close(update.client_state["point"], mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(update.extras["point"], mean, rtol=0, atol=1e-5)


@pytest.mark.parametrize("strategy", [FedProx(0.0), FedProx(0), SCAFFOLD("I"), SCAFFOLD("II")])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_first_round_is_fedavg_bit_for_bit(tmp_path, strategy, precision):
    # with dropout, BatchNorm and augmentation: what option I does before training leaves no trace
    def run(strategy):
        data = datamodule(partitioner=Dirichlet(0.5), augmentation=fedkd.data.Augmentation(crop_padding=1, flip=True))
        trainer = {"precision": precision, "max_epochs": 2}
        return federate(tmp_path / repr(strategy), network(), data, strategy, rounds=1, trainer=trainer)

    assert same(run(strategy), run(FedAvg()))


def test_fedprox_0_stays_fedavg(tmp_path):
    run = [federate(tmp_path / repr(s), network(), datamodule(), s, rounds=3) for s in (FedProx(0), FedAvg())]
    assert same(*run)


def test_option_i_is_the_gradient_of_the_whole_shard(tmp_path):
    trained, data = module(), datamodule(num_clients=1, batch_size=7)  # 60 images: the last batch has four
    _, update = train_client(trained, data, SCAFFOLD("I"))
    student = module().student
    inputs, targets = data.train.images.float() / 255, data.train.targets
    torch.nn.functional.cross_entropy(student(inputs), targets).backward()
    for name, value in student.named_parameters():
        torch.testing.assert_close(update.client_state[name], value.grad, rtol=0, atol=1e-6)
    assert update.num_steps == 9


def test_scaffold_notes_gradients_before_they_are_clipped(tmp_path):
    trained, data = point(), parabolas((10,))
    _, update = train_client(trained, data, SCAFFOLD(), {"gradient_clip_val": 1e-3})
    torch.testing.assert_close(update.client_state["point"], gradient(0, START), rtol=0, atol=1e-6)
    assert float(update.delta["point"].norm()) == pytest.approx(1e-4, rel=1e-3)


def half(scale=2.0**10):
    """Return Trainer arguments for float16 with a scaler, as on a GPU."""
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))
    return {"accelerator": "cpu", "plugins": plugin, "max_epochs": 2}


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_of_float16_are_corrected_in_their_own_scale(tmp_path, fused):
    # a fused optimizer takes scaled gradients and divides them itself
    def run(strategy):
        trained = module(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, fused=fused))
        return federate(tmp_path / repr(strategy), trained, datamodule(), strategy, trainer=half())

    corrected, in_the_loss = run(FedProx(0.7)), run(FedProxInTheLoss())
    for name, value in in_the_loss.items():
        torch.testing.assert_close(corrected[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("option", ["I", "II"])
def test_scaffold_passes_over_a_step_that_float16_leaves_out(option):
    def control(trainer, fused):
        optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.0, fused=fused)  # noqa: E731
        trained, data = module(optimizer=optimizer), datamodule(num_clients=1, batch_size=20)
        return train_client(trained, data, SCAFFOLD(option), trainer)[1].client_state

    exact = control({"accelerator": "cpu"}, fused=False)  # nothing moves: the gradient of all images
    found = control({**half(2.0**19), "max_epochs": 4}, fused=False)  # the first epoch's steps overflow
    scaled = control(half(), fused=True)
    for name, value in exact.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=5e-3)
        torch.testing.assert_close(scaled[name], value, rtol=0, atol=1e-3)


def feddyn_rounds(rounds, counts, a, lr=0.1, cohorts=None):
    """Run algorithm 1 as it is written, each client counted by its share."""
    x, h, own = START, torch.zeros(3), [torch.zeros(3)] * 3
    for number in range(rounds):
        cohort = range(3) if cohorts is None else cohorts[number]
        y = {i: steps(i, x, counts[i], lr, lambda w, i=i, x=x: a * (w - x) - own[i]) for i in cohort}
        for i in cohort:
            own[i] = own[i] - a * (y[i] - x)
            h = h - a * SHARES[i] * (y[i] - x)
        part = sum(SHARES[i] for i in cohort)
        x = sum(SHARES[i] * y[i] for i in cohort) / part - h / a
    return x


@pytest.mark.parametrize("cohorts", [None, [[0, 2], [0, 1], [1, 2]]])
def test_feddyn_by_hand(tmp_path, monkeypatch, cohorts):
    if cohorts:
        monkeypatch.setattr("fedkd.server.federation.sample_cohort", lambda *_, round, **__: cohorts[round])
    found = ends_at(tmp_path, FedDyn(0.5), rounds=3)
    torch.testing.assert_close(found, feddyn_rounds(3, (1, 2, 3), 0.5, cohorts=cohorts), rtol=0, atol=1e-5)


def test_feddyn_in_one_number(tmp_path):
    # one client, one step of 0.1 from 0.5 towards 1 with curvature 1: y = 0.55, delta = 0.05.
    # h = -0.05 a, so the server steps twice as far: x = 0.55 + 0.05 = 0.6
    found = ends_at(tmp_path, FedDyn(0.25), parabolas((10,)), rounds=1)
    assert float(found[0]) == pytest.approx(0.6, abs=1e-6)


def test_feddyn_sends_nothing_more():
    update = ClientUpdate(0, 10, 1, {"w": torch.ones(2)}, {}, {})
    start = Weights({"w": torch.zeros(2)})
    task = ClientTask(0, 0, start, client_state={"w": torch.tensor([1.0, 2.0])})
    final = FedDyn(0.5).local_rule(ServerState(0, start), 0).finish(update, task, None)
    assert final.num_bytes == update.num_bytes
    assert final.client_state["w"].tolist() == [0.5, 1.5]


def test_a_cohort_moves_the_variate_by_its_part():
    strategy, state = SCAFFOLD(), ServerState(0, Weights(), num_examples=100)
    assert strategy.broadcast(state) == {}
    updates = [
        ClientUpdate(0, 10, 1, {}, {}, {}, extras={"w": torch.tensor([1.0])}),
        ClientUpdate(1, 30, 0, {}, {}, {}, extras={"w": torch.zeros(1)}),
    ]
    state = replace(state, memory=strategy.remember(state, updates))
    state = replace(state, memory=strategy.remember(state, updates[:1]))
    assert strategy.broadcast(state)["w"].tolist() == pytest.approx([0.2])
    assert ServerState(0, Weights()).shares(updates) == [0.25, 0.75]  # not known: the cohort is all there is


def test_scaffold_under_a_server_optimizer(tmp_path):
    def run(strategy, rounds=2):
        return ends_at(tmp_path / f"{strategy} {rounds}", strategy, rounds=rounds)

    assert torch.equal(run(Compose([SCAFFOLD(), FedAvgM(0.0)]), 3), run(SCAFFOLD(), 3))
    # after two rounds the momentum has added half of the first delta
    both, first, alone = run(Compose([FedAvgM(0.5), SCAFFOLD()])), run(SCAFFOLD(), 1), run(SCAFFOLD("II"))
    torch.testing.assert_close(both, alone + 0.5 * (first - START), rtol=0, atol=1e-6)


def test_a_client_that_took_no_step_keeps_its_variate():
    own = {"0/point": torch.ones(3), "1/other": torch.ones(1)}
    task = ClientTask(1, 0, client_state=own)
    rule = Compose([SCAFFOLD(), Strategy()]).local_rule(ServerState(1, Weights()), 0)
    variate = ControlVariate({}, {}, full_pass=False)
    variate.num_corrections, variate.parameters = 0, {"point": nn.Parameter(torch.ones(3))}
    trainer = SimpleNamespace(callbacks=[variate])
    update = rule.finish(ClientUpdate(0, 10, 0), task, trainer)
    assert torch.equal(update.client_state["0/point"], torch.ones(3))
    assert torch.equal(update.client_state["1/other"], torch.ones(1))
    assert {name: value.tolist() for name, value in update.extras.items()} == {"0/point": [0.0, 0.0, 0.0]}


class Reluctant(fedkd.DistillationModule):
    """Takes no step on a client of few images, as one whose every step overflows in float16."""

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if self.trainer.train_dataloader.num_examples < 20 else None


@pytest.mark.parametrize("option", ["I", "II"])
def test_a_client_that_takes_no_step_ends_no_run(tmp_path, option):
    trained = Reluctant(Point(), loss=Parabola(), optimizer=partial(torch.optim.SGD, lr=0.1))
    federation = fedkd.Federation(
        2, strategy=SCAFFOLD(option), run_dir=tmp_path, trainer={"accelerator": "cpu"}, min_clients=1
    )
    federation.fit(trained, parabolas((10, 20, 20)))
    assert not (tmp_path / "failures.csv").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FedProx(-0.1), "proximal_mu must be >= 0, got -0.1"),
        (lambda: SCAFFOLD("III"), "Unknown option 'III'. Did you mean 'II'"),
        (lambda: FedDyn(0.0), "regularization must be > 0, got 0.0"),
    ],
)
def test_wrong_values_are_named(make, message):
    with pytest.raises(fedkd.FedKDError, match=message):
        make()


def test_curvatures_differ():
    assert len(set(CURVATURE.tolist())) == 3  # else plain averaging would end at the optimum too
