"""Clients that fail in a round: with ``min_clients`` the round goes on as if the others had been its cohort."""

from __future__ import annotations

import csv
import functools
import re
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from failing import Failing
from helpers import BrightRowTeacher, datamodule, images, module, same, weights

import fedkd
from fedkd.client.works import evaluate_held_out
from fedkd.core.messages import ClientUpdate, ServerState, Weights, from_bytes
from fedkd.partition import IID, Dirichlet
from fedkd.server import federation
from fedkd.server.backends.base import ClientError
from fedkd.strategies import (
    SCAFFOLD,
    ClosedFormHead,
    Compose,
    FedAvg,
    FedAvgM,
    FedMD,
    Krum,
    Strategy,
    TrimmedMean,
    fedmd,
)
from fedkd.teachers import LinearHead
from fedkd.teachers.heads import ridge

CPU = {"accelerator": "cpu"}


def fit(run_dir, strategy: Strategy, backend=None, data=None, trained=None, min_clients=2, rounds=3):
    trained = trained or module("cnn")
    run = fedkd.Federation(
        rounds,
        strategy=strategy,
        min_clients=min_clients,
        backend=backend or fedkd.InProcess(),
        run_dir=run_dir,
        trainer=CPU,
    )
    return trained, run.fit(trained, data or datamodule(4, Dirichlet(1.0), count=80))


@pytest.fixture
def without(monkeypatch):
    """Return what makes a run whose round 1 has a cohort without some clients."""

    def run(clients, run_dir, strategy, **arguments):
        def cohort(all_clients, size, *, seed, round):
            return [client for client in all_clients if round != 1 or client not in clients]

        with monkeypatch.context() as patch:
            patch.setattr(federation, "sample_cohort", cohort)
            return fit(run_dir, strategy, **arguments)

    return run


def assert_alike(left, right):
    """Averages that are summed as updates come divide by the expected total: the same but for rounding."""
    for name, value in weights(right).items():
        torch.testing.assert_close(weights(left)[name], value, rtol=1e-4, atol=1e-6)


def failures(run_dir):
    return [tuple(row.values()) for row in csv.DictReader((run_dir / "failures.csv").open())]


REASONS = {
    "raise": "FileNotFoundError: images/7.png",
    "exit": "SystemExit: 0",
    "memory": "out of memory (MemoryError): lower data.batch_size, or take a smaller student",
    "device memory": "out of memory (CUDA out of memory. Tried to allocate 2 GiB.): lower data.batch_size, or take a "
    "smaller student",
    "nan": "what it sent is infinite or NaN",
}


@pytest.mark.parametrize("how", REASONS)
@pytest.mark.parametrize("read", [False, True])
def test_the_round_is_that_of_the_others(tmp_path, without, how, read):
    with pytest.warns(UserWarning, match=re.escape(f"Client 1, round 1 failed: {REASONS[how]}")):
        trained, _ = fit(tmp_path / "failing", Failing(how, read=read))
    reference, _ = without((1,), tmp_path / "without", FedAvg())
    assert_alike(trained, reference)
    assert same(weights(trained), weights(reference)) or not read
    assert failures(tmp_path / "failing") == [("1", "1", REASONS[how])]
    rows = list(csv.DictReader((tmp_path / "failing" / "metrics.csv").open()))
    assert [row["cohort"] for row in rows] == ["0 1 2 3", "0 2 3", "0 1 2 3"]


@pytest.mark.parametrize("how", ["raise", "wrong", "exit"])
def test_of_several_at_once_the_others_are_trained(tmp_path, without, how):
    with pytest.warns(UserWarning, match="Client 1, round 1 failed"):
        trained, _ = fit(tmp_path / "failing", Failing(how), fedkd.Stacked(4))
    assert [row[:2] for row in failures(tmp_path / "failing")] == [("1", "1")]
    reference, _ = without((1,), tmp_path / "without", FedAvg(), backend=fedkd.Stacked(4))
    for name, value in weights(reference).items():
        torch.testing.assert_close(weights(trained)[name], value, rtol=1e-4, atol=1e-5)


def test_first_and_last_may_fail_and_control_variates_stay_right(tmp_path, without):
    with pytest.warns(UserWarning, match="failed"):
        trained, _ = fit(tmp_path / "failing", Compose([SCAFFOLD(), Failing("raise", (0, 3))]))
    reference, _ = without((0, 3), tmp_path / "without", Compose([SCAFFOLD(), FedAvg()]))
    assert same(weights(trained), weights(reference))
    assert [row[:2] for row in failures(tmp_path / "failing")] == [("1", "0"), ("1", "3")]


