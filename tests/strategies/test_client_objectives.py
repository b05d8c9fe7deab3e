"""MOON, FedNTD, FedGKD, FedBN and pooled BatchNorm, and what holds for every correction on the clients."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from corrections import federate, network
from helpers import BrightRowTeacher, LinearStudent, datamodule, module, same, train_client
from lightning.pytorch import Callback
from torch import nn

import fedkd
from fedkd.core.messages import ClientUpdate, ServerState, Weights
from fedkd.losses import kd_divergence, not_true_divergence
from fedkd.partition import ClassSpecific, Dirichlet, Given
from fedkd.runs.checkpoint import load_checkpoint
from fedkd.strategies import (
    MOON,
    SCAFFOLD,
    Compose,
    FedAvg,
    FedAvgM,
    FedBN,
    FedDyn,
    FedGKD,
    FedNTD,
    FedProx,
    PooledBatchNorm,
)
from fedkd.strategies.client_side.fedbn import OwnNormalization
from fedkd.strategies.client_side.moon import model_contrast

CORRECTIONS = [
    FedProx(0.1),
    SCAFFOLD("I"),
    SCAFFOLD("II"),
    FedDyn(0.5),
    MOON(),
    FedNTD(),
    FedGKD(num_models=2),
    FedBN(),
    PooledBatchNorm(),
    Compose([SCAFFOLD(), FedNTD(), FedBN(), PooledBatchNorm(), FedAvgM(0.5)]),
]


class Hidden(nn.Module):
    """A student with a representation of five numbers."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh())
        self.head = nn.Linear(5, 3)

    def forward(self, images):
        return self.head(self.hidden(images))


def one_client(student, strategy, trainer=None, extras=None, client_state=None, **arguments):
    """Train one client by full-batch SGD on all 60 images; return data, task and update."""
    torch.manual_seed(0)
    data, trained = datamodule(num_clients=1, batch_size=60), module(student(), **arguments)
    return data, *train_client(trained, data, strategy, trainer, extras=extras, client_state=client_state)


def images_of(data):
    return data.train.images.float() / 255, data.train.targets


