"""What holds for every backend."""

from __future__ import annotations

import os

import numpy as np
import pool_works
import pytest
import torch
from helpers import Remote, Reversed

import fedkd
from fedkd.core.messages import ClientTask
from fedkd.server.exchange import Exchange


@pytest.fixture(params=["InProcess", "ProcessPool", "Stacked", "Reversed", "Remote"])
def backend(request, pool) -> fedkd.Backend:
    made = {"InProcess": fedkd.InProcess(), "ProcessPool": pool, "Stacked": fedkd.Stacked(2)}
    return {**made, "Reversed": Reversed(), "Remote": Remote()}[request.param]


def holding(value: int) -> pool_works.Holding:
    return pool_works.Holding(torch.full((10,), value), np.ones(3))


def tasks(*clients: int) -> list[ClientTask]:
    return [ClientTask(5, client) for client in clients]


def test_every_task_is_done_once_and_counted(backend):
    with backend.open(holding(2)) as workers:
        exchange = Exchange(workers)
        updates = exchange(pool_works.total, tasks(3, 0, 7))
        assert [update.client for update in updates] == [0, 3, 7]
        assert all(update.extras["sums"].tolist() == [20, 3] for update in updates)
        assert exchange.traffic.up == 3 * 16
        assert exchange(pool_works.total, []) == []


def test_it_can_be_opened_again_with_other_sites(backend):
    for value in (1, 4):
        with backend.open(holding(value)) as workers:
            (update,) = Exchange(workers)(pool_works.total, tasks(0))
        assert update.extras["sums"][0] == 10 * value


def test_an_error_names_client_and_round_and_the_next_exchange_works(backend):
    with backend.open(holding(1)) as workers:
        with pytest.raises(fedkd.ClientError, match="Client 1, round 5: ValueError: the image of client 1 is blue"):
            Exchange(workers)(pool_works.raises, tasks(1))
        assert len(Exchange(workers)(pool_works.total, tasks(0, 1))) == 2


def test_its_settings_are_written_down(backend):
    assert repr(backend).startswith(f"{type(backend).__name__}(")
    assert str(os.getpid()) not in repr(backend)


def test_an_update_that_is_missing_or_not_finite_is_an_error():
    class Forgets(fedkd.InProcess):
        def open(self, sites):
            workers = super().open(sites)
            forward = workers.map
            workers.map = lambda work, given: forward(work, list(given)[1:])
            return workers

    with Forgets().open(holding(1)) as workers, pytest.raises(fedkd.FedKDError, match=r"updates came from \[1\]"):
        Exchange(workers)(pool_works.total, tasks(0, 1))
    wrong = pool_works.Holding(torch.tensor([float("nan")]), np.ones(1))
    with fedkd.InProcess().open(wrong) as workers, pytest.raises(fedkd.FedKDError, match="infinite or NaN"):
        Exchange(workers)(pool_works.total, tasks(0))
