"""`describe`: one plain form of every kind of setting, the same in every process, and another for another setting."""

from __future__ import annotations

import copy
import enum
import functools
import json
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import datamodule, module
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from torch import nn
from torch.optim import lr_scheduler

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


WEIGHTS = {"classes": torch.ones(2)}


def weighted(losses):
    return WEIGHTS["classes"] * losses


def test_tensors_that_a_function_names_count(monkeypatch):
    before = describe(weighted)
    assert describe(weighted) == before
    monkeypatch.setitem(WEIGHTS, "classes", torch.zeros(2))
    assert describe(weighted) != before


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


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


class Resize:
    def __init__(self, size):
        self.size = size

    def __call__(self, x):
        return x


def doubled(x, factor=2):
    return factor * x


def closing_over(factor):
    return lambda x: factor * x


def test_each_kind_has_the_form_that_it_is_said_to_have():
    assert describe(Size.SMALL) == "test_config.Size.SMALL"
    assert describe(Path("a/b")) == "a/b"
    assert describe(timedelta(seconds=2)) == "datetime.timedelta(seconds=2)"
    assert describe([float("inf"), float("nan")]) == ["inf", "nan"]
    assert describe(torch.Size([2, 3])) == [2, 3]
    assert describe(torch.device("cuda", 1)) == "cuda:1"
    assert describe({1: 2, "b": 3}) == {"1": 2, "b": 3}
    assert describe(nn.Linear) == "torch.nn.Linear"
    assert describe(torch.nn.functional.relu) == "torch.nn.functional.relu"
    assert describe(fedkd.strategies.FedProx(0.5)) == {
        "class_path": "fedkd.strategies.FedProx",
        "init_args": {"proximal_mu": 0.5},
    }
    assert describe(Resize(3)) == {"class_path": "test_config.Resize", "settings": {"size": 3}}
    assert describe(nn.Sequential(nn.Dropout(0.5))) == {
        "class_path": "torch.nn.Sequential",
        "settings": {"0": {"class_path": "torch.nn.Dropout", "settings": {"inplace": False, "p": 0.5}}},
    }
    found = describe(closing_over(3))
    assert found["function"] == "test_config.closing_over.<locals>.<lambda>"
    assert found["values"] == {"factor": 3}
    assert one_line(closing_over(3)) == f"<lambda {found['code']}, factor=3>"
    assert describe(doubled)["values"] == {"factor": 2}
    assert one_line(functools.partial(torch.optim.SGD, lr=1)) == (
        "{'call': 'torch.optim.SGD', 'args': [], 'kwargs': {'lr': 1}}"
    )


@pytest.mark.parametrize("value", [{"function": "x"}, {"class": 3, "code": 4}, {"class_path": 3}, {"a": {"of": 1}}])
def test_a_dictionary_with_the_keys_of_a_description_is_shown_as_it_is(value):
    assert one_line(value) == repr(value)


def schedule(kind, **arguments):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1, momentum=0.9)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": kind(optimizer, **arguments), "interval": "step"}}


def sequence(optimizer, gamma, milestone):
    parts = [lr_scheduler.ConstantLR(optimizer), lr_scheduler.ExponentialLR(optimizer, gamma)]
    return lr_scheduler.SequentialLR(optimizer, parts, [milestone])


def cached(constant):
    return functools.lru_cache(lambda x: x + constant)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (timedelta(1), timedelta(2)),
        (Path("a"), Path("b")),
        (b"a", b"b"),
        (range(2), range(3)),
        (Size.SMALL, Size.LARGE),
        (np.array(["a"]), np.array(["b"])),
        (torch.eye(2).to_sparse(), (2 * torch.eye(2)).to_sparse()),
        (nn.CrossEntropyLoss(torch.ones(2)), nn.CrossEntropyLoss(torch.zeros(2))),
        (closing_over(2), closing_over(3)),
        (cached(2), cached(3)),
        (Resize(1).__call__, Resize(2).__call__),
        (type("T", (), {"f": lambda self: 1}), type("T", (), {"f": lambda self: 2})),
        (
            schedule(lr_scheduler.LambdaLR, lr_lambda=closing_over(2)),
            schedule(lr_scheduler.LambdaLR, lr_lambda=doubled),
        ),
        (schedule(sequence, gamma=0.5, milestone=3), schedule(sequence, gamma=0.6, milestone=3)),
        (schedule(sequence, gamma=0.5, milestone=3), schedule(sequence, gamma=0.5, milestone=4)),
        *(
            (schedule(lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=9, pct_start=0.3), changed)
            for changed in (
                schedule(lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=9, pct_start=0.5),
                schedule(lr_scheduler.OneCycleLR, max_lr=2.0, total_steps=9, pct_start=0.3),
            )
        ),
    ],
)
def test_whatever_differs_has_another_description_and_another_line(one, other):
    assert describe(one) == describe(copy.deepcopy(one)) != describe(other)
    assert one_line(one) == one_line(copy.deepcopy(one)) != one_line(other)
    assert json.loads(json.dumps(describe(one), allow_nan=False)) == describe(one)
    assert " at 0x" not in one_line({doubled: one, nn.Linear: other})
    assert "\n" not in one_line([one, other])