def sgd_step(student, loss):
    """Move the student along the gradient of a loss."""
    gradients = torch.autograd.grad(loss, list(student.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(student.parameters(), gradients, strict=True):
            parameter -= 0.1 * gradient


@pytest.mark.parametrize(
    ("strategy", "name", "divergence"),
    [
        (FedNTD(0.5, 2.0), "global_not_true", lambda s, t, y: not_true_divergence(s, t, y, 2.0)),
        (FedGKD(0.5, 2.0), "global_kd", lambda s, t, y: kd_divergence(s, t, 2.0)),
    ],
)
def test_the_term_is_the_divergence_from_the_global_student(strategy, name, divergence):
    # where training starts the two students are one, so the first step is the plain one; the second is not
    _, _, update = one_client(LinearStudent, strategy)
    assert update.metrics[f"train/{name}"] == pytest.approx(0.0, abs=1e-6)
    data, task, update = one_client(LinearStudent, strategy, {"max_epochs": 2})
    start, student = LinearStudent(), LinearStudent()
    for each in (start, student):
        each.load_state_dict(dict(task.weights.parameters))
    images, targets = images_of(data)
    sgd_step(student, nn.functional.cross_entropy(student(images), targets))
    term = 2.0**2 * divergence(student(images), start(images), targets)
    assert update.metrics[f"train/{name}"] == pytest.approx(term.item(), rel=1e-4)
    sgd_step(student, nn.functional.cross_entropy(student(images), targets) + 0.5 * term)
    for name, value in student.named_parameters():
        torch.testing.assert_close(
            task.weights.parameters[name] + update.delta[name], value.detach(), rtol=0, atol=1e-6
        )


def test_fedgkd_averages_the_last_global_students():
    strategy = FedGKD(num_models=3)
    models = [Weights({"w": torch.tensor([float(2**i)])}, {"n": torch.tensor(i)}) for i in range(4)]
    sent, memory = [], {}
    for i, weights in enumerate(models):
        state = ServerState(i, weights, memory)
        sent.append(strategy.broadcast(state))
        memory = strategy.remember(state, [])
    assert sent[0] == {}
    assert [float(each["w"]) for each in sent[1:]] == pytest.approx([1.5, 7 / 3, 14 / 3])
    assert int(sent[3]["n"]) == 3
    assert float(strategy.broadcast(ServerState(4, models[0], memory))["w"]) == pytest.approx((4 + 8 + 1) / 3)


def test_fedgkd_of_one_model_remembers_and_sends_nothing():
    strategy, state = FedGKD(num_models=1), ServerState(0, Weights({"w": torch.ones(1)}))
    assert strategy.remember(state, []) == {}
    assert strategy.broadcast(state) == {}
    assert not strategy.reads_updates


def test_fedgkd_teaches_with_what_was_sent():
    torch.manual_seed(1)
    past = LinearStudent()
    data, task, update = one_client(LinearStudent, FedGKD(1.0), extras=dict(past.state_dict()))
    start = LinearStudent()
    start.load_state_dict(dict(task.weights.parameters))
    images, _ = images_of(data)
    expected = kd_divergence(start(images), past(images)).item()
    assert update.metrics["train/global_kd"] == pytest.approx(expected, rel=1e-4)


def test_model_contrast_by_hand():
    z = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    near = torch.tensor([[2.0, 0.0], [0.0, 1.0]])  # cosines 1 and 0.8
    far = torch.tensor([[0.0, 1.0], [1.0, 0.0]])  # cosines 0 and 0.6
    rows = [math.log(1 + math.exp((0.0 - 1.0) / 0.5)), math.log(1 + math.exp((0.6 - 0.8) / 0.5))]
    assert float(model_contrast(z, near, far, 0.5)) == pytest.approx(sum(rows) / 2, rel=1e-6)
    assert float(model_contrast(z, near, near, 0.5)) == pytest.approx(math.log(2))


def test_moon_contrasts_with_the_clients_previous_student():
    torch.manual_seed(1)
    previous = Hidden()
    data, task, update = one_client(Hidden, MOON(), client_state=dict(previous.state_dict()))
    start = Hidden()
    start.load_state_dict(dict(task.weights.parameters))
    images, _ = images_of(data)
    z = start.hidden(images)
    expected = model_contrast(z, z, previous.hidden(images), 0.5)
    assert update.metrics["train/contrast"] == pytest.approx(expected.item(), rel=1e-4)
    for name, value in update.client_state.items():
        torch.testing.assert_close(value, task.weights.parameters[name] + update.delta[name], rtol=0, atol=1e-7)
    plain = one_client(Hidden, FedAvg())[2]
    assert not torch.equal(plain.delta["hidden.1.weight"], update.delta["hidden.1.weight"])


def test_moon_gives_a_zero_representation_no_gradient():
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0]], requires_grad=True)
    model_contrast(features, torch.tensor([[1.0, 2.0]] * 2), torch.tensor([[2.0, -1.0]] * 2), 0.5).backward()
    assert features.grad[0].tolist() == [0.0, 0.0]
    assert 0 < features.grad[1].norm() < 10


