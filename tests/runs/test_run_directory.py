"""What a run leaves behind, and how it goes on after a kill."""

from __future__ import annotations

import csv
import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
from uuid import uuid4

import pytest
import torch
from helpers import BrightRowTeacher, LinearStudent, datamodule, module, same, weights

import fedkd
from fedkd.core.messages import ServerState, Weights
from fedkd.core.sealed import DamagedFileError, read_record
from fedkd.partition import Dirichlet
from fedkd.runs import directory
from fedkd.runs.checkpoint import Beside, load_checkpoint, save_checkpoint
from fedkd.runs.directory import RunDirectory, next_version


def fit(run_dir, rounds=3, ckpt_path=None, trained=None, **arguments):
    """Run a federation on two of three clients a round and return its module and summary."""
    trained = trained or module("cnn")
    arguments = {"clients_per_round": 2, "trainer": {"accelerator": "cpu"}, **arguments}
    federation = fedkd.Federation(rounds=rounds, run_dir=run_dir, **arguments)
    return trained, federation.fit(trained, datamodule(partitioner=Dirichlet(1.0)), ckpt_path=ckpt_path)


def read_metrics(run_dir):
    with open(run_dir / "metrics.csv") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_all_its_files(tmp_path):
    trained, summary = fit(tmp_path / "run", trained=module("cnn", teacher=BrightRowTeacher()), strategy=fedkd.FedAvg())
    files = sorted(str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*") if p.is_file())
    assert files == [
        "checkpoints/.lock",
        "checkpoints/round_000002.ckpt",
        "checkpoints/round_000003.ckpt",
        "metrics.csv",
        "partition.json",
        "report.html",
        "student.safetensors",
        "summary.json",
    ]
    rows = read_metrics(tmp_path / "run")
    assert [row["round"] for row in rows] == ["0", "1", "2"]
    assert {"accuracy", "balanced_accuracy", "accuracy/0", "train/ce", "train/tckd", "train/loss", "seconds"} <= set(
        rows[0]
    )
    # two clients get and give back the student: 4 bytes a parameter
    size = 4 * sum(p.numel() for p in trained.student.parameters())
    assert [int(row["bytes_up"]) for row in rows] == [int(row["bytes_down"]) for row in rows] == [2 * size] * 3
    saved = read_record(tmp_path / "run" / "summary.json")
    assert saved == json.loads(json.dumps(summary))
    assert saved["teacher"]["accuracy"] == 1.0
    assert saved["bytes_up"] == 6 * size
    assert saved["balanced_accuracy"] == float(rows[-1]["balanced_accuracy"])
    assert saved["best"]["balanced_accuracy"] == max(float(row["balanced_accuracy"]) for row in rows)
    partition = json.loads((tmp_path / "run" / "partition.json").read_text())
    assert sorted(i for shard in partition["indices"] for i in shard) == list(range(60))


def test_the_student_loads_and_gives_the_same_logits(tmp_path):
    trained, _ = fit(tmp_path / "run")
    loaded = fedkd.load_student(tmp_path / "run")
    batch = torch.rand(4, 1, 8, 8)
    assert not loaded.training
    assert torch.equal(loaded(batch), trained.student.eval()(batch))


def test_a_module_of_the_users_is_loaded_into_one_like_it(tmp_path):
    trained, _ = fit(tmp_path / "run", trained=module())
    with pytest.raises(fedkd.FedKDError, match="give the module, student="):
        fedkd.load_student(tmp_path / "run")
    loaded = fedkd.load_student(tmp_path / "run", LinearStudent())
    assert same(dict(loaded.state_dict()), weights(trained))
    with pytest.raises(fedkd.FedKDError, match="does not fit"):
        fedkd.load_student(tmp_path / "run", LinearStudent(num_classes=5))


def test_resuming_ends_with_the_same_bits(tmp_path):
    whole, _ = fit(tmp_path / "whole", rounds=4)
    fit(tmp_path / "parts", rounds=2)
    resumed, _ = fit(tmp_path / "parts", rounds=4, ckpt_path="last")
    assert same(weights(whole), weights(resumed))
    columns = [name for name in read_metrics(tmp_path / "whole")[0] if name != "seconds"]
    left, right = read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "parts")
    assert [[row[c] for c in columns] for row in left] == [[row[c] for c in columns] for row in right]


