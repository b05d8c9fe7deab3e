"""Updates that are averaged as they come: with the same bits, and without all of them in memory."""

from __future__ import annotations

import weakref
from types import SimpleNamespace

import pytest
import torch
from helpers import Reversed, datamodule, module, same, weights

import fedkd
from fedkd.core.messages import ClientTask, ClientUpdate, ServerState, Weights
from fedkd.server.exchange import Exchange
from fedkd.strategies import (
    SCAFFOLD,
    Compose,
    FedAdam,
    FedAvg,
    FedBN,
    FedMD,
    FedNova,
    FedProx,
    Krum,
    NormClipping,
    Strategy,
)

START = Weights({"w": torch.zeros(1000)}, {"mean": torch.zeros(2), "count": torch.tensor(0)})
NUM_EXAMPLES = {0: 3, 1: 7, 2: 11, 3: 2}


def send(site: None, task: ClientTask) -> ClientUpdate:
    """A work: numbers that follow from the client."""
    generator = torch.Generator().manual_seed(task.client)
    return ClientUpdate(
        task.client,
        NUM_EXAMPLES.get(task.client, 5),
        delta={"w": torch.randn(1000, generator=generator)},
        buffers={"mean": torch.randn(2, generator=generator), "count": torch.tensor(task.client)},
    )


def send_nan_from_odd_clients(site: None, task: ClientTask) -> ClientUpdate:
    update = send(site, task)
    if task.client % 2:
        update.delta["w"][0] = torch.nan
    return update


def exchange(backend: fedkd.Backend) -> Exchange:
    return Exchange(backend.open(lambda client: None))


def tasks(clients) -> list[ClientTask]:
    return [ClientTask(0, client) for client in clients]


@pytest.mark.parametrize("backend", [fedkd.InProcess(), Reversed()], ids=["in order", "in reverse"])
def test_a_stream_is_in_the_clients_order_and_counts_what_a_call_counts(backend):
    called, streamed = exchange(backend), exchange(backend)
    found = list(streamed.stream(send, tasks([2, 0, 3])))
    assert [update.client for update in found] == [0, 2, 3]
    for mine, other in zip(found, called(send, tasks([2, 0, 3])), strict=True):
        assert same(dict(mine.delta), dict(other.delta))
    assert streamed.traffic == called.traffic
    assert streamed.traffic.up == 3 * (4 * 1000 + 4 * 2 + 8)


def test_a_stream_names_all_clients_whose_updates_are_not_finite():
    with pytest.raises(fedkd.FedKDError, match=r"client\(s\) \[1, 3\] sent .* is infinite or NaN"):
        list(exchange(fedkd.InProcess()).stream(send_nan_from_odd_clients, tasks(range(5))))


def test_the_average_has_the_bits_of_all_updates_together():
    updates = [send(None, task) for task in tasks(NUM_EXAMPLES)]
    for strategy, memory in ((FedAvg(), {"kept": torch.ones(1)}), (FedAdam(0.1), {}), (FedBN(), {})):
        state = ServerState(4, START, memory=memory)
        whole = strategy.aggregate(state, updates)
        streamed, left = strategy.aggregate_stream(state, iter(updates), sum(NUM_EXAMPLES.values()))
        assert same(whole.weights.tensors, streamed.weights.tensors), strategy
        assert same(dict(whole.memory), dict(streamed.memory)), strategy
        assert streamed.round == 5
        assert [update.num_examples for update in left] == list(NUM_EXAMPLES.values())


def test_the_average_is_right_when_fewer_examples_come_than_were_expected():
    updates = [send(None, task) for task in tasks((0, 2))]
    streamed, _ = FedAvg().aggregate_stream(ServerState(0, START), updates, num_examples=23)
    by_hand = (3 * updates[0].delta["w"] + 11 * updates[1].delta["w"]) / 14
    torch.testing.assert_close(streamed.weights.parameters["w"], by_hand)
    mean = (3 * updates[0].buffers["mean"] + 11 * updates[1].buffers["mean"]) / 14
    torch.testing.assert_close(streamed.weights.buffers["mean"], mean)
    assert streamed.weights.buffers["count"] == 2


def most_alive_in_a_round(strategy: Strategy, clients: int) -> int:
    """Return how many clients' deltas were in memory at once, at most, each time that a client began."""
    alive, most = [], 0

    def work(site: None, task: ClientTask) -> ClientUpdate:
        nonlocal most
        most = max(most, sum(ref() is not None for ref in alive))
        update = send(site, task)
        alive.append(weakref.ref(update.delta["w"]))
        return update

    found = exchange(fedkd.InProcess())
    context = SimpleNamespace(
        clients=dict.fromkeys(range(clients), 5),
        exchange=SimpleNamespace(stream=lambda _, tasks, least: found.stream(work, tasks, least)),
        lr_factor=1.0,
        min_clients=None,
        after_training=lambda updates: context,
    )
    if not strategy.streams:
        context.exchange = lambda _, tasks, least: found(work, tasks, least)
    strategy.round(ServerState(0, START), list(range(clients)), context)
    return most


def test_a_cohort_of_any_size_has_no_earlier_clients_delta_in_memory():
    assert most_alive_in_a_round(FedAvg(), 30) == 0
    assert most_alive_in_a_round(NormClipping(1.0), 30) == 29  # the count sees what there is to see


def test_what_streams_is_what_reads_no_single_update():
    class OwnMean(Strategy):
        def combine(self, state, updates, weights):
            return dict(updates[0].delta)

    for strategy in (FedAvg(), FedProx(0.1), FedAdam(0.1), FedBN(), Compose([FedProx(0.1), FedAdam(0.1)])):
        assert strategy.streams, strategy
    for strategy in (SCAFFOLD(), FedNova(), Krum(0), OwnMean(), Compose([FedProx(0.1), SCAFFOLD()])):
        assert not strategy.streams, strategy
    assert not FedMD(["cnn"]).streams


def test_a_strategy_that_reads_an_update_after_it_is_gone_is_told_what_to_declare(tmp_path):
    class Reads(Strategy):
        def refine(self, state, updates, context):
            context.client_models(updates)
            return state

    federation = fedkd.Federation(1, strategy=Reads(), trainer={"accelerator": "cpu"}, run_dir=tmp_path / "a")
    with pytest.raises(fedkd.FedKDError, match=r"client 0 was averaged when it came .* reads_updates = True"):
        federation.fit(module(), datamodule())

    class Declares(Reads):
        reads_updates = True

    federation = fedkd.Federation(1, strategy=Declares(), trainer={"accelerator": "cpu"}, run_dir=tmp_path / "b")
    assert federation.fit(module(), datamodule())["rounds"] == 1


def test_a_run_that_streams_has_the_bits_of_one_that_does_not(tmp_path, monkeypatch):
    def run(name):
        trained = module("resnet8")
        strategy = Compose([FedProx(0.1), FedAdam(0.01), FedBN()])
        federation = fedkd.Federation(
            2, clients_per_round=2, strategy=strategy, trainer={"accelerator": "cpu"}, run_dir=tmp_path / name
        )
        federation.fit(trained, datamodule())
        return weights(trained)

    streamed = run("streamed")
    monkeypatch.setattr(Compose, "streams", False)
    assert same(streamed, run("together"))
