"""What federated averaging must equal, whatever the code looks like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from helpers import Reversed, datamodule, module, same, sgd, weights
from lightning.pytorch import Callback
from torch import nn

import fedkd
from fedkd.core.messages import ClientTask, ClientUpdate, LocalRule, Weights
from fedkd.partition import IID, ClassSpecific, Dirichlet, Partitioner
from fedkd.strategies import FedAvg


def federate(tmp_path, data=None, student=None, name="run", **arguments):
    """Run a federation and return the global student's weights."""
    trained = arguments.pop("module", None) or module(student)
    arguments = {"rounds": 2, "run_dir": tmp_path / name, "trainer": {"accelerator": "cpu"}, **arguments}
    fedkd.Federation(**arguments).fit(trained, data or datamodule())
    return weights(trained)


def test_one_client_gives_that_clients_weights(tmp_path):
    data, trained = datamodule(num_clients=1), module()
    data.setup()
    trained.build(data.classes, data.image_shape)
    site = data.site(0, modules=(trained,), trainer={"accelerator": "cpu"})
    update = fedkd.train(site, ClientTask(0, 0, Weights.of(trained.student)))
    alone = weights(trained)
    federated = federate(tmp_path, datamodule(num_clients=1), rounds=1)
    for name, value in federated.items():
        torch.testing.assert_close(value, alone[name], rtol=0, atol=1e-7)  # w + (w' - w) rounds
    assert update.num_steps == 6
    assert update.num_examples == 60


@pytest.mark.parametrize("partitioner", [IID(), Dirichlet(0.3), ClassSpecific(1)])
def test_one_full_batch_step_a_client_is_one_central_step(tmp_path, partitioner):
    data = datamodule(num_clients=3, partitioner=partitioner, batch_size=1000)
    federated = federate(tmp_path, data, rounds=3)

    central = module().student
    optimizer = torch.optim.SGD(central.parameters(), lr=0.1)
    inputs, targets = data.train.images.float() / 255, data.train.targets
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(central(inputs), targets).backward()
        optimizer.step()
    for name, value in central.state_dict().items():
        torch.testing.assert_close(federated[name], value, rtol=0, atol=1e-6)


@dataclass(frozen=True)
class Owners(Partitioner):
    """A partition that is written down: the owner of each image."""

    owners: tuple[int, ...]

    def assign(self, labels, num_clients, rng):
        return np.array(self.owners)


def test_the_order_of_clients_does_not_matter(tmp_path):
    def run(name, backend):
        student = fedkd.students.create("resnet8", num_classes=3, in_channels=1, image_size=8)
        data = datamodule(augmentation=fedkd.data.Augmentation(crop_padding=1, flip=True))
        torch.manual_seed(0)
        for parameter in student.parameters():
            nn.init.normal_(parameter, std=0.1)
        return federate(tmp_path, data, student, name, backend=backend)

    assert same(run("forward", fedkd.InProcess()), run("backward", Reversed()))


def test_threads_are_set_for_the_clients_and_given_back(tmp_path):
    seen = []

    class Watch(FedAvg):
        def local_rule(self, state, client):
            return Watching()

    @dataclass(frozen=True)
    class Watching(LocalRule):
        def start(self, task):
            seen.append(torch.get_num_threads())
            return task.weights

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    federate(tmp_path, rounds=1, strategy=Watch(), backend=fedkd.InProcess(threads=1))
    assert seen == [1, 1, 1]
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
    with pytest.raises(fedkd.FedKDError, match="threads must be >= 1 and <= 1024, got 0"):
        fedkd.InProcess(threads=0)


def test_the_seed_decides_and_nothing_else(tmp_path):
    def run(name, seed, disturbance):
        trained = fedkd.DistillationModule("cnn")
        torch.rand(disturbance)  # the caller's generator must not matter for a student given by name
        return federate(tmp_path, datamodule(), name=name, module=trained, seed=seed, clients_per_round=2, rounds=1)

    first = run("a", 0, 1)
    assert same(first, run("b", 0, 5))
    assert not same(first, run("c", 1, 1))