def test_a_head_is_solved_on_the_others(tmp_path, without):
    def trained():
        return module("cnn", teacher=BrightRowTeacher())

    strategy = Compose([Failing("raise", read=True), ClosedFormHead("last")])
    with pytest.warns(UserWarning, match="failed"):
        failing, _ = fit(tmp_path / "failing", strategy, trained=trained())
    strategy = Compose([FedAvg(), ClosedFormHead("last")])
    reference, _ = without((1,), tmp_path / "without", strategy, trained=trained())
    assert same(weights(failing), weights(reference))
    states = [
        from_bytes(ServerState, (tmp_path / name / "checkpoints" / "round_000002.ckpt").read_bytes()).weights.buffers
        for name in ("failing", "without")
    ]
    assert states[0]["solved_weight"].any()  # of the round in which the client failed; the last head is that of all
    assert same(dict(states[0]), dict(states[1]))
    rows = [list(csv.DictReader((tmp_path / name / "metrics.csv").open())) for name in ("failing", "without")]
    assert [row["balanced_accuracy"] for row in rows[0]] == [row["balanced_accuracy"] for row in rows[1]]


class FailsAtTheHead(ClosedFormHead):
    """Its clients fail when the head is solved."""

    def __init__(self, failing: tuple[int, ...]) -> None:
        super().__init__("last", every=None)
        self.failing = failing

    def with_head(self, state, context):
        def exchange(work, tasks, min_updates=None):
            self.told.append([task.client for task in tasks])
            noted = [replace(t, settings={"work": "gone"}) if t.client in self.failing else t for t in tasks]
            return context.exchange(work, noted, min_updates)

        return super().with_head(state, replace(context, exchange=exchange))

    told: ClassVar[list[list[int]]] = []


def test_a_client_that_fails_in_the_last_round_sends_nothing_for_the_head(tmp_path, monkeypatch):
    monkeypatch.setattr(FailsAtTheHead, "told", [])
    strategy = Compose([Failing("raise", read=True), FailsAtTheHead(())])
    with pytest.warns(UserWarning, match="Client 1, round 1 failed"):
        fit(tmp_path / "run", strategy, rounds=2)
    assert FailsAtTheHead.told == [[0, 2, 3], [0, 2, 3]]


def test_a_head_is_solved_without_the_clients_that_fail_then(tmp_path, monkeypatch):
    monkeypatch.setattr(FailsAtTheHead, "told", [])
    with pytest.warns(UserWarning, match="Client 2, round 0 failed: A head's work is a function"):
        trained, _ = fit(tmp_path / "run", FailsAtTheHead((2,)), rounds=1)
    assert FailsAtTheHead.told == [[0, 1, 2, 3], [0, 1, 3]]
    assert failures(tmp_path / "run")[0][:2] == ("0", "2")
    assert trained.student.state_dict()["solved_weight"].any()
    with pytest.raises(fedkd.FedKDError, match="Client 2, round 0: A head's work is a function"):
        fit(tmp_path / "all", FailsAtTheHead((2,)), rounds=1, min_clients=None)


def test_a_client_that_fails_at_the_head_evaluates_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(FailsAtTheHead, "told", [])
    told = []
    monkeypatch.setattr(
        "fedkd.strategies.context.RoundContext.evaluate_held_out",
        lambda self, tasks: told.append([task.client for task in tasks]) or {},
    )
    with pytest.warns(UserWarning, match="Client 2, round 0 failed"):
        fit(tmp_path, FailsAtTheHead((2,)), data=with_held_out(), rounds=1)
    assert told[0] == [0, 1, 3]


def with_held_out() -> fedkd.FederatedDataModule:
    return fedkd.FederatedDataModule.from_datasets(
        images(80), images(30, seed=1), num_clients=4, partitioner=IID(), val_fraction=0.2
    )


def test_evaluation_goes_on_without_a_client_that_fails_in_it(tmp_path, monkeypatch):
    def fails(site, task):
        if site.client == 2:
            raise FileNotFoundError("images/7.png")
        return evaluate_held_out(site, task)

    monkeypatch.setattr("fedkd.strategies.context.evaluate_held_out", fails)
    with pytest.warns(UserWarning, match="Client 2, round 0 failed: FileNotFoundError: images/7.png"):
        _, summary = fit(tmp_path / "run", FedAvg(), data=with_held_out(), rounds=1)
    assert [accuracy is None for accuracy in summary["client_val_accuracy"]] == [False, False, True, False]
    assert [row[:2] for row in failures(tmp_path / "run")] == [("0", "2")]
    with pytest.raises(ClientError, match="Client 2, round 0"):
        fit(tmp_path / "all", FedAvg(), data=with_held_out(), rounds=1, min_clients=None)


