"""What a Trainer's arguments become where nothing is given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import datamodule, module, train_client
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from torch import nn

import fedkd
from fedkd.cli.main import main
from fedkd.server.setup import plan_run, run_settings
from fedkd.training.trainer_arguments import check_trainer, with_precision


@pytest.mark.parametrize(
    ("capability", "given", "found"),
    [
        ((9, 0), {}, "bf16-mixed"),
        ((10, 0), {"precision": None}, "bf16-mixed"),
        ((8, 6), {}, None),
        ((9, 0), {"precision": "32-true"}, "32-true"),
        ((9, 0), {"plugins": [object()]}, None),
    ],
)
def test_bfloat16_is_the_default_from_hopper_on(monkeypatch, capability, given, found):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert with_precision(given, torch.device("cuda", 0)).get("precision") == found
    assert with_precision(given, torch.device("cpu")).get("precision") == given.get("precision")


def test_a_run_trains_with_it_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("fedkd.server.setup.with_precision", lambda given, device: {**given, "precision": "bf16-mixed"})
    federation = fedkd.Federation(1, trainer={"accelerator": "cpu"}, run_dir=tmp_path)
    plan = plan_run(federation, module(), datamodule())
    assert "bf16-mixed" in str(run_settings(federation, plan)["trainer"])
    monkeypatch.undo()
    assert "32-true" in str(run_settings(federation, plan_run(federation, module(), datamodule()))["trainer"])


@pytest.mark.parametrize(
    ("given", "steps"),
    [({}, 2), ({"max_steps": 7}, 7), ({"max_steps": 7, "max_epochs": 2}, 4), ({"max_epochs": None}, 2)],
)
def test_max_steps_is_not_cut_to_an_epoch(given, steps):
    data = datamodule(3, count=60)
    _, update = train_client(module(), data, trainer={"accelerator": "cpu", **given})
    assert update.num_steps == steps


def test_the_command_line_takes_max_steps_too(tmp_path):
    quickstart = Path(__file__).parents[2] / "examples" / "quickstart.yaml"
    arguments = f"fit --config {quickstart} --federation.rounds 1 --data.num_clients 2 --model.teacher null"
    arguments += f" --trainer.max_epochs null --trainer.max_steps 3 --run_dir {tmp_path / 'run'}"
    main([*arguments.split(), "--data.partitioner", "IID"])
    header, row = (line.split(",") for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines())
    assert int(row[header.index("num_steps")]) == 2 * 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"accumulate_grad_batches": 0}, "trainer.accumulate_grad_batches must be >= 1, got 0"),
        ({"gradient_clip_val": -1}, "trainer.gradient_clip_val must be >= 0, got -1"),
        ({"limit_train_batches": 0}, "trainer.limit_train_batches must be > 0, got 0"),
        ({"limit_train_batches": 0.0}, "trainer.limit_train_batches must be > 0, got 0"),
        ({"max_epochs": 0}, "trains no client"),
        ({"max_steps": 0}, "trains no client"),
        ({"max_epochs": -2}, "trainer.max_epochs must be >= -1, got -2"),
        ({"max_steps": 1.5}, "trainer.max_steps must be an integer, got 1.5"),
        ({"callbacks": LearningRateMonitor()}, "LearningRateMonitor needs a logger, which a client's Trainer does not"),
    ],
)
def test_values_that_train_nothing_or_make_no_sense_are_one_line(tmp_path, given, message):
    federation = fedkd.Federation(1, trainer={"accelerator": "cpu", **given}, run_dir=tmp_path / "run")
    with pytest.raises(fedkd.FedKDError, match=message):
        federation.fit(module(), datamodule())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fedkd.FederatedDataModule(num_clients=10**12), "num_clients must be >= 1 and <= 10000000, got 10"),
        (lambda: fedkd.data.Augmentation(crop_padding=10**9), "crop_padding must be >= 0 and <= 4096, got 10"),
    ],
)
def test_a_slip_of_the_hand_allocates_nothing(make, message):
    with pytest.raises(fedkd.FedKDError, match=message):
        make()


def test_complex_students_are_refused_by_name():
    class Waves(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(64, 3)
            self.phase = nn.Parameter(torch.ones(3, dtype=torch.complex64))

        def forward(self, images):
            return (self.head(images.flatten(1)) * self.phase).real

    trained = module(Waves())
    with pytest.raises(fedkd.FedKDError, match=r"student's 'phase' is complex .complex64.*float32"):
        trained.build(("a", "b", "c"), (1, 8, 8))


class Counts(Callback):
    """Keeps the number of its fits, and a fixed setting."""

    def __init__(self, every=2):
        self.every, self.fits, self.losses = every, 0, []

    def on_train_end(self, trainer, module):
        self.fits += 1
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


def test_what_a_callback_keeps_is_lost_with_a_warning(tmp_path):
    mine = Counts()
    trainer = {"accelerator": "cpu", "callbacks": [EarlyStopping("train/loss", check_on_train_epoch_end=True), mine]}
    with pytest.warns(UserWarning, match="copy of Counts, so what it keeps \\(fits, losses\\) is lost"):
        fedkd.Federation(1, strategy=fedkd.FedAvg(), trainer=trainer, run_dir=tmp_path).fit(module(), datamodule())
    assert mine.fits == 0


def test_early_stopping_starts_afresh_with_every_client(tmp_path):
    stopping = EarlyStopping("train/loss", patience=0, min_delta=100.0, check_on_train_epoch_end=True)  # after 2 epochs
    trainer = {"accelerator": "cpu", "callbacks": stopping, "max_epochs": 9}
    run = fedkd.Federation(2, strategy=fedkd.FedAvg(), trainer=trainer, run_dir=tmp_path)
    run.fit(module(), datamodule())  # three clients of two batches
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    steps = rows[0].split(",").index("num_steps")
    assert [row.split(",")[steps] for row in rows[1:]] == ["12", "12"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            lambda: (module(), LightningDataModule()),
            "needs a FederatedDataModule as datamodule, got LightningData",
        ),
        (lambda: (module(), fedkd.FederatedDataModule), "as datamodule, got FederatedDataModule: give its datasets"),
        (
            lambda: (nn.Linear(64, 3), datamodule()),
            "needs a DistillationModule as module, got Linear: give the",
        ),
    ],
)
def test_another_module_or_datamodule_is_one_line(arguments, message):
    with pytest.raises(fedkd.FedKDError, match=message):
        fedkd.Federation(1).fit(*arguments())


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"max_time": {"dayz": 1}}, "trainer.max_time {'dayz': 1}: "),
        ({"max_time": "soon", "max_epochs": 2}, "trainer.max_time 'soon': "),
        ({"max_epochs": 2, "profiler": "simpel"}, "trainer.profiler 'simpel': "),
        ({"val_check_interval": {"hourz": 1}}, "trainer.val_check_interval {'hourz': 1}: "),
    ],
)
def test_an_error_about_what_is_in_a_value_names_the_option(given, named):
    with pytest.raises(fedkd.FedKDError) as found:
        check_trainer({"accelerator": "cpu", **given})
    assert str(found.value).startswith(named)