def test_a_users_function_counts_with_what_it_calls_and_a_variable_may_still_be_empty(monkeypatch):
    def calls(x):
        return doubled(x) + later

    before = describe(calls)
    later = 1
    assert describe(calls) == {**before, "values": {"later": 1}}
    monkeypatch.setitem(globals(), "doubled", closing_over)
    assert describe(calls)["code"] != before["code"]


class Weighs(fedkd.losses.LabelLoss):
    """Has a tensor and a part, and keeps the one as a buffer."""

    def __init__(self, weight, part: nn.Module, *, _scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.part = part
        self._kept = _scale

    def forward(self, logits, targets, counts=None):
        return self._kept * self.part(logits, targets)


@dataclass(frozen=True)
class Frozen(Configured):
    size: int = 1


@pytest.mark.parametrize("value", [Hides(3.0), Passes(0.5, 1, z=3), KD(temperature="auto"), Frozen(2)])
def test_copies_are_described_as_what_they_copy(value):
    for made in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert describe(made) == describe(value)
        assert repr(made) == repr(value)


def test_a_dataclass_that_is_replaced_is_described_anew():
    assert describe(replace(Frozen(2), size=3))["init_args"] == {"size": 3}


def test_the_present_buffer_and_part_count_and_no_record_is_in_the_state():
    loss = Weighs(torch.ones(3), nn.CrossEntropyLoss())
    assert list(loss.state_dict()) == ["weight"]
    before = describe(loss)
    loss.part = nn.CrossEntropyLoss(label_smoothing=0.1)
    smoothed = describe(loss)
    loss.weight = torch.zeros(3)
    assert before != smoothed != describe(loss)
    loaded = Weighs(torch.zeros(3), nn.CrossEntropyLoss(label_smoothing=0.1))
    assert describe(loaded) == describe(loss)


def test_a_loss_prints_in_one_line_inside_a_module():
    assert "(0): KD(ce_weight=0.1, kd_weight=0.9, temperature=2.0" in repr(nn.ModuleList([KD()]))


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


IN_ANOTHER_PROCESS = """
import json, fedkd, functools, torch
from fedkd.core.config import describe

def chosen(x):
    return x in {"a", "b", "c", "d", "e", "f"}

names = {"a", "b", "c", "d", "e", "f"}
print(json.dumps(describe([fedkd.losses.DKD(), names, functools.partial(torch.optim.SGD, lr=1), chosen, {chosen: 1}])))
"""


@pytest.mark.slow
def test_the_description_is_the_same_in_every_process():
    found = [
        subprocess.run(
            [sys.executable, "-c", IN_ANOTHER_PROCESS],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert found[0] == found[1]
    here = describe([DKD(), {"a", "b", "c", "d", "e", "f"}, functools.partial(torch.optim.SGD, lr=1)])
    assert json.loads(found[0])[:3] == here


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
    {"max_time": timedelta(minutes=1)},
    {"max_time": timedelta(minutes=2)},
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


@pytest.mark.parametrize(
    "trainer",
    [
        {"accelerator": "cpu"},
        {"enable_progress_bar": False},
        {"limit_val_batches": 1},
        {"callbacks": []},
        {"limit_train_batches": 1.0},
        {"precision": 32},
        {"overfit_batches": 0.0, "max_epochs": 1, "max_steps": -1},
    ],
)
def test_what_changes_no_result_changes_no_identity(trainer):
    assert identity(**trainer) == identity()


def test_the_order_of_the_trainers_arguments_and_a_list_of_one_callback_change_nothing():
    one = {"min_epochs": 1, "gradient_clip_val": 1.0, "callbacks": GradientAccumulationScheduler({0: 2})}
    other = {"callbacks": [GradientAccumulationScheduler({0: 2})], "gradient_clip_val": 1.0, "min_epochs": 1}
    assert identity(**one) == identity(**other)


def test_a_scheduler_beside_the_optimizer_counts():
    plain = fedkd.DistillationModule("cnn", optimizer=functools.partial(torch.optim.SGD, lr=0.1))
    found = [identity(each)["optimizer"] for each in (plain, Scheduled("cnn"), SlowlyScheduled("cnn"))]
    assert len(set(found)) == 3


def test_a_layer_without_weights_counts():
    def student(rate: float) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Dropout(rate), nn.Linear(64, 3))

    found = [identity(module(student(rate)))["student"] for rate in (0.1, 0.5, 0.1)]
    assert found[0] == found[2] != found[1]