def test_a_client_that_fails_in_the_last_round_has_no_accuracy_of_the_last_student(tmp_path):
    with pytest.warns(UserWarning, match="Client 1, round 1 failed"):
        _, summary = fit(tmp_path, Failing("raise"), data=with_held_out(), rounds=2)
    assert [accuracy is None for accuracy in summary["client_val_accuracy"]] == [False, True, False, False]
    last = list(csv.DictReader((tmp_path / "metrics.csv").open()))[-1]
    assert summary["val_accuracy"] == pytest.approx(float(last["val_accuracy"]), abs=1e-6)


def test_another_head_is_that_of_the_others_too(tmp_path, monkeypatch):
    """The first exchange counts the images of a client that fails in the second."""

    class Late(FailsAtTheHead):
        def __init__(self, failing):
            super().__init__(failing)
            self.head = LinearHead(rounds=20)

        def with_head(self, state, context):
            def exchange(work, tasks, min_updates=None):
                self.told.append(None)
                late = len(self.told) > 1
                noted = [replace(t, settings={"work": "gone"}) if late and t.client == 2 else t for t in tasks]
                return context.exchange(work, noted, min_updates)

            return ClosedFormHead.with_head(self, state, replace(context, exchange=exchange))

    monkeypatch.setattr(FailsAtTheHead, "told", [])
    still = functools.partial(torch.optim.SGD, lr=0.0)
    with pytest.warns(UserWarning, match="Client 2, round 0 failed"):
        failing, _ = fit(tmp_path / "late", Late((2,)), trained=module("cnn", optimizer=still), rounds=1)
    whole, _ = fit(
        tmp_path / "whole",
        ClosedFormHead("last", every=None, head=LinearHead(rounds=20)),
        trained=module("cnn", optimizer=still),
        rounds=1,
    )
    norms = [float(each.student.state_dict()["solved_weight"].norm()) for each in (failing, whole)]
    assert 0.85 < norms[0] / norms[1] < 1.2


@pytest.mark.parametrize("backend", [fedkd.InProcess(), fedkd.Stacked(4)])
def test_a_site_that_cannot_be_made_is_the_clients_failure(backend):
    data, trained = datamodule(), module()
    data.setup()
    trained.build(data.classes, data.image_shape)
    sites = data.sites(modules=(trained,), trainer=CPU)

    def some_sites(client):
        if client == 1:
            raise FileNotFoundError("images.npy")
        return sites(client)

    tasks = [fedkd.ClientTask(3, client, Weights.of(trained.student)) for client in range(3)]
    with backend.open(some_sites) as workers:
        outcomes = list(workers.map(fedkd.train, tasks))
    failed = [each for each in outcomes if isinstance(each, ClientError)]
    assert [str(each) for each in failed] == ["Client 1, round 3: FileNotFoundError: images.npy"]
    assert sorted(each.client for each in outcomes if isinstance(each, ClientUpdate)) == [0, 2]


def test_too_few_end_the_run_and_the_rounds_before_stay(tmp_path):
    with (
        pytest.warns(UserWarning, match="failed"),
        pytest.raises(
            fedkd.FedKDError, match=r"Round 1: 1 of 4 clients succeeded, and min_clients is 2\. client 0: File"
        ),
    ):
        fit(tmp_path / "run", Failing("raise", (0, 1, 3)))
    assert len(list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))) == 1
    assert len(failures(tmp_path / "run")) == 3


def test_without_min_clients_the_first_failure_ends_the_run(tmp_path):
    with pytest.raises(ClientError, match=r"Client 1, round 1: FileNotFoundError: images/7\.png") as raised:
        fit(tmp_path / "run", Failing("raise"), min_clients=None)
    assert isinstance(raised.value.__cause__, FileNotFoundError)
    assert not (tmp_path / "run" / "failures.csv").exists()


def test_a_client_with_a_student_of_its_own_keeps_it(tmp_path):
    class FailingFedMD(FedMD):
        def local_rule(self, state, client):
            rule = Failing("raise").local_rule(state, client)
            return super().local_rule(state, client) if type(rule).__name__ == "LocalRule" else rule

    data = fedkd.FederatedDataModule.from_datasets(images(60), images(30, seed=1), num_clients=3, public_fraction=0.2)
    with pytest.warns(UserWarning, match="Client 1, round 1 failed"):
        _, summary = fit(tmp_path, FailingFedMD(["cnn"]), data=data, rounds=2)
    assert [each["client"] for each in summary["clients"]] == [0, 1, 2]