def test_finished_work_is_never_overwritten(tmp_path):
    fit(tmp_path / "run", rounds=1)
    before = (tmp_path / "run" / "metrics.csv").read_bytes()
    with pytest.raises(fedkd.FedKDError, match=r"already holds a run.*ckpt_path: last"):
        fit(tmp_path / "run", rounds=1)
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before


def test_last_before_the_first_round_starts_from_the_beginning(tmp_path):
    fresh, _ = fit(tmp_path / "a", rounds=1)
    started, _ = fit(tmp_path / "b", rounds=1, ckpt_path="last")
    assert same(weights(fresh), weights(started))


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    fit(tmp_path / "run", rounds=1)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(fedkd.FedKDError, match="belongs to another run: its seed is 0, this run's is 1"):
        fit(tmp_path / "run", ckpt_path="last", seed=1)
    assert {path: path.read_bytes() for path in before} == before


def test_fewer_rounds_than_are_finished_are_refused_before_anything_is_written(tmp_path):
    fit(tmp_path / "run", rounds=2)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    newest = tmp_path / "run" / "checkpoints" / "round_000002.ckpt"
    told = f"federation.rounds 1 is less than the 2 rounds that are finished in {str(newest)!r}."
    for run_dir, ckpt_path in (("run", "last"), ("branch", newest)):
        with pytest.raises(fedkd.FedKDError, match=re.escape(told)):
            fit(tmp_path / run_dir, rounds=1, ckpt_path=ckpt_path)
    federation = fedkd.Federation(
        rounds=1, clients_per_round=2, run_dir=tmp_path / "run", trainer={"accelerator": "cpu"}
    )
    with pytest.raises(fedkd.FedKDError, match=re.escape(told)):
        federation.check(module("cnn"), datamodule(partitioner=Dirichlet(1.0)), ckpt_path="last")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    fit(tmp_path / "run", rounds=2, ckpt_path="last")


def test_a_broken_or_missing_checkpoint_is_named(tmp_path):
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"PK not a checkpoint")
    with pytest.raises(fedkd.FedKDError, match=r"broken\.ckpt' is damaged, or fedkd did not write it"):
        fit(tmp_path / "run", ckpt_path=broken)
    with pytest.raises(fedkd.MissingResourceError, match="No round checkpoint at"):
        fit(tmp_path / "other", ckpt_path=tmp_path / "none.ckpt")


def test_versions_count_up(tmp_path):
    assert [next_version(tmp_path).name for _ in range(3)] == ["version_0", "version_1", "version_2"]
    (tmp_path / "version_7").mkdir()
    assert next_version(tmp_path).name == "version_8"


def test_nan_becomes_null(tmp_path):
    RunDirectory(tmp_path / "run").write_json("x.json", {"a": [float("nan"), 1.0], "b": {"c": float("nan")}})
    assert read_record(tmp_path / "run" / "x.json") == {"a": [None, 1.0], "b": {"c": None}}


def test_lightning_loggers_log_the_run(tmp_path):
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    loggers = [CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path / "tb")]
    fit(tmp_path / "run", trainer={"accelerator": "cpu", "logger": loggers})
    with open(tmp_path / "csv" / "lightning_logs" / "version_0" / "metrics.csv") as file:
        logged = list(csv.DictReader(file))
    rows = read_metrics(tmp_path / "run")
    told = (tmp_path / "csv" / "lightning_logs" / "version_0" / "hparams.yaml").read_text()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for name in ("seed", "strategy", "optimizer", "data set", "partitioner", "rounds", "device", "backend"):
        assert f"{name}: " in told
        assert name in summary["settings"]
    assert f"torch: {summary['versions']['torch']}" in told
    assert [row["step"] for row in logged] == ["0", "1", "2"]
    assert [float(row["balanced_accuracy"]) for row in logged] == [float(row["balanced_accuracy"]) for row in rows]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next((tmp_path / "tb").rglob("events.*")).parent))
    events.Reload()
    assert [event.step for event in events.Scalars("balanced_accuracy")] == [0, 1, 2]


