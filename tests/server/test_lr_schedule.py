"""Clients' learning rates over the rounds of a run."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from helpers import LinearStudent, datamodule, images, module, same, sgd, weights

import fedkd
from fedkd.data import FederatedDataModule
from fedkd.server.lr_schedule import lr_factor, schedule_of
from fedkd.server.run_loggers import RunLoggers
from fedkd.strategies import SCAFFOLD, FedMD

FACTORS = [1.0, 0.8535533905932737, 0.5, 0.14644660940672624]  # (1 + cos(pi t / 4)) / 2


def test_cosine_by_hand():
    assert [lr_factor(schedule_of("cosine"), t, 4) for t in range(4)] == pytest.approx(FACTORS)
    assert {lr_factor(schedule_of("constant"), t, 4) for t in range(4)} == {1.0}


def test_other_schedules_by_hand():
    cosine = fedkd.CosineSchedule(warmup=2, end=0.5)
    assert [cosine.factor(t, 4) for t in range(4)] == pytest.approx([1 / 3, 2 / 3, 1.0, 0.75])
    steps = fedkd.StepSchedule([2, 3], decay=0.1)
    assert [steps.factor(t, 5) for t in range(5)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])
    assert [fedkd.ExponentialSchedule(0.5).factor(t, 3) for t in range(3)] == [1, 0.5, 0.25]


class Negative(fedkd.LearningRateSchedule):
    def factor(self, round, rounds):
        return -1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fedkd.CosineSchedule(end=2), "end must be >= 0 and <= 1, got 2"),
        (lambda: fedkd.CosineSchedule(warmup=-1), "warmup must be"),
        (lambda: fedkd.StepSchedule([0]), "milestones must be >= 1, got 0"),
        (lambda: fedkd.StepSchedule(30), r"milestones must be a list of rounds, such as \[30, 45\], got 30"),
        (lambda: fedkd.StepSchedule([3], decay=0), "decay must be > 0 and <= 1, got 0"),
        (lambda: fedkd.ExponentialSchedule(1.1), "decay must be > 0 and <= 1, got 1.1"),
        (lambda: lr_factor(Negative(), 1, 2), r"Negative\(\) must give a finite factor >= 0, got -1.0 in round 1 of 2"),
        (lambda: fedkd.Federation(lr_schedule=fedkd.CosineSchedule), "lr_schedule"),
    ],
)
def test_what_is_no_schedule_is_one_line(make, message):
    with pytest.raises(fedkd.FedKDError, match=message):
        make()


class PerStep(fedkd.DistillationModule):
    """Its learning rate falls with the steps of a fit."""

    runs_lean = True

    def configure_optimizers(self):
        optimizer = self.optimizer(self.student.parameters())
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def update(lr, factor, kind=fedkd.DistillationModule, trainer=None, stacked=False):
    data = datamodule()
    data.setup()
    torch.manual_seed(0)
    trained = kind(LinearStudent(), optimizer=sgd(lr))
    trained.build(data.classes, data.image_shape)
    arguments = {"accelerator": "cpu", "max_epochs": 2, **(trainer or {})}
    backend = fedkd.Stacked(2) if stacked else fedkd.InProcess()
    start = fedkd.Weights.of(trained.student)
    tasks = [fedkd.ClientTask(0, client, start, settings={"lr_factor": factor}) for client in range(2)]
    with backend.open(data.sites(seed=0, modules=(trained,), trainer=arguments)) as workers:
        return list(workers.map(fedkd.train, tasks))[1].delta


@pytest.mark.parametrize("kind", [fedkd.DistillationModule, PerStep])
@pytest.mark.parametrize("trainer", [{}, {"max_steps": 100}], ids=["lean", "Lightning's loops"])
@pytest.mark.parametrize("stacked", [False, True])
def test_a_factor_of_a_half_is_half_the_rate(kind, trainer, stacked):
    if stacked and trainer:
        pytest.skip("Stacked refuses max_steps")
    half = update(0.2, 0.5, kind, trainer, stacked)
    assert same(dict(half), dict(update(0.1, 1.0, kind, trainer, stacked)))
    assert not same(dict(half), dict(update(0.2, 1.0, kind, trainer, stacked)))


class Rates(fedkd.DistillationModule):
    """Notes the learning rate of every step."""

    runs_lean = True
    seen: ClassVar[list[float]] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("strategy", [fedkd.FedAvg(), SCAFFOLD(), FedMD(["cnn", "resnet8"])], ids=repr)
def test_a_run_follows_the_cosine_and_so_does_one_that_goes_on(strategy, tmp_path, monkeypatch):
    monkeypatch.setattr(Rates, "with_student", lambda self, name: Rates(name, optimizer=sgd(0.2)))
    data = FederatedDataModule.from_datasets(images(60), images(30, seed=1), num_clients=3, public_fraction=0.2)

    def fit(rounds, **arguments):
        Rates.seen.clear()
        run = fedkd.Federation(
            rounds, strategy=strategy, lr_schedule="cosine", run_dir=tmp_path / "run", trainer={"accelerator": "cpu"}
        )
        run.fit(Rates(LinearStudent(), optimizer=sgd(0.2)), data, **arguments)
        return list(dict.fromkeys(Rates.seen))

    assert fit(2) == pytest.approx([0.2, 0.1])
    assert fit(4, ckpt_path="last") == pytest.approx([0.2 * FACTORS[2], 0.2 * FACTORS[3]])


def test_a_schedule_of_ones_own_is_followed_and_kept(tmp_path):
    data = FederatedDataModule.from_datasets(images(60), images(30, seed=1), num_clients=3)

    def run(decay, rounds):
        schedule, trainer = fedkd.ExponentialSchedule(decay), {"accelerator": "cpu"}
        return fedkd.Federation(rounds, lr_schedule=schedule, run_dir=tmp_path / "run", trainer=trainer)

    Rates.seen.clear()
    summary = run(0.5, 3).fit(Rates(LinearStudent(), optimizer=sgd(0.2)), data)
    assert list(dict.fromkeys(Rates.seen)) == pytest.approx([0.2, 0.1, 0.05])
    assert "ExponentialSchedule(decay=0.5)" in summary["settings"]["lr_schedule"]
    with pytest.raises(fedkd.FedKDError, match=r"its lr_schedule is .*decay=0\.5.*, this run's is .*decay=0\.25"):
        run(0.25, 4).fit(Rates(LinearStudent(), optimizer=sgd(0.2)), data, ckpt_path="last")


def test_another_schedule_is_another_run(tmp_path):
    data, trainer = datamodule(), {"accelerator": "cpu"}
    fedkd.Federation(1, run_dir=tmp_path / "run", trainer=trainer).fit(module(), data)
    with pytest.raises(
        fedkd.FedKDError,
        match=r"its lr_schedule is 'ConstantSchedule\(\)', this run's is 'CosineSchedule\(warmup=0, end=0.0\)'",
    ):
        fedkd.Federation(2, lr_schedule="cosine", run_dir=tmp_path / "run", trainer=trainer).fit(
            module(), data, ckpt_path="last"
        )


def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    def fit(folder, ckpt_path=None):
        trained, trainer = module(), {"accelerator": "cpu"}
        run = fedkd.Federation(3, lr_schedule="cosine", run_dir=tmp_path / folder, trainer=trainer)
        run.fit(trained, datamodule(), ckpt_path=ckpt_path)
        return weights(trained)

    def interrupt(self, row):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunLoggers, "log", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit("interrupted")
    assert same(fit("interrupted", "last"), fit("whole"))


def test_a_wrong_name_is_one_line():
    with pytest.raises(fedkd.FedKDError, match=r"'cosin'.*cosine"):
        fedkd.Federation(lr_schedule="cosin")