@pytest.mark.parametrize(
    "how", ["die", *(pytest.param(how, marks=pytest.mark.slow) for how in ("hang", "device memory"))]
)
def test_a_pool_replaces_a_worker_that_dies_or_hangs(tmp_path, without, how, pool, monkeypatch):
    if how == "hang":
        monkeypatch.setattr(pool, "client_timeout", 20.0)
    reasons = {
        "die": "its worker process died twice, with signal 9",
        "hang": "it took longer than client_timeout, 20 s",
        "device memory": re.escape("out of memory (CUDA out of memory. Tried"),
    }
    with pytest.warns(UserWarning, match=f"Client 1, round 1 failed: {reasons[how]}"):
        trained, _ = fit(tmp_path / "failing", Failing(how), pool, rounds=2)
    reference, _ = without((1,), tmp_path / "without", FedAvg(), rounds=2)
    assert_alike(trained, reference)


def test_private_averages_keep_the_size_of_the_cohort():
    pytest.importorskip("dp_accounting")
    from fedkd.strategies import DPFedAvg

    start = ServerState(0, Weights({"w": torch.zeros(2)}), cohort_size=4)
    updates = [ClientUpdate(client, 1, delta={"w": torch.tensor([0.3, 0.0])}) for client in range(3)]
    private = DPFedAvg(1.0, 0.0)
    torch.testing.assert_close(private.aggregate(start, updates).weights.parameters["w"], torch.tensor([0.225, 0.0]))
    noisy = [DPFedAvg(1.0, 2.0).aggregate(start, updates[:count]).weights.parameters["w"] for count in (1, 3)]
    torch.testing.assert_close(noisy[1] - noisy[0], torch.tensor([0.15, 0.0]))  # the noise is that of four clients


@pytest.mark.parametrize(("value", "message"), [(0, "min_clients must be >= 1 and <= 2, got 0"), (3, "got 3")])
def test_wrong_values_are_one_line(value, message):
    with pytest.raises(fedkd.FedKDError, match=message):
        fedkd.Federation(clients_per_round=2, min_clients=value)


def test_more_than_there_are_is_one_line_before_any_work(tmp_path):
    with pytest.raises(fedkd.FedKDError, match="min_clients must be >= 1 and <= 4, got 5"):
        fit(tmp_path / "run", FedAvg(), min_clients=5)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("strategy", "min_clients", "message"),
    [
        (Krum(1), 2, "min_clients 2 lets 2 clients end a round: num_byzantine 1 needs a cohort of more than 4 clients"),
        (Compose([TrimmedMean(0.4), FedAvgM()]), 4, r"lets 4 clients .*TrimmedMean\(0\.4\) leaves none of 4"),
    ],
)
def test_a_rule_that_needs_more_clients_is_one_line_before_any_work(tmp_path, strategy, min_clients, message):
    data = datamodule(5, IID(), count=60)
    with pytest.raises(fedkd.FedKDError, match=message):
        fit(tmp_path / "run", strategy, min_clients=min_clients, data=data)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("work", ["predict", "distill_pool"])
def test_a_client_may_fail_at_the_pool(tmp_path, monkeypatch, work):
    do = getattr(fedmd, work)

    def fails(site, task):
        if site.client == 1:
            raise FileNotFoundError("images/7.png")
        return do(site, task)

    monkeypatch.setattr(fedmd, work, fails)
    data = fedkd.FederatedDataModule.from_datasets(images(60), images(30, seed=1), num_clients=3, public_fraction=0.2)
    with pytest.warns(UserWarning, match="Client 1, round 0 failed: FileNotFoundError"):
        _, summary = fit(tmp_path / "run", FedMD(["cnn"]), data=data, rounds=1)
    assert [each["client"] for each in summary["clients"]] == [0, 1, 2]
    assert [row[:2] for row in failures(tmp_path / "run")] == [("0", "1")]
    with pytest.raises(ClientError, match="Client 1, round 0"):
        fit(tmp_path / "all", FedMD(["cnn"]), data=data, rounds=1, min_clients=None)


class Pixels(fedkd.Teacher):
    """Its head is yet to be fitted."""

    def features(self, images):
        return images.flatten(1)


def test_what_fails_before_the_rounds_ends_the_run(tmp_path, monkeypatch):
    def fails(site, task):
        raise RuntimeError("no features")

    monkeypatch.setattr(ridge, "send_ridge_statistics", fails)
    with pytest.raises(ClientError, match="Client 0, round 0: RuntimeError: no features"):
        fit(tmp_path / "run", FedAvg(), trained=module("cnn", teacher=Pixels()))


def test_a_wrong_timeout_is_one_line():
    with pytest.raises(fedkd.FedKDError, match="client_timeout must be > 0"):
        fedkd.ProcessPool(client_timeout=0)
