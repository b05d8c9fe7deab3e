"""`describe`: one plain form of every kind of setting, the same in every process, and another for another setting."""

from __future__ import annotations

import functools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import datamodule, module
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from torch import nn

import fedkd
from fedkd.core.config import Configured, describe, init_args, one_line
from fedkd.losses import DKD, KD
from fedkd.runs.identity import run_identity
from fedkd.strategies import FedAvg, FedProx


class Hides(FedAvg):
    """A strategy that keeps its argument under a private name."""

    def __init__(self, strength: float = 1.0) -> None:
        self._strength = strength


class Passes(Hides):
    """Its own argument goes on to the base class, changed."""

    def __init__(self, half: float, *rest: int, **more: int) -> None:
        super().__init__(strength=2 * half)


def test_plain_values_stay_and_numbers_become_plain():
    given = {"a": [1, 2.5, True, None, "x"], "b": (1, 2), "c": {3, 1}, "d": np.float64(0.5), "e": np.int32(7)}
    assert describe(given) == {"a": [1, 2.5, True, None, "x"], "b": [1, 2], "c": [1, 3], "d": 0.5, "e": 7}
    assert describe(torch.float16) == "torch.float16"


@pytest.mark.parametrize("value", [KD(temperature=4), FedProx(0.3), Hides(3.0), fedkd.ProcessPool(3)])
def test_an_object_is_its_class_and_all_its_arguments(value):
    found = describe(value)
    assert set(found) == {"class_path", "init_args"}
    assert json.loads(json.dumps(found)) == found
    assert found["init_args"] == describe(init_args(value))
    assert repr(value) == one_line(value)


def test_a_private_attribute_hides_no_argument():
    assert describe(Hides(3.0))["init_args"] == {"strength": 3.0}
    assert describe(Hides())["init_args"] == {"strength": 1.0}
    assert describe(Passes(0.5, 1, 2, z=3))["init_args"] == {"half": 0.5, "rest": [1, 2], "z": 3}
    assert repr(Hides(3.0)) == "Hides(strength=3.0)"


def test_what_is_changed_afterwards_counts():
    loss = KD(temperature=4)
    loss.temperature = 2.0
    assert describe(loss)["init_args"]["temperature"] == 2.0


def test_tensors_modules_and_functions_count_by_their_content():
    one, other = torch.zeros(3), torch.tensor([0, 0, 1e-9])
    assert describe(one) == describe(one.clone()) != describe(other)
    assert describe(one.numpy()) != describe(other.numpy())
    assert describe(nn.Dropout(0.1)) != describe(nn.Dropout(0.2))

    def scaled(factor):
        return lambda x: factor * x

    assert describe(scaled(2)) == describe(scaled(2)) != describe(scaled(3))
    assert describe(lambda x: x + 1) != describe(lambda x: x + 2)
    assert describe(functools.partial(max, 1)) != describe(functools.partial(max, 2))


def test_optimizers_and_schedulers_count_by_their_options():
    def made(lr=0.1, momentum=0.9, gamma=0.5):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=lr, momentum=momentum)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma)]

    assert describe(made()) == describe(made())
    for change in ({"lr": 0.2}, {"momentum": 0.8}, {"gamma": 0.4}):
        assert describe(made()) != describe(made(**change))


def test_a_thing_that_holds_itself_ends():
    class Ring:
        def __init__(self):
            self.next = self

    assert "holds itself" in json.dumps(describe(Ring()))


def test_the_description_is_the_same_in_another_process():
    code = (
        "import json, fedkd, functools, torch; from fedkd.core.config import describe;"
        "print(json.dumps(describe([fedkd.losses.DKD(), {'b', 'a', 'c'}, functools.partial(torch.optim.SGD, lr=1)])))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(other) == describe([DKD(), {"a", "b", "c"}, functools.partial(torch.optim.SGD, lr=1)])


def test_an_argument_is_recorded_once_and_defaults_are_filled_in():
    class Base(Configured):
        def __init__(self, a: int, b: int = 2) -> None:
            self.total = a + b

    assert init_args(Base(1)) == {"a": 1, "b": 2}
    assert repr(Base(1, b=5)).endswith("Base(a=1, b=5)")


class Scheduled(fedkd.DistillationModule):
    """Returns an optimizer with a scheduler."""

    gamma = 0.5

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.student.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, self.gamma)]


class SlowlyScheduled(Scheduled):
    """With another scheduler."""

    gamma = 0.9


def identity(made: fedkd.DistillationModule | None = None, **trainer):
    made, data = made or module(), datamodule()
    data.setup()
    made.build(data.classes, data.image_shape)
    return run_identity(made, data, trainer)


TRAINER_SETTINGS = [
    {"max_epochs": 3},
    {"max_steps": 5},
    {"min_epochs": 2},
    {"limit_train_batches": 2},
    {"limit_train_batches": 0.5},
    {"overfit_batches": 1},
    {"fast_dev_run": 1},
    {"max_time": "00:00:01:00"},
    {"precision": "bf16-mixed"},
    {"accumulate_grad_batches": 2},
    {"gradient_clip_val": 1.0},
    {"gradient_clip_val": 0.5},
    {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"},
    {"callbacks": [StochasticWeightAveraging(0.1)]},
    {"callbacks": [StochasticWeightAveraging(0.2)]},
    {"callbacks": [GradientAccumulationScheduler({0: 2})]},
]


def test_every_setting_of_the_trainer_that_changes_a_result_gives_another_identity():
    found = [json.dumps(identity(**trainer), sort_keys=True) for trainer in [{}, *TRAINER_SETTINGS]]
    assert len(set(found)) == len(found)
    again = [json.dumps(identity(**trainer), sort_keys=True) for trainer in [{}, *TRAINER_SETTINGS]]
    assert again == found


@pytest.mark.parametrize("trainer", [{"accelerator": "cpu"}, {"enable_progress_bar": False}, {"limit_val_batches": 1}])
def test_what_changes_no_result_changes_no_identity(trainer):
    assert identity(**trainer) == identity()


def test_a_scheduler_beside_the_optimizer_counts():
    plain = fedkd.DistillationModule("cnn", optimizer=functools.partial(torch.optim.SGD, lr=0.1))
    found = [identity(each)["optimizer"] for each in (plain, Scheduled("cnn"), SlowlyScheduled("cnn"))]
    assert len(set(found)) == 3
