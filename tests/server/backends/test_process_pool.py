"""The pool of processes: the same bits, no copies, and what happens when a worker dies or a client raises."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pool_works
import pytest
import torch
from helpers import datamodule, module, same, weights
from torch import nn

import fedkd
from fedkd.core.messages import ClientTask
from fedkd.server.backends.process_pool import worker_environment
from fedkd.server.exchange import Exchange


def holding(size: int = 1000) -> pool_works.Holding:
    return pool_works.Holding(torch.arange(size) % 7, np.arange(size) % 5)


def tasks(count: int = 4, **settings) -> list[ClientTask]:
    return [ClientTask(2, client, settings=settings) for client in range(count)]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def wait_until(holds, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def pids(pool: fedkd.ProcessPool) -> list[int]:
    return [each.process.pid for each in pool._processes if each.process is not None]


@pytest.mark.slow
def test_tasks_are_spread_over_processes_with_one_thread_each(pool, tmp_path):
    held = holding(100_000)  # above what is mapped
    with pool.open(held) as workers:
        list(workers.map(pool_works.waits_for_the_next, tasks(2, folder=str(tmp_path), last=1)))  # both have started
        updates = Exchange(workers)(pool_works.total, tasks())
    assert [update.client for update in updates] == [0, 1, 2, 3]
    for update in updates:
        assert update.extras["sums"].tolist() == [held.images.sum(), held.numbers.sum()]
        assert update.metrics["threads"] == 1
        assert update.metrics["parent"] == os.getpid()
    assert {update.metrics["pid"] for update in updates} == set(pids(pool))
    assert len(set(pids(pool))) == 2


def test_the_exchange_orders_what_comes_in_any_order(pool, tmp_path):
    with pool.open(holding()) as workers:
        work = pool_works.waits_for_the_next
        came = [update.client for update in workers.map(work, tasks(2, folder=str(tmp_path), last=1))]
        assert came == [1, 0]
        (again := tmp_path / "again").mkdir()
        updates = Exchange(workers)(work, tasks(2, folder=str(again), last=1))
        assert [update.client for update in updates] == [0, 1]


def test_processes_stay_when_the_pool_is_opened_again(pool):
    with pool.open(holding()) as workers:
        list(workers.map(pool_works.total, tasks()))
    before = pids(pool)
    with pool.open(holding(70_000)) as workers:
        (update, *_) = workers.map(pool_works.total, tasks())
    assert update.extras["sums"][0] == (torch.arange(70_000) % 7).sum()
    assert pids(pool) == before


def test_the_next_run_sees_what_was_changed_in_place(pool):
    held = holding(100_000)

    def total():
        with pool.open(held) as workers:
            return Exchange(workers)(pool_works.total, tasks(1))[0].extras["sums"].tolist()

    before = total()
    pool.shutdown()  # as at the end of a run: its files go, and its processes stay
    assert not any(path.is_file() for path in pool._folder.rglob("*"))
    held.images.add_(1)
    assert total() == [before[0] + 100_000, before[1]]


def test_large_content_is_mapped_and_not_copied(pool):
    """Two workers read 160 MB; neither takes a tenth of it for itself."""
    held = holding(10_000_000)
    with pool.open(held) as workers:
        for update in Exchange(workers)(pool_works.memory, tasks(2)):
            assert update.metrics["after"] - update.metrics["before"] < 16e6


def test_what_a_worker_writes_stays_with_it(pool):
    held = holding(100_000)
    with pool.open(held) as workers:
        written = Exchange(workers)(pool_works.write_into, tasks(1))
        (_, other) = Exchange(workers)(pool_works.total, tasks(2))  # client 1 is in the other process
    assert written[0].extras["sums"].tolist() == [0, 0]
    assert other.extras["sums"].tolist() == [held.images.sum(), held.numbers.sum()]
    assert held.images.sum() > 0


@pytest.mark.slow  # tests/server/test_failures.py has one that dies twice
def test_a_worker_that_dies_is_replaced_and_its_task_run_again(tmp_path):
    log = tmp_path / "log"
    with fedkd.ProcessPool(2) as pool, pool.open(holding()) as workers:
        updates = Exchange(workers)(pool_works.dies, tasks(log=str(log), times=1, how="kill"))
        assert [update.client for update in updates] == [0, 1, 2, 3]
        assert log.read_text() == "xx"
        list(workers.map(pool_works.late, tasks()))
        assert len(set(pids(pool))) == 2


@pytest.mark.slow
def test_a_task_that_kills_two_workers_is_an_error(tmp_path):
    with fedkd.ProcessPool(1) as pool, pool.open(holding()) as workers:
        with pytest.raises(
            fedkd.ClientError, match="Client 1, round 2: its worker process died twice, with exit status 3"
        ):
            Exchange(workers)(pool_works.dies, tasks(log=str(tmp_path / "log"), times=9, how="exit"))
        assert len(Exchange(workers)(pool_works.total, tasks())) == 4  # the pool works on


def test_an_exception_comes_with_the_client_and_its_traceback(pool):
    with pool.open(holding()) as workers:
        with pytest.raises(
            fedkd.ClientError, match=r"^Client 1, round 2: ValueError: the image of client 1 is blue$"
        ) as e:
            Exchange(workers)(pool_works.raises, tasks())
        assert "in raise_deep_down" in str(e.value.__cause__)
        assert len(Exchange(workers)(pool_works.total, tasks())) == 4  # nothing is left of the round before


@pytest.mark.slow
def test_who_stops_listening_stops_the_work():
    with fedkd.ProcessPool(1) as pool, pool.open(holding()) as workers:
        coming = workers.map(pool_works.late, tasks(4))
        next(coming)
        coming.close()
        start = time.monotonic()
        assert len(Exchange(workers)(pool_works.total, tasks())) == 4
        assert time.monotonic() - start < 60


@pytest.mark.slow
def test_shutdown_leaves_no_process_and_no_file():
    pool = fedkd.ProcessPool(1)
    with pool.open(holding(100_000)) as workers:
        list(workers.map(pool_works.total, tasks()))
    started, folder = pids(pool), pool._store.folder
    assert folder.is_dir()
    pool.shutdown()
    assert not any(map(is_alive, started))
    assert not folder.exists()
    with pool.open(holding()) as workers:  # and it can start again
        assert len(list(workers.map(pool_works.total, tasks()))) == 4
    pool.shutdown()


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent("""
        import sys, fedkd, pool_works, torch, numpy
        from fedkd.core.messages import ClientTask

        with fedkd.ProcessPool(1) as pool:
            workers = pool.open(pool_works.Holding(torch.zeros(3), numpy.zeros(3)))
            (update,) = workers.map(pool_works.total, [ClientTask(0, 0)])
            print(update.metrics["pid"], flush=True)
            sys.stdin.read()
        """)
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    worker = int(parent.stdout.readline())
    assert is_alive(worker)
    parent.kill()
    parent.wait()
    wait_until(lambda: not is_alive(worker))
    parent.stdin.close()
    parent.stdout.close()


@pytest.mark.slow
def test_one_worker_gives_the_same_bits_and_stops_when_the_run_ends(tmp_path):
    def fit(backend, name):
        trained = module()
        federation = fedkd.Federation(rounds=2, backend=backend, run_dir=tmp_path / name)
        federation.fit(trained, datamodule(num_clients=5))
        return weights(trained)

    pool = fedkd.ProcessPool(workers=1)
    assert same(fit(fedkd.InProcess(), "one"), fit(pool, "two"))
    assert pids(pool) == []


class Wrong(nn.Module):
    """A student that fails where it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(64, 3)

    def forward(self, images):
        if self.training and images.any():  # black images are those of the check before the run
            raise RuntimeError("this student does not train")
        return self.net(images.flatten(1))


