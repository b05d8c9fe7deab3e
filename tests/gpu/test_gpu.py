"""What needs a CUDA device: ``pytest -m gpu``."""

from __future__ import annotations

import gc
import warnings

import numpy as np
import pytest
import torch
from helpers import (
    OWN_LOOPS,
    BrightRowTeacher,
    datamodule,
    module,
    one_client_with_everything,
    same,
    sgd,
    weights,
)
from lightning.pytorch import Trainer as LightningTrainer
from torch import nn

import fedkd
from fedkd.data import Augmentation, ImageSet, Rows
from fedkd.data.sources import Datasets
from fedkd.losses import FeatureMoments, TeacherFacts
from fedkd.server.setup import Connections
from fedkd.training.evaluation import evaluate
from fedkd.training.lean_trainer import LeanTrainer

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
    gpu, _ = fit(tmp_path, "gpu", rounds=2, precision="32-true")  # from Hopper on the default is bf16-mixed
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


LEAN = {"accumulate_grad_batches": 3, "gradient_clip_val": 0.05, "max_epochs": 2, "deterministic": True}


@pytest.mark.parametrize("strategy", ["FedAvg", "SCAFFOLD", "FedNTD"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_lean_fit_has_the_bits_of_lightnings_own_loops(tmp_path, precision, strategy, trainers):
    def learned(name, **trainer):
        trained = module("resnet8", teacher=BrightRowTeacher())
        data = datamodule(augmentation=Augmentation(crop_padding=1, flip=True))
        federation = fedkd.Federation(
            rounds=2,
            strategy=getattr(fedkd.strategies, strategy)(),
            trainer={"accelerator": "gpu", "precision": precision, **LEAN, **trainer},
            run_dir=tmp_path / name,
        )
        federation.fit(trained, data)
        return weights(trained)

    lean = learned("lean")
    assert trainers == {LeanTrainer}
    trainers.clear()
    own = learned("own", **OWN_LOOPS)
    assert trainers == {LightningTrainer}
    assert same(lean, own)


def waits(work):
    """Return how often the host waits for the device in a call, by torch's own count."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(each.message) for each in caught)


def test_waits_are_counted():
    value = torch.ones((), device="cuda")
    assert waits(lambda: value + value) == 0
    assert waits(lambda: (value.item(), value.item())) == 2


def waits_and_steps(batch_size, teacher_features, *, loss, strategy, precision):
    """Return the waits and the steps of a client's second round, which trains for an epoch."""
    data = one_client_with_everything(60, batch_size)
    trained = module("resnet8", teacher=BrightRowTeacher(), loss=getattr(fedkd.losses, loss)())
    trained.build(data.classes, data.image_shape)
    trained.fit_to_teacher(TeacherFacts(2.0, FeatureMoments(torch.zeros(3), 1.0), nn.Identity()))
    logits = torch.randn(60, 2, 3)
    site = data.site(
        0,
        modules=(trained.for_clients(),),
        trainer={"accelerator": "gpu", "precision": precision, "gradient_clip_val": 0.5},
        teacher_logits=logits,
        feature_file=teacher_features,
        pools=data.pools(logits, logits, teacher_features),
    )
    start = fedkd.Weights.of(trained.student)
    rule = getattr(fedkd.strategies, strategy)().local_rule(fedkd.ServerState(0, start), 0)
    first = fedkd.train(site, fedkd.ClientTask(0, 0, start, rule=rule))
    task = fedkd.ClientTask(1, 0, start, client_state=first.client_state or {}, rule=rule)
    updates = []
    return waits(lambda: updates.append(fedkd.train(site, task))), updates[0].num_steps


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(
    ("loss", "strategy"),
    [
        ("DKD", "FedAvg"),
        ("KD", "FedProx"),
        ("FeatureMSE", "SCAFFOLD"),
        ("FrozenHead", "FedDyn"),
        ("RKD", "FedNTD"),
        ("DIST", "FedGKD"),
        ("DKD", "MOON"),
    ],
)
def test_no_step_waits_for_the_device(tmp_path, loss, strategy, precision):
    # with float16 a step waits once: torch's scaler asks whether gradients are finite
    np.save(tmp_path / "features.npy", np.ones((60, 2, 3), np.float16))
    few, many = (
        waits_and_steps(size, tmp_path / "features.npy", loss=loss, strategy=strategy, precision=precision)
        for size in (18, 3)
    )
    assert (few[1], many[1]) == (2, 12)
    assert few[0] == many[0]


def test_an_evaluation_waits_no_more_with_more_batches():
    trained, data = module("resnet8"), datamodule()
    data.setup()
    trained.build(data.classes, data.image_shape)
    start, test = fedkd.Weights.of(trained.student), Rows.of(data.test)

    def count(batch_size):
        return waits(lambda: evaluate(trained, start, test, {"accelerator": "gpu"}, batch_size))

    count(15)  # warms up
    assert count(15) == count(3)


def peak(clients, tmp_path):
    """Return the bytes that rounds with a cohort of 4 clients take at most on the device, and those of a client."""
    generator, count = torch.Generator().manual_seed(0), 200
    pixels = torch.randint(0, 256, (count * clients, 3, 32, 32), generator=generator, dtype=torch.uint8)
    train = ImageSet(pixels, torch.arange(len(pixels)) % 3, ("a", "b", "c"))
    data = fedkd.FederatedDataModule(
        Datasets(train, ImageSet(pixels[:30], train.targets[:30], train.classes)), num_clients=clients, batch_size=50
    )
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    federation = fedkd.Federation(2, clients_per_round=4, trainer={"accelerator": "gpu"}, run_dir=tmp_path)
    federation.fit(module("resnet8"), data)
    return torch.cuda.max_memory_allocated() - before, pixels[:count].nbytes


def test_memory_does_not_grow_with_the_clients(tmp_path):
    peak(4, tmp_path / "first")  # libraries keep what they take first
    few, one_client = peak(4, tmp_path / "few")
    many, _ = peak(40, tmp_path / "many")
    assert abs(many - few) < 2**20 + one_client


def test_stacked_clients_have_the_updates_that_each_has_alone(tmp_path):
    found = []
    for backend in (fedkd.InProcess(), fedkd.Stacked(3)):
        trained = module("resnet8", student_options={"norm": "group"}, optimizer=sgd(0.01))
        trainer = {"accelerator": "gpu", "precision": "32-true", "deterministic": True}
        run_dir = tmp_path / type(backend).__name__
        with torch.backends.cudnn.flags(allow_tf32=False):
            fedkd.Federation(1, backend=backend, trainer=trainer, run_dir=run_dir).fit(trained, datamodule())
        found.append(weights(trained))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-4, msg=name)


def test_a_head_in_closed_form_agrees_with_the_cpu(tmp_path):
    def solved(name, **trainer):
        trained = module("cnn", teacher=BrightRowTeacher())
        data = datamodule(count=120)
        run = fedkd.Federation(
            2,
            strategy=fedkd.strategies.ClosedFormHead(),
            lr_schedule="cosine",
            trainer=trainer,
            run_dir=tmp_path / name,
        )
        return run.fit(trained, data), trained

    gpu, there = solved("gpu", accelerator="gpu", precision="32-true")
    cpu, here = solved("cpu", accelerator="cpu")
    assert gpu["strategy"] == cpu["strategy"]
    assert gpu["balanced_accuracy"] > 0.9
    images = torch.rand(16, 1, 8, 8)
    with torch.no_grad():
        left, right = (trained.cpu().student.eval()(images).softmax(1) for trained in (there, here))
    torch.testing.assert_close(left, right, rtol=0.05, atol=0.02)
