"""A lean fit gives the bits of Lightning's own loops, for every strategy, precision, accumulation and clipping."""

from __future__ import annotations

import csv

import pytest
import torch
from helpers import OWN_LOOPS, BrightRowTeacher, images, module, same, weights
from lightning.pytorch import Callback
from lightning.pytorch import Trainer as LightningTrainer
from test_every_strategy import STRATEGIES, make, run
from torch import nn

import fedkd
from fedkd.client import works
from fedkd.losses import DKD
from fedkd.training.lean_trainer import LeanTrainer, reason_for_lightning
from fedkd.training.trainer import TRAINER_DEFAULTS, trainer_for

SETTINGS = {
    "bf16-accumulate-clip": {"precision": "bf16-mixed", "accumulate_grad_batches": 3, "gradient_clip_val": 0.05},
    "two-epochs-clip-by-value": {"max_epochs": 2, "gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
}


def rows(run_dir):
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if "seconds" not in name} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        # each strategy with one of the settings in the suite, in turn, and with the other one as a slow test
        pytest.param(
            name,
            settings,
            id=f"{name}-{label}",
            marks=[] if (i + k) % len(SETTINGS) == 0 else pytest.mark.slow,
        )
        for i, name in enumerate(STRATEGIES)
        for k, (label, settings) in enumerate(SETTINGS.items())
    ],
)
def test_every_strategy_learns_the_same_with_lightnings_own_loops(name, settings, trainers, tmp_path):
    settings = {"accelerator": "cpu", **settings}
    lean = run(name, make(name), tmp_path / "lean", trainer=settings)
    assert trainers == {LeanTrainer}
    trainers.clear()
    own = run(name, make(name), tmp_path / "own", trainer={**settings, **OWN_LOOPS})
    assert trainers == {LightningTrainer}
    assert same(lean, own)
    assert rows(tmp_path / "lean") == rows(tmp_path / "own")


class Noisy(nn.Module):
    """A student that draws while it trains, and keeps statistics."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(144, 3)
        )

    def forward(self, images):
        return self.net(images)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.Adagrad, torch.optim.RMSprop])
def test_other_optimizers_dropout_and_statistics(optimizer, trainers, tmp_path):
    def learned(trainer, name):
        torch.manual_seed(0)
        data = fedkd.FederatedDataModule.from_datasets(
            images(60),
            images(30, seed=1),
            num_clients=3,
            partitioner=fedkd.partition.Dirichlet(1.0),
            batch_size=8,
            augmentation=fedkd.data.Augmentation(2, True),
            val_fraction=0.2,
        )
        trained = module(Noisy(), teacher=BrightRowTeacher(), loss=DKD(ce_weight=0.5), optimizer=optimizer)
        federation = fedkd.Federation(rounds=2, trainer={"accelerator": "cpu", **trainer}, run_dir=tmp_path / name)
        federation.fit(trained, data)
        return weights(trained)

    assert same(learned({}, "lean"), learned(OWN_LOOPS, "own"))
    assert trainers == {LeanTrainer, LightningTrainer}
    assert rows(tmp_path / "lean") == rows(tmp_path / "own")


class Heard(Callback):
    """Notes every hook that is called, and what a Trainer says of itself then."""

    runs_lean = True

    def __init__(self):
        self.calls = []


def _listen(name):
    def hook(self, trainer, *arguments, **options):
        seen = (trainer.current_epoch, trainer.global_step, trainer.training, trainer.fit_loop.epoch_loop.batch_idx)
        self.calls.append((name, *seen))

    return hook


HOOKS = [name for name in vars(Callback) if name.startswith("on_") and "checkpoint" not in name and "load" not in name]
for _name in [*HOOKS, "setup", "teardown"]:
    setattr(Heard, _name, _listen(_name))


def test_callbacks_hear_the_same_hooks_in_the_same_order():
    def calls(arguments):
        heard = Heard()
        trained = module(teacher=None)
        trained.build(("a", "b", "c"), (1, 8, 8))
        site = _site(trained)
        trainer = trainer_for(trained, {"accelerator": "cpu", "max_epochs": 2, **arguments}, [heard])
        works.fit(trainer, trained, site.train_loader(0))
        return type(trainer), heard.calls

    (lean, ours), (own, theirs) = (
        calls({"accumulate_grad_batches": 2}),
        calls({"accumulate_grad_batches": 2, **OWN_LOOPS}),
    )
    assert (lean, own) == (LeanTrainer, LightningTrainer)
    assert ours == [call for call in theirs if not call[0].startswith(("on_sanity", "on_validation"))]


def _site(trained):
    data = fedkd.FederatedDataModule.from_datasets(images(30), images(30, seed=1), num_clients=1, batch_size=8)
    data.setup()
    return data.site(0, modules=(trained,))


def test_a_trainer_is_used_again_and_starts_afresh():
    trained = module(teacher=None)
    trained.build(("a", "b", "c"), (1, 8, 8))
    arguments = {"accelerator": "cpu"}
    first = trainer_for(trained, arguments)
    works.fit(first, trained, _site(trained).train_loader(0))
    assert (first.global_step, first.current_epoch) == (4, 1)
    again = trainer_for(trained, arguments)
    assert again is first
    works.fit(again, trained, _site(trained).train_loader(0))
    assert (again.global_step, again.current_epoch) == (4, 1)
    assert trainer_for(trained, {"accelerator": "cpu", "max_epochs": 3}) is not first


class Overrides(fedkd.DistillationModule):
    """A subclass, which might override anything."""


class Declares(fedkd.DistillationModule):
    """A subclass that says that a lean fit will do."""

    runs_lean = True


@pytest.mark.parametrize(
    ("kind", "arguments", "callbacks", "reason"),
    [
        (fedkd.DistillationModule, {}, [], None),
        (Declares, {"precision": "bf16-mixed", "gradient_clip_val": 1.0}, [Heard()], None),
        (Overrides, {}, [], "Overrides does not declare runs_lean"),
        (Declares, {}, [Callback()], "Callback does not declare runs_lean"),
        (Declares, {"callbacks": [Heard()]}, [], "trainer.callbacks is set"),
        (Declares, {"limit_train_batches": 2}, [], "trainer.limit_train_batches is set"),
        (Declares, {"precision": "64-true"}, [], "trainer.precision is 64-true"),
        (Declares, {"max_epochs": -1, "max_steps": 3}, [], "trainer.max_steps is set"),
        (Declares, {"max_epochs": None}, [], "trainer.max_epochs is None"),
        (Declares, {"profiler": None}, [], None),
    ],
)
def test_lightnings_own_loops_run_for_a_declared_reason(kind, arguments, callbacks, reason):
    assert reason_for_lightning(kind(), {**TRAINER_DEFAULTS, **arguments}, callbacks) == reason


def test_a_scheduler_needs_lightnings_own_loops(trainers, tmp_path):
    def factory(params):
        optimizer = torch.optim.SGD(params, lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    trained = module(teacher=None, optimizer=factory)
    data = fedkd.FederatedDataModule.from_datasets(images(30), images(30, seed=1), num_clients=2)
    fedkd.Federation(rounds=1, trainer={"accelerator": "cpu"}, run_dir=tmp_path).fit(trained, data)
    assert trainers == {LightningTrainer}
