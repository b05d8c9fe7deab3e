"""`Federation.check` tells what a run takes, refuses what a run refuses, and leaves nothing behind."""

from __future__ import annotations

import csv
import math
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import BrightRowTeacher, LinearStudent, images
from torch import nn

import fedkd
from fedkd import FedKDError, strategies
from fedkd.cli.main import main
from fedkd.core.storage import cache_dir
from fedkd.data import FederatedDataModule
from fedkd.partition import IID, Dirichlet
from fedkd.server.check.forecast import line, paired
from fedkd.server.check.measure import Call
from fedkd.server.check.sample import choose_clients, count_batches, evenly
from fedkd.teachers import GaussianPrivacy, RidgeHead

SGD = partial(torch.optim.SGD, lr=0.05)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Make the small runs as short as can be. What is counted does not depend on it."""
    monkeypatch.setattr("fedkd.server.check.check.ROUND_SECONDS", 0.05)
    monkeypatch.setattr("fedkd.server.check.check.TOO_SLOW", 0.0)  # one small run
    monkeypatch.setattr("fedkd.server.check.measure.TEACHER_SECONDS", 0.02)


def data(**settings) -> FederatedDataModule:
    """Return 240 training images of three classes at six clients."""
    settings = {"num_clients": 6, "partitioner": Dirichlet(1.0), "batch_size": 8, **settings}
    return FederatedDataModule.from_datasets(images(240), images(30, seed=1), **settings)


def module(teacher: bool = True, student: nn.Module | None = None) -> fedkd.DistillationModule:
    torch.manual_seed(0)
    return fedkd.DistillationModule(student or LinearStudent(), BrightRowTeacher() if teacher else None, optimizer=SGD)


def rows_of(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


RUNS = {
    "plain": ({}, {"strategy": strategies.FedAvg()}),
    "with memory, held out": ({"val_fraction": 0.3}, {"strategy": strategies.SCAFFOLD()}),
    "closed form": ({}, {"strategy": "auto"}),
    "mutual": ({"public_fraction": 0.4, "batch_size": 30}, {"strategy": strategies.FedMD(("cnn", "cnn"))}),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "mutual" else []) for name in RUNS]
)
def test_bytes_batches_and_files_are_those_of_the_run(tmp_path, monkeypatch, name):
    of_data, of_run = RUNS[name]
    if "public_fraction" in of_data:  # what is sent for a pool is found from two small runs
        monkeypatch.setattr("fedkd.server.check.check.TOO_SLOW", 8.0)
    trainer = {"accelerator": "cpu", "max_epochs": 2}
    federation = fedkd.Federation(rounds=2, run_dir=tmp_path / "run", trainer=trainer, **of_run)
    found = federation.check(module(), data(**of_data))
    assert not list(tmp_path.iterdir())
    summary = federation.fit(module(), data(**of_data))
    row = rows_of(tmp_path / "run")[1]
    assert (found.bytes_up, found.bytes_down) == (int(row["bytes_up"]), int(row["bytes_down"]))
    assert found.prepare_bytes == (summary["teacher"]["head_bytes_up"], summary["teacher"]["head_bytes_down"])
    assert found.batches == int(row["num_steps"])
    on_disk = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert found.run_bytes == pytest.approx(on_disk, rel=0.25)


def test_the_last_rounds_work_counts_once(tmp_path):
    strategy = strategies.ClosedFormHead("last", every=None)  # the head is solved in the last round alone
    federation = fedkd.Federation(rounds=4, run_dir=tmp_path / "run", trainer={"accelerator": "cpu"}, strategy=strategy)
    found = federation.check(module(), data())
    federation.fit(module(), data())
    rows = rows_of(tmp_path / "run")
    assert (found.bytes_up, found.bytes_down) == (int(rows[1]["bytes_up"]), int(rows[1]["bytes_down"]))
    assert int(rows[-1]["bytes_up"]) > found.bytes_up


def test_clients_without_images_send_for_a_private_head(tmp_path):
    def made():
        return FederatedDataModule.from_datasets(
            images(150), images(30, seed=1), num_clients=12, partitioner=Dirichlet(0.05)
        )

    private = RidgeHead(privacy=GaussianPrivacy(epsilon=50.0))
    strategy = strategies.ClosedFormHead("last", every=None, head=private)
    federation = fedkd.Federation(rounds=1, run_dir=tmp_path / "run", trainer={"accelerator": "cpu"}, strategy=strategy)
    found = federation.check(module(), made())
    federation.fit(module(), trained := made())
    assert any(len(shard) == 0 for shard in trained.shards)
    (row,) = rows_of(tmp_path / "run")
    assert (found.bytes_up, found.bytes_down) == (int(row["bytes_up"]), int(row["bytes_down"]))


def test_calls_are_paired_by_their_work():
    calls = {name: Call(name, (0,), 1.0, 0, 0) for name in ("train", "evaluate_held_out", "send_ridge_statistics")}
    train, held_out, solve = calls.values()
    assert list(paired([train, held_out], [held_out, train])) == [(held_out, held_out), (train, train)]
    assert list(paired([train, solve], [train])) == [(train, train)]
    other = Call("train", (1,), 2.0, 0, 0)
    assert list(paired([train], [train, other])) == [(train, train), (other, other)]


def test_a_check_before_a_run_changes_no_bit_of_it(tmp_path):
    def final(folder: str, checked: bool) -> dict[str, torch.Tensor]:
        federation = fedkd.Federation(rounds=2, run_dir=tmp_path / folder, trainer={"accelerator": "cpu"})
        mine, shards = module(), data()
        if checked:
            before = sorted(cache_dir().rglob("*"))
            federation.check(mine, shards)
            assert sorted(cache_dir().rglob("*")) == before
            assert mine.teacher.head is None or not mine.teacher.head_is_fitted
        federation.fit(mine, shards)
        return safetensors.torch.load_file(tmp_path / folder / "student.safetensors")

    alone, checked = final("alone", False), final("checked", True)
    assert all(torch.equal(value, checked[name]) for name, value in alone.items())


def test_it_tells_which_teacher_outputs_are_there(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path / "cache"))
    federation = fedkd.Federation(rounds=1, run_dir=tmp_path / "run", trainer={"accelerator": "cpu"})
    fresh = federation.check(module(), data())
    assert [(each.images, each.missing) for each in fresh.teacher] == [(240, 240), (30, 30)]
    federation.fit(module(), data())
    kept = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.npy"))
    assert fresh.cache_bytes == pytest.approx(kept, rel=0.1, abs=300)  # the headers of the files
    again = fedkd.Federation(rounds=1, trainer={"accelerator": "cpu"}, run_dir=tmp_path / "b").check(module(), data())
    assert [(each.images, each.missing) for each in again.teacher] == [(240, 0), (30, 0)]
    assert again.cache_bytes == 0


class Slow(LinearStudent):
    """Takes 4 ms a batch, whatever the machine is doing."""

    def forward(self, images):
        time.sleep(0.004)
        return super().forward(images)


@pytest.mark.slow
def test_the_time_of_a_round_is_about_right(tmp_path, monkeypatch):
    monkeypatch.setattr("fedkd.server.check.check.TOO_SLOW", 8.0)
    monkeypatch.setattr("fedkd.server.check.check.ROUND_SECONDS", 0.3)
    shards = FederatedDataModule.from_datasets(
        images(900), images(30, seed=1), num_clients=3, partitioner=IID(), batch_size=4
    )
    federation = fedkd.Federation(
        rounds=2, strategy=strategies.FedAvg(), run_dir=tmp_path / "run", trainer={"accelerator": "cpu"}
    )
    found = federation.check(module(teacher=False, student=Slow()), shards)
    federation.fit(module(teacher=False, student=Slow()), shards)
    seconds = float(rows_of(tmp_path / "run")[1]["seconds"])
    assert seconds > 225 * 0.004
    assert seconds / 2 < found.round_seconds < seconds * 2


def test_it_refuses_what_a_run_refuses(tmp_path):
    federation = fedkd.Federation(rounds=1, run_dir=tmp_path / "run", trainer={"accelerator": "cpu"})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").touch()
    with pytest.raises(FedKDError, match="already holds a run"):
        federation.check(module(), data())
    federation.run_dir = tmp_path / "file"
    federation.run_dir.touch()
    with pytest.raises(FedKDError, match="cannot be made: it is a file"):
        federation.check(module(), data())
    federation.run_dir = None
    with pytest.raises(FedKDError, match="ckpt_path: No round checkpoint"):
        federation.check(module(), data(), ckpt_path=tmp_path / "missing.ckpt")
    with pytest.raises(FedKDError, match="clients_per_round"):
        fedkd.Federation(clients_per_round=7).check(module(), data())
    with pytest.raises(FedKDError, match="fit needs a DistillationModule"):
        federation.check(nn.Linear(1, 1), data())


def test_what_fails_in_a_small_run_is_told_without_its_folder(tmp_path):
    federation = fedkd.Federation(
        rounds=1, strategy=strategies.FedAvg(), run_dir=tmp_path / "run", trainer={"accelerator": "cpu"}
    )
    exploding = fedkd.DistillationModule(LinearStudent(), optimizer=partial(torch.optim.SGD, lr=math.inf))
    with pytest.raises(FedKDError, match="infinite or NaN") as caught:
        federation.check(exploding, data())
    assert "finished" not in str(caught.value)
    assert "run directory" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_command_prints_a_table_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    short = ["--data.batch_size", "64", "--federation.rounds", "2", "--model.teacher", "null"]
    main(["check", "--data.public_fraction", "0.5", "--trainer.accelerator", "cpu", "--model.student", "cnn", *short])
    told = capsys.readouterr().out
    for part in ("the whole run: about", "sent in a round", "10 classes"):
        assert part in told
    with pytest.raises(SystemExit) as ended:
        main(["check", "--trainer.accelerator", "cpu", "--federation.strategy", "FedDF"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_an_error(tmp_path, monkeypatch):
    full = type("Usage", (), {"free": 10})()
    monkeypatch.setattr("fedkd.server.check.check.shutil.disk_usage", lambda path: full)
    federation = fedkd.Federation(rounds=1, run_dir=tmp_path / "run", trainer={"accelerator": "cpu"})
    found = federation.check(module(teacher=False), data())
    with pytest.raises(FedKDError, match=r"The run directory needs .* and 10 B are free"):
        found.check_disk()
    assert "<pre" in found._repr_html_()
    assert "10 B are free" in str(found)


def test_a_line_goes_through_both_points_unless_it_would_fall():
    through = line((1.0, 3.0), (4.0, 9.0))
    assert [through(x) for x in (1.0, 4.0, 10.0)] == [3.0, 9.0, 21.0]
    assert line((1.0, 5.0), (4.0, 4.0))(100.0) == 4.0  # more images are not faster
    assert line((1.0, 0.1), (4.0, 4.0))(8.0) == 8.0  # nor does none of them give time back
    assert line((2.0, 6.0), (2.0, 6.0))(4.0) == 12.0


@pytest.mark.parametrize(
    ("trainer", "batches"),
    [
        ({}, 3),
        ({"max_epochs": 4}, 12),
        ({"max_epochs": 4, "limit_train_batches": 2}, 8),
        ({"max_epochs": 4, "limit_train_batches": 0.4}, 4),
        ({"max_steps": 5}, 5),
        ({"max_steps": 5, "accumulate_grad_batches": 2}, 10),
        ({"max_epochs": 1, "max_steps": 5}, 3),
        ({"max_time": {"seconds": 3}}, math.inf),
    ],
)
def test_batches_are_counted_as_the_trainer_takes_them(trainer, batches):
    assert count_batches(25, 10, trainer) == batches


def test_clients_of_all_kinds_and_sizes_stand_for_the_others():
    shards = [np.arange(size) for size in (5, 0, 90, 40, 7, 3)]
    assert choose_clients(shards, 1, 2) == [2, 5]  # the largest and the smallest
    assert {client % 2 for client in choose_clients(shards, 2, 1)} == {0, 1}
    assert choose_clients(shards, 1, 9) == [0, 2, 3, 4, 5]
    assert evenly(np.arange(10), 3).tolist() == [0, 4, 9]