def test_a_checkpoint_by_path_branches_off_into_a_directory_of_its_own(tmp_path):
    fit(tmp_path / "trunk", rounds=2)
    checkpoint = tmp_path / "trunk" / "checkpoints" / "round_000001.ckpt"
    before = {path: path.read_bytes() for path in (tmp_path / "trunk").rglob("*") if path.is_file()}
    branch, summary = fit(tmp_path / "branch", rounds=3, ckpt_path=checkpoint)
    whole, _ = fit(tmp_path / "whole", rounds=3)
    assert summary["rounds"] == 3
    assert same(weights(branch), weights(whole))
    with pytest.raises(fedkd.FedKDError, match="already holds a run"):
        fit(tmp_path / "trunk", rounds=3, ckpt_path=checkpoint)
    assert {path: path.read_bytes() for path in before} == before


def test_last_without_a_run_dir_goes_on_with_the_newest_version(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(None, rounds=1)
    fit(None, rounds=1)
    _, summary = fit(None, rounds=2, ckpt_path="last")
    assert summary["run_dir"] == "runs/version_1"
    assert len(read_metrics(tmp_path / "runs" / "version_1")) == 2
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["version_0", "version_1"]


def test_a_logger_has_all_rounds_after_going_on(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    for rounds in (1, 3):
        logger = CSVLogger(tmp_path / "csv", version="one")
        fit(tmp_path / "run", rounds=rounds, ckpt_path="last", trainer={"accelerator": "cpu", "logger": logger})
    with open(tmp_path / "csv" / "lightning_logs" / "one" / "metrics.csv") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["0", "1", "2"]


def test_limits_of_training_do_not_limit_the_test(tmp_path):
    _, whole = fit(tmp_path / "whole", rounds=1, trainer={"accelerator": "cpu", "max_steps": 1})
    limits = {"accelerator": "cpu", "max_steps": 1, "limit_test_batches": 0}
    _, limited = fit(tmp_path / "limited", rounds=1, trainer=limits)
    assert limited["per_class_accuracy"] == whole["per_class_accuracy"]


def test_what_a_killed_writer_left_is_swept(tmp_path):
    leftover = tmp_path / "run" / "checkpoints" / f".round_000001.ckpt.{uuid4().hex}.tmp"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half")
    of_the_user = tmp_path / "run" / ".notes.tmp"
    of_the_user.write_bytes(b"mine")
    fit(tmp_path / "run", rounds=1)
    assert not leftover.exists()
    assert of_the_user.read_bytes() == b"mine"


def checkpoint(run_dir, number):
    return run_dir / "checkpoints" / f"round_{number:06d}.ckpt"


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_taken(tmp_path):
    whole, _ = fit(tmp_path / "whole", rounds=4)
    fit(tmp_path / "run", rounds=3)
    newest = checkpoint(tmp_path / "run", 3)
    newest.write_bytes(newest.read_bytes()[:-7])
    stray = checkpoint(tmp_path / "run", 999999)
    stray.write_bytes(b"")
    with pytest.warns(UserWarning, match=r"is damaged") as caught:
        goes_on, summary = fit(tmp_path / "run", rounds=4, ckpt_path="last")
    named = [str(each.message) for each in caught if "is damaged" in str(each.message)]
    assert [any(path.name in text for text in named) for path in (newest, stray)] == [True, True]
    assert same(weights(goes_on), weights(whole))
    assert summary["rounds"] == 4
    found = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt"))
    assert found == ["round_000003.ckpt", "round_000004.ckpt", "round_999999.ckpt"]


@pytest.mark.filterwarnings("ignore:.*is damaged")
@pytest.mark.parametrize("gone", [True, False])
def test_rounds_without_a_whole_checkpoint_are_not_written_over(tmp_path, gone):
    fit(tmp_path / "run", rounds=2)
    before = (tmp_path / "run" / "metrics.csv").read_bytes()
    for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt"):
        path.unlink() if gone else path.write_bytes(path.read_bytes()[1:])
    with pytest.raises(fedkd.FedKDError, match="holds the rows of 2 rounds, and no whole checkpoint"):
        fit(tmp_path / "run", rounds=2, ckpt_path="last")
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before


def test_a_checkpoint_under_another_rounds_name_is_refused(tmp_path):
    fit(tmp_path / "run", rounds=2)
    checkpoint(tmp_path / "run", 2).rename(checkpoint(tmp_path / "run", 7))
    with pytest.warns(UserWarning, match=r"round_000007\.ckpt' is named after another round: it is of round 2"):
        _, summary = fit(tmp_path / "run", rounds=2, ckpt_path="last")
    assert summary["rounds"] == 2


def test_weights_that_are_not_finite_are_refused(tmp_path):
    state = ServerState(1, Weights({"w": torch.tensor([float("nan")])}))
    save_checkpoint(tmp_path / "round_000001.ckpt", state, {}, Beside("0:0", ""))
    with pytest.raises(DamagedFileError, match="infinite or NaN"):
        load_checkpoint(tmp_path / "round_000001.ckpt", {})


@pytest.mark.parametrize("name", ["student.safetensors", "checkpoints/round_000001.ckpt"])
def test_no_flipped_bit_is_loaded(tmp_path, name):
    fit(tmp_path / "run", rounds=1)
    path = tmp_path / "run" / name
    whole = path.read_bytes()
    rng = random.Random(0)
    for _ in range(60):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(DamagedFileError, match=path.name):
            load_checkpoint(path, {}) if path.suffix == ".ckpt" else fedkd.load_student(tmp_path / "run")


HOLDS = """
import sys, time
from fedkd.runs.directory import RunDirectory
with RunDirectory(sys.argv[1]).held():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_directory_that_another_process_uses_is_refused(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(fedkd.FedKDError, match="is in use by another process"):
            fit(tmp_path / "run", rounds=1, ckpt_path="last")
    finally:
        other.kill()
        other.wait()
    fit(tmp_path / "run", rounds=1, ckpt_path="last")  # the system lets go of the lock of a process that was killed


@pytest.mark.parametrize("error", [NotImplementedError(), OSError(errno.ENOLCK, "No locks available")])
def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, error):
    def acquire(self, **_):
        raise error

    monkeypatch.setattr(directory.FileLock, "acquire", acquire)
    with pytest.warns(UserWarning, match="cannot be locked"):
        fit(tmp_path / "run", rounds=1)


def test_another_error_of_the_lock_is_raised(tmp_path, monkeypatch):
    def acquire(self, **_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(directory.FileLock, "acquire", acquire)
    with pytest.raises(fedkd.FedKDError, match=r"run' cannot be written: Permission denied\. Choose another run_dir"):
        fit(tmp_path / "run", rounds=1)


class EndsItself(fedkd.FedAvg):
    """SIGTERM comes in the second round."""

    def aggregate_stream(self, state, updates, num_examples):
        if state.round == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().aggregate_stream(state, updates, num_examples)


def test_sigterm_raises_an_exit_of_status_143_from_python(tmp_path, caplog):
    trained = module("cnn")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "round_000009.ckpt").write_bytes(b"stray")
    with pytest.raises(SystemExit) as ended:
        fit(tmp_path / "run", trained=trained, strategy=EndsItself())
    assert ended.value.code == 143
    assert "stopped: 1 finished round(s) are in" in caplog.text
    assert len(read_metrics(tmp_path / "run")) == 1


def test_an_empty_run_dir_is_refused():
    with pytest.raises(fedkd.FedKDError, match="run_dir is empty"):
        RunDirectory("")


class Blows(fedkd.FedAvg):
    """The server's step, in the second round, gives a NaN."""

    def step(self, state, delta):
        parameters, memory = super().step(state, delta)
        bad = float("nan") if state.round == 1 else 0.0
        return {name: value + bad for name, value in parameters.items()}, memory


def test_a_student_that_the_server_spoiled_is_not_committed(tmp_path):
    trained = module("cnn")
    with pytest.raises(fedkd.FedKDError, match=r"Round 1: the global student became .* in the server's step, by Blows"):
        fit(tmp_path / "run", trained=trained, strategy=Blows())
    assert len(read_metrics(tmp_path / "run")) == 1
    assert all(value.isfinite().all() for value in weights(trained).values())


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunDirectory("~/runs/one").path == tmp_path / "runs" / "one"