@pytest.mark.parametrize("previous", [False, True])
def test_moon_without_a_previous_student_is_fedavg(previous):
    # none, or one that is the global student: log 2 in either case, and no pull from it
    start = one_client(Hidden, FedAvg())[1]
    _, _, update = one_client(Hidden, MOON(), client_state=dict(start.weights.parameters) if previous else None)
    assert update.metrics["train/contrast"] == pytest.approx(math.log(2), rel=1e-5)
    plain = one_client(Hidden, FedAvg())[2]
    for name, value in plain.delta.items():
        torch.testing.assert_close(update.delta[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("strategy", [FedNTD(0.0), FedGKD(0.0), MOON(0.0)])
def test_a_weight_of_0_is_fedavg_bit_for_bit(tmp_path, strategy):
    data = {"partitioner": Dirichlet(0.5), "num_clients": 2, "count": 30}
    assert same(
        federate(tmp_path / "a", network(), datamodule(**data), strategy, rounds=2),
        federate(tmp_path / "b", network(), datamodule(**data), FedAvg(), rounds=2),
    )


class WatchedFedBN(FedBN):
    """Notes what clients start from and keep."""

    starts: ClassVar[dict] = {}
    kept: ClassVar[dict] = {}

    def local_rule(self, state, client):
        return WatchedRule()


@dataclass(frozen=True)
class WatchedRule(OwnNormalization):
    def start(self, task):
        start = super().start(task)
        WatchedFedBN.starts[task.round, task.client] = (task, start)
        return start

    def finish(self, update, task, trainer):
        update = super().finish(update, task, trainer)
        WatchedFedBN.kept[task.round, task.client] = update
        return update


def test_fedbn_keeps_each_clients_normalization(tmp_path):
    strategy, data = WatchedFedBN(), datamodule(num_clients=2, partitioner=ClassSpecific(2), count=40)
    federate(tmp_path / "run", network(), data, strategy, rounds=2)
    local = {f"body.1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
    for client in (0, 1):
        task, start = strategy.starts[1, client]
        own = strategy.kept[0, client].client_state
        assert set(own) == local
        given, found = task.weights.tensors, start.tensors
        assert all(torch.equal(found[name], own.get(name, given[name])) for name in given)
        assert not torch.equal(found["body.1.running_mean"], given["body.1.running_mean"])
        first = strategy.starts[0, client]
        assert first[0].weights.parameters == first[1].parameters  # nothing kept yet
    kept = [strategy.kept[0, client].client_state["body.1.running_mean"] for client in (0, 1)]
    assert not torch.allclose(kept[0], kept[1])
    sizes = [len(shard) for shard in data.shards]
    mean = (kept[0] * sizes[0] + kept[1] * sizes[1]) / sum(sizes)
    torch.testing.assert_close(
        strategy.starts[1, 0][0].weights.buffers["body.1.running_mean"], mean
    )  # the global student's


def test_fedbn_counts_deltas_from_the_global_student(tmp_path):
    strategy = WatchedFedBN()
    federate(tmp_path / "run", network(), datamodule(num_clients=2, partitioner=ClassSpecific(2)), strategy, rounds=2)
    for client in (0, 1):
        task, update = strategy.starts[1, client][0], strategy.kept[1, client]
        for name in ("body.1.weight", "body.1.bias"):
            found = task.weights.parameters[name] + update.delta[name]
            torch.testing.assert_close(found, update.client_state[name], rtol=0, atol=1e-6)


def test_fedbn_knows_every_kind_of_normalization(tmp_path):
    def student():
        norms = nn.LayerNorm(144), nn.BatchNorm1d(144)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), *norms, nn.Linear(144, 3))

    _, _, update = one_client(student, FedBN())
    assert {name.split(".")[0] for name in update.client_state} == {"1", "3", "4"}
    assert len(update.client_state) == 2 + 2 + 5


def test_fedbn_is_itself_beside_others(tmp_path):
    strategies = {"alone": FedBN(), "beside": Compose([FedAvgM(0.0), FedBN()]), "without": FedAvg()}
    split = {"num_clients": 2, "partitioner": ClassSpecific(2), "count": 40}
    found = {name: federate(tmp_path / name, network(), datamodule(**split), s) for name, s in strategies.items()}
    assert same(found["alone"], found["beside"])
    assert not same(found["alone"], found["without"])


class Raising(Callback):
    """Stops a fit after its first batch."""

    def on_train_batch_end(self, *arguments):
        raise RuntimeError("stop")


def test_a_term_goes_with_the_fit_that_it_came_with_also_after_an_error(tmp_path):
    trained = network()
    with pytest.raises(fedkd.ClientError, match="Client 0, round 0: RuntimeError: stop"):
        federate(tmp_path / "stopped", trained, datamodule(), FedNTD(5.0), trainer={"callbacks": [Raising()]})
    assert not trained.objectives
    after = federate(tmp_path / "after", network(), datamodule(), FedAvg())
    assert same(after, federate(tmp_path / "fresh", network(), datamodule(), FedAvg()))
    assert "global_not_true" not in (tmp_path / "after" / "metrics.csv").read_text()


def test_without_normalization_fedbn_is_fedavg(tmp_path):
    run = [federate(tmp_path / repr(s), module(), datamodule(), s, rounds=2) for s in (FedBN(), FedAvg())]
    assert same(*run)


def test_pooled_batch_norm_is_the_statistics_of_all_activations():
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(count, 4, generator=generator) * (1 + i) + 10 * i for i, count in enumerate((20, 30, 50))]
    updates = [
        ClientUpdate(i, len(part), 1, {}, buffers(part.mean(0), part.var(0, correction=0), count=i), {})
        for i, part in enumerate(parts)
    ]
    state = ServerState(0, Weights({}, buffers(torch.zeros(4), torch.ones(4), count=0)))
    found = PooledBatchNorm().combine_buffers(state, updates, PooledBatchNorm().client_weights(updates))
    pooled = torch.cat(parts)
    torch.testing.assert_close(found["bn.running_mean"], pooled.mean(0))
    torch.testing.assert_close(found["bn.running_var"], pooled.var(0, correction=0))
    assert int(found["bn.num_batches_tracked"]) == 2
    averaged = FedAvg().combine_buffers(state, updates, FedAvg().client_weights(updates))
    assert bool((averaged["bn.running_var"] < 0.5 * found["bn.running_var"]).all())
    assert torch.equal(averaged["other_running_var"], found["other_running_var"])  # has no mean beside it


