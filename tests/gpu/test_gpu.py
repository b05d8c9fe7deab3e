"""What needs a CUDA device: ``pytest -m gpu``."""

from __future__ import annotations

import pytest
import torch
from helpers import BrightRowTeacher, datamodule, module, same, weights

import fedkd
from fedkd.data import Augmentation
from fedkd.server.setup import Connections

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def fit(tmp_path, name, *, teacher=None, student=None, rounds=5, **trainer):
    """Run a federation on the GPU and return its module and summary."""
    trained = module(student, teacher=teacher)
    data = datamodule(augmentation=Augmentation(crop_padding=1, flip=False))
    trainer = {"accelerator": "gpu", "max_epochs": 4, **trainer}
    summary = fedkd.Federation(rounds=rounds, run_dir=tmp_path / name, trainer=trainer).fit(trained, data)
    return trained, summary


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_every_precision_learns(tmp_path, precision):
    trained, summary = fit(tmp_path, "run", teacher=BrightRowTeacher(), rounds=10, precision=precision)
    assert summary["balanced_accuracy"] > 0.9
    assert all(value.dtype == torch.float32 for value in trained.student.state_dict().values())


def test_the_gpu_agrees_with_the_cpu(tmp_path):
    gpu, _ = fit(tmp_path, "gpu", rounds=2)
    cpu, _ = fit(tmp_path, "cpu", rounds=2, accelerator="cpu")
    for name, value in weights(gpu).items():
        torch.testing.assert_close(value.cpu(), weights(cpu)[name].cpu(), rtol=1e-3, atol=1e-4)


def test_the_same_seed_gives_the_same_bits(tmp_path):
    first, _ = fit(tmp_path, "a", student="resnet8", rounds=1, deterministic=True)
    again, _ = fit(tmp_path, "b", student="resnet8", rounds=1, deterministic=True)
    assert same(weights(first), weights(again))


def test_a_teacher_runs_in_bfloat16_there_and_comes_home():
    teacher = fedkd.teachers.create("digits-tiny")
    data = fedkd.data.FederatedDataModule(public_fraction=0.3)
    data.setup()
    connect = Connections(fedkd.InProcess())
    outputs = fedkd.teachers.prepare_teacher(teacher, data, connect=connect, device="cuda")
    assert teacher.device.type == "cpu"
    assert next(teacher.to("cuda").parameters()).dtype == torch.bfloat16
    assert outputs.balanced_accuracy > 0.95


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_that_share_the_gpu_give_the_same_bits(tmp_path, workers):
    def run(name, backend):
        trained, data = module("resnet8"), datamodule(num_clients=4)
        trainer = {"accelerator": "gpu", "deterministic": True}
        fedkd.Federation(rounds=2, run_dir=tmp_path / name, trainer=trainer, backend=backend).fit(trained, data)
        return weights(trained)

    assert same(run("here", fedkd.InProcess()), run("there", fedkd.ProcessPool(workers)))