@pytest.mark.slow
def test_a_federation_says_which_client_failed(pool, tmp_path):
    federation = fedkd.Federation(rounds=2, backend=pool, run_dir=tmp_path)
    with pytest.raises(fedkd.ClientError, match=r"Client [012], round 0: RuntimeError: this student does not train"):
        federation.fit(module(Wrong()), datamodule())


def test_what_does_not_pickle_is_named(tmp_path):
    trained = fedkd.DistillationModule(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), optimizer=lambda p: None)
    federation = fedkd.Federation(backend=fedkd.ProcessPool(1), run_dir=tmp_path)
    with pytest.raises(fedkd.FedKDError, match=r"ProcessPool cannot send sites.*lambda.*does not pickle"):
        federation.fit(trained, datamodule())


@pytest.mark.parametrize(("visible", "expected"), [(None, ["0", "1", "0"]), ("4,7", ["4", "7", "4"])])
def test_workers_take_the_visible_gpus_in_turn(visible, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    made = [worker_environment(number, 3) for number in range(3)]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in made] == expected
    assert made[0]["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("values", [{"workers": 0}, {"threads": 0}, {"workers": 1.5}])
def test_a_value_out_of_range_is_an_error(values):
    with pytest.raises(fedkd.FedKDError, match="must be"):
        fedkd.ProcessPool(**values)