def buffers(mean, var, count):
    tracked = torch.tensor(count)
    return {"bn.running_mean": mean, "bn.running_var": var, "bn.num_batches_tracked": tracked, "other_running_var": var}


@pytest.mark.parametrize("strategy", CORRECTIONS, ids=repr)
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, strategy):
    arguments = {"clients_per_round": 2, "seed": 1}

    def run(name, rounds):
        data = datamodule(num_clients=3, partitioner=Dirichlet(0.5), count=24)
        return federate(tmp_path / name, network(), data, copy.deepcopy(strategy), rounds, **arguments)

    whole = run("whole", 4)
    run("parts", 2)
    assert same(whole, run("parts", 4))
    if not isinstance(strategy, FedProx | FedNTD | PooledBatchNorm):
        state = load_checkpoint(next((tmp_path / "whole").rglob("*.ckpt")), {})[0]
        assert state.memory or list((tmp_path / "whole").rglob("clients/*.safetensors"))
        assert state.num_examples == 24


@pytest.mark.parametrize("strategy", CORRECTIONS, ids=repr)
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_an_empty_client_and_one_of_one_image(tmp_path, strategy, precision):
    data = datamodule(num_clients=3, count=8, partitioner=Given([[0], [], [1, 2, 3, 4, 5, 6, 7]]))
    taught = network(teacher=BrightRowTeacher() if precision == "bf16-mixed" else None)
    found = federate(tmp_path / "run", taught, data, copy.deepcopy(strategy), trainer={"precision": precision})
    assert all(value.isfinite().all() for value in found.values())
    assert {value.dtype for value in found.values()} == {torch.float32, torch.int64}
    start = network().student.state_dict()
    assert not same(found, start)


@pytest.mark.parametrize("strategy", CORRECTIONS, ids=repr)
def test_every_correction_learns(tmp_path, strategy):
    data = datamodule(num_clients=3, partitioner=Dirichlet(0.3))
    trained = module(Hidden(), teacher=BrightRowTeacher(), loss=fedkd.KD())
    federation = fedkd.Federation(
        rounds=4, strategy=copy.deepcopy(strategy), run_dir=tmp_path / "run", trainer={"accelerator": "cpu"}
    )
    assert federation.fit(trained, data)["balanced_accuracy"] > 0.6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MOON(-1.0), "contrast_weight must be >= 0, got -1.0"),
        (lambda: MOON(temperature=0.0), "temperature must be > 0, got 0.0"),
        (lambda: FedNTD(-1.0), "not_true_weight must be >= 0, got -1.0"),
        (lambda: FedGKD(num_models=0), "num_models must be >= 1, got 0"),
    ],
)
def test_wrong_values_are_named(make, message):
    with pytest.raises(fedkd.FedKDError, match=message):
        make()


def test_moon_needs_a_student_with_features(tmp_path):
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(64, 3))

        def forward(self, images):
            return images.flatten(1) @ self.weight

    with pytest.raises(fedkd.FedKDError, match="Bare has no features"):
        one_client(Bare, MOON())
