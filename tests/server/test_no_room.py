"""A full disk and a full memory: one line names what and what to do, and what was finished stays."""

from __future__ import annotations

import os
import re

import pytest
import torch
from helpers import LinearStudent, datamodule, images, module, same, weights
from limits import files_up_to
from torch import nn

import fedkd
from fedkd.core.storage import CannotWriteError
from fedkd.data import ImageSet
from fedkd.strategies import SCAFFOLD, FedAvg
from fedkd.teachers.outputs.cache import TeacherCache

CPU = {"accelerator": "cpu"}


def wide():
    """Return a student of 17 kB."""
    torch.manual_seed(0)
    return module(nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 3)))


def fit(run_dir, trained, rounds, strategy=None, ckpt_path=None, data=None):
    run = fedkd.Federation(rounds, strategy=strategy or FedAvg(), trainer=CPU, run_dir=run_dir)
    return run.fit(trained, data or datamodule(), ckpt_path=ckpt_path)


@pytest.mark.parametrize(
    ("strategy", "file"),
    [(FedAvg, "checkpoints/round_000003.ckpt"), (SCAFFOLD, "checkpoints/clients/0.round_000003.safetensors")],
)
def test_a_full_disk_names_the_file_and_the_run_goes_on_later(tmp_path, strategy, file):
    whole = wide()
    fit(tmp_path / "whole", whole, 4, strategy())
    fit(tmp_path / "run", wide(), 2, strategy())
    at_two = {path.name: path.read_bytes() for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt")}

    stopped = wide()
    with (
        pytest.raises(fedkd.FedKDError) as raised,
        files_up_to(10_000),
    ):
        fit(tmp_path / "run", stopped, 4, strategy(), "last")
    path = str(tmp_path / "run" / file)
    if strategy is FedAvg:
        assert str(raised.value).startswith(f"{path!r} cannot be written: File too large. Free some space")
    else:  # whose files of clients are the first that are too large
        assert re.search(r"clients/.*round_000003\.safetensors' cannot be written: File too large", str(raised.value))
    assert "2 finished round(s) are in" in str(raised.value)
    assert "\n" not in str(raised.value)
    left = {path.name: path.read_bytes() for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt")}
    assert left == at_two
    assert not list((tmp_path / "run" / "checkpoints").glob(".*.tmp"))

    again = wide()
    fit(tmp_path / "run", again, 4, strategy(), "last")
    assert same(weights(again), weights(whole))
    rows = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("whole", "run")]
    assert [line.rsplit(",", 1)[0] for line in rows[0]] == [line.rsplit(",", 1)[0] for line in rows[1]]  # but seconds


def test_a_student_that_cannot_be_written_leaves_its_rounds(tmp_path):
    trained = wide()
    (tmp_path / "run" / "student.safetensors").mkdir(parents=True)
    with pytest.raises(fedkd.FedKDError, match=r"student\.safetensors' cannot be written: .* 2 finished round\(s\)"):
        fit(tmp_path / "run", trained, 2)
    (tmp_path / "run" / "student.safetensors").rmdir()
    fit(tmp_path / "run", wide(), 2, ckpt_path="last")
    assert same(fedkd.load_student(tmp_path / "run", wide().student).state_dict(), weights(trained))


def test_a_run_directory_that_cannot_be_locked_is_one_line(tmp_path):
    (tmp_path / "checkpoints" / ".lock").mkdir(parents=True)
    with pytest.raises(CannotWriteError, match=r"cannot be written: Is a directory\. Choose another run_dir\."):
        fit(tmp_path, wide(), 1)


class Wide(fedkd.Teacher):
    """Gives 400 numbers an image."""

    passes = 0

    def features(self, images):
        type(self).passes += 1
        return images.flatten(1).repeat(1, 7)[:, :400]


def test_a_full_cache_names_its_file_and_goes_on_where_it_was(tmp_path):
    data, store = ImageSet.from_dataset(images(40)), TeacherCache(tmp_path)
    with (
        pytest.raises(CannotWriteError, match=r"Wide-.*float16\.npy' cannot be written: File too large\. Free some"),
        files_up_to(20_000),  # 24 images of 800 bytes
    ):
        store.get(Wide(), data, batch_size=8, progress=False)
    Wide.passes = 0
    outputs = store.get(Wide(), data, batch_size=8, progress=False)
    assert Wide.passes < 5
    expected = TeacherCache(tmp_path / "other").get(Wide(), data, batch_size=8, progress=False)
    assert (outputs == expected).all()


def test_a_read_only_cache_serves_what_is_complete(tmp_path):
    data, store = ImageSet.from_dataset(images(40)), TeacherCache(tmp_path)
    first = store.get(Wide(), data, progress=False)
    (lock,) = tmp_path.glob("*.lock")
    lock.unlink()
    lock.mkdir()  # as in a folder that is read-only, there is no lock to have
    assert (store.get(Wide(), data, progress=False) == first).all()
    with open(first.filename, "r+b") as file:
        file.truncate(os.path.getsize(first.filename) - 800)
    with pytest.raises(CannotWriteError, match=r"cannot be written: Is a directory\. Set FEDKD_CACHE to another"):
        store.get(Wide(), data, progress=False)


class OutOfMemory(LinearStudent):
    """Has no memory in evaluation, once it is told."""

    fails = False

    def forward(self, images):
        if type(self).fails and not self.training and len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB.")
        return super().forward(images)


def test_a_server_without_memory_is_one_line(tmp_path, monkeypatch):
    fit(tmp_path, module(OutOfMemory()), 1)
    monkeypatch.setattr(OutOfMemory, "fails", True)
    message = r"The server is out of memory \(CUDA out of memory\. Tried to allocate 20 GiB\.\)\. Lower data\.eval"
    with pytest.raises(fedkd.FedKDError, match=message + r".* 1 finished round\(s\) are in"):
        fit(tmp_path, module(OutOfMemory()), 2, ckpt_path="last")


class Greedy(fedkd.Teacher):
    """Has no memory."""

    def features(self, images):
        return torch.empty(10**15)


def test_a_teacher_without_memory_is_one_line(tmp_path):
    with pytest.raises(fedkd.FedKDError, match=r"Greedy runs out of memory on cpu with 40 images \(.*\)\. Choose a sm"):
        TeacherCache(tmp_path).get(Greedy(), ImageSet.from_dataset(images(40)), progress=False)
