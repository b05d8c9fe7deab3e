"""Parts of a student that its owner put into evaluation mode stay there, whatever trains and evaluates it."""

from __future__ import annotations

import pytest
import torch
from helpers import BrightRowTeacher, datamodule, module, sgd, weights
from lightning.pytorch import Trainer
from torch import nn

import fedkd
from fedkd.core.modes import evaluating
from fedkd.losses import FeatureCosine
from fedkd.strategies import (
    MOON,
    SCAFFOLD,
    ClosedFormHead,
    Compose,
    FedAvg,
    PooledBatchNorm,
    ReestimatedBatchNorm,
    ServerDistillation,
)


def student() -> nn.Module:
    """Return a network of two BatchNorms, of which the first is frozen in its statistics, and a dropout that is off."""
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Dropout(0.9),
        nn.Flatten(),
        nn.Linear(4 * 64, 3),
    )
    made[1].running_mean.fill_(0.3)
    made[1].eval()
    made[5].eval()
    return made


def check(trained):
    state = weights(trained)
    frozen, free = (next(v for k, v in state.items() if k.endswith(f"{i}.running_mean")) for i in (1, 4))
    assert torch.equal(frozen, torch.full((4,), 0.3))
    assert not torch.equal(free, torch.zeros(4))
    assert state[next(k for k in state if k.endswith("1.num_batches_tracked"))] == 0
    layers = [m for m in trained.student.modules() if isinstance(m, nn.BatchNorm2d | nn.Dropout)]
    assert [layer.training for layer in layers] == [False, True, False]


@pytest.mark.parametrize(
    "strategy",
    [
        FedAvg(),
        SCAFFOLD("I"),
        MOON(),
        PooledBatchNorm(),
        Compose([ServerDistillation(epochs=1), ReestimatedBatchNorm(), ClosedFormHead("last")]),
    ],
    ids=lambda each: type(each).__name__,
)
def test_a_federation_keeps_them(tmp_path, strategy):
    data = datamodule(3)
    data.public_fraction = 0.3
    trained = module(student(), teacher=BrightRowTeacher(), optimizer=sgd(0.01))
    federation = fedkd.Federation(2, strategy=strategy, run_dir=tmp_path, trainer={"accelerator": "cpu"})
    federation.fit(trained, data)
    check(trained)


@pytest.mark.parametrize("loops", [{}, {"limit_train_batches": 1.0}], ids=["lean", "Lightning's own"])
def test_both_loops_and_a_loss_on_features_keep_them(tmp_path, loops):
    trained = module(student(), teacher=BrightRowTeacher(), loss=FeatureCosine(), optimizer=sgd(0.01))
    federation = fedkd.Federation(2, run_dir=tmp_path, trainer={"accelerator": "cpu", **loops})
    federation.fit(trained, datamodule(3))
    check(trained)


def test_a_trainer_keeps_them(tmp_path):
    trained = module(student(), optimizer=sgd(0.01))
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, barebones=False)
    trainer.fit(trained, datamodule=datamodule(1))
    check(trained)


def test_a_module_in_evaluation_mode_as_a_whole_trains(tmp_path):
    trained = module(student().eval(), optimizer=sgd(0.01))
    fedkd.Federation(1, run_dir=tmp_path, trainer={"accelerator": "cpu"}).fit(trained, datamodule(3))
    assert not torch.equal(weights(trained)["1.running_mean"], torch.full((4,), 0.3))


def fail_in(made):
    with evaluating(made):
        assert not any(part.training for part in made.modules())
        raise ValueError("stop")


def test_evaluating_restores_every_part_also_after_an_error():
    made = student()
    before = [part.training for part in made.modules()]
    with pytest.raises(ValueError, match="stop"):
        fail_in(made)
    assert [part.training for part in made.modules()] == before