def test_weights_are_examples(tmp_path):
    # two clients of 1 and 3 images: the mean leans 3 to 1, checked against the updates themselves
    data = datamodule(num_clients=2, count=4, partitioner=Owners((0, 1, 1, 1)))
    trained = module()
    data.setup()
    trained.build(data.classes, data.image_shape)
    start = Weights.of(trained.student)
    sites = data.sites(modules=(trained.for_clients(),), trainer={"accelerator": "cpu"})
    updates = [fedkd.train(sites(client), ClientTask(0, client, start)) for client in (0, 1)]
    federated = federate(tmp_path, datamodule(num_clients=2, count=4, partitioner=Owners((0, 1, 1, 1))), rounds=1)
    for name, value in start.parameters.items():
        expected = value + 0.25 * updates[0].delta[name] + 0.75 * updates[1].delta[name]
        torch.testing.assert_close(federated[name], expected, rtol=0, atol=1e-7)


def test_a_client_without_data_is_skipped(tmp_path):
    data = datamodule(num_clients=3, count=6, partitioner=Owners((0, 0, 0, 2, 2, 2)))
    trained = module()
    summary = fedkd.Federation(rounds=2, run_dir=tmp_path / "run", trainer={"accelerator": "cpu"}).fit(trained, data)
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    header = rows[0].split(",")
    assert [row.split(",")[header.index("cohort")] for row in rows[1:]] == ["0 2", "0 2"]
    assert summary["rounds"] == 2


def test_a_client_of_one_image_trains_every_kind_of_norm(tmp_path):
    for norm in ("batch", "group"):
        data = datamodule(num_clients=2, count=4, partitioner=Owners((0, 1, 1, 1)))
        trained = module("resnet8", student_options={"norm": norm})
        federated = federate(tmp_path, data, name=norm, module=trained)
        assert all(value.isfinite().all() for value in federated.values())


def test_precision_and_clipping_reach_the_clients(tmp_path):
    plain = federate(tmp_path, name="plain")
    half = federate(tmp_path, name="half", trainer={"accelerator": "cpu", "precision": "bf16-mixed"})
    clipped = federate(tmp_path, name="clipped", trainer={"accelerator": "cpu", "gradient_clip_val": 1e-9})
    start = weights(module())
    assert not same(plain, half)
    for name, value in plain.items():
        torch.testing.assert_close(half[name], value, rtol=0, atol=2e-2)
        torch.testing.assert_close(clipped[name], start[name], rtol=0, atol=1e-7)
        assert half[name].dtype == torch.float32


def test_true_half_precision_stays_on_the_clients(tmp_path):
    start = module("resnet8")
    federated = federate(tmp_path, module=start, trainer={"accelerator": "cpu", "precision": "bf16-true"})
    assert {value.dtype for value in federated.values()} == {torch.float32, torch.int64}
    saved = fedkd.load_student(tmp_path / "run").state_dict()
    assert {value.dtype for value in saved.values()} == {torch.float32, torch.int64}


def test_a_client_that_diverges_is_named(tmp_path):
    trained = module(optimizer=sgd(3e38))
    with pytest.raises(
        fedkd.FedKDError, match=r"Round \d: what client\(s\) \[.*\] sent from 'train' is infinite or NaN.*learning rate"
    ):
        federate(tmp_path, module=trained, rounds=5)


@pytest.mark.parametrize("part", ["delta", "buffers", "extras"])
def test_whatever_is_sent_must_be_finite(part):
    sent = {name: {"w": torch.ones(2)} for name in ("delta", "buffers", "extras")}
    assert ClientUpdate(0, 1, 1, metrics={}, **sent).is_finite
    sent[part] = {"w": torch.tensor([1.0, float("nan")])}
    assert not ClientUpdate(0, 1, 1, metrics={}, **sent).is_finite


class CountsFits(Callback):
    """Keeps state, as Lightning's own callbacks do."""

    seen: ClassVar[list[int]] = []

    def __init__(self):
        self.fits = 0

    def on_fit_start(self, trainer, pl_module):
        self.fits += 1
        self.seen.append(self.fits)


def test_configured_callbacks_are_fresh_on_every_client(tmp_path):
    callback = CountsFits()
    federate(tmp_path, rounds=2, trainer={"accelerator": "cpu", "callbacks": [callback]})
    assert CountsFits.seen == [1] * 6
    assert callback.fits == 0
