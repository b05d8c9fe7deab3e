"""No step of a client's training makes the host wait for a GPU: none reads a value from it, none copies one to it.

Here the device is "meta". Its tensors have no values, so a read raises; copies to it are counted. A fit may copy before
its first step and at the start of an epoch, so two fits of an epoch with different numbers of steps are
compared. `tests/gpu` counts the waits themselves.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from helpers import BrightRowTeacher, module, one_client_with_everything
from test_every_loss import exported
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fedkd
from fedkd.data import CutMix, MixUp
from fedkd.losses import DistillationLoss, FeatureMoments, LabelLoss, TeacherFacts
from fedkd.training import lean_trainer
from fedkd.training.lean_trainer import LeanTrainer
from fedkd.training.trainer import TRAINER_DEFAULTS, fit

pytestmark = pytest.mark.filterwarnings("ignore:.*which is a no-op")  # a state that is loaded into the device

META = torch.device("meta")
STRATEGIES = ["FedProx", "SCAFFOLD", "FedDyn", "FedNTD", "FedGKD", "MOON"]
"""Those that do something in a client's steps."""


class Copies(TorchDispatchMode):
    """Counts the operations between the CPU and the device, and the numbers that ``torch.tensor`` brings there."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.count, make = 0, torch.tensor

        def tensor(*arguments, device=None, **options):  # its copy is none of the operations
            self.count += device is not None and torch.device(device) == META
            return make(*arguments, device=device, **options)

        monkeypatch.setattr(torch, "tensor", tensor)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = (each for each in tree_leaves((args, kwargs, result)) if isinstance(each, torch.Tensor))
        self.count += len({each.device.type for each in tensors}) > 1
        return result


def student():
    """Return a student that keeps statistics and has features."""
    return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))


def make(**arguments):
    """Return a module with a teacher."""
    return module(student(), teacher=BrightRowTeacher(), **arguments)


def client(trained, batch_size, folder, mix=None):
    """Return the site of the only client: augmented images and shared ones, teacher logits and features of views."""
    data = one_client_with_everything(30, batch_size, mix)
    trained.build(data.classes, data.image_shape)
    logits, features = torch.randn(30, 2, 3), folder / "features.npy"
    np.save(features, np.ones((30, 2, 3), np.float16))
    pools = data.pools(logits, logits, features)
    return data.site(0, modules=(trained,), teacher_logits=logits, feature_file=features, pools=pools)


def steps_and_copies(trained, batch_size, folder, patch, strategy=None, client_state=None, mix=None):
    """Fit a client on the device. Return the number of steps and of copies."""
    site = client(trained, batch_size, folder, mix)
    facts = TeacherFacts(2.0, FeatureMoments(torch.zeros(3), 1.0), nn.Identity())
    trained.fit_to_teacher(facts)
    start = fedkd.Weights.of(trained.student)
    rule = (strategy or fedkd.FedAvg()).local_rule(fedkd.ServerState(0, start), 0)
    task = fedkd.ClientTask(0, 0, start, client_state=client_state or {}, rule=rule)
    settings = {"accelerator": "cpu", "gradient_clip_val": 0.5, "accumulate_grad_batches": 2}
    trainer = LeanTrainer({**TRAINER_DEFAULTS, **settings})
    trainer.callbacks = rule.callbacks(task)
    patch.setattr(trainer.strategy, "_root_device", META)
    patch.setattr(torch, "autocast", lambda *arguments, **options: nullcontext())  # there is none for this device
    patch.setattr(lean_trainer, "_numbers", lambda metrics: {})  # an epoch ends with one read
    with Copies(patch) as copies:
        fit(trainer, trained.for_clients(), site.train_loader(0, META))
    return trainer.global_step, copies.count


def check(make, folder, monkeypatch, **settings):
    found = []
    for batch_size in (18, 5):
        with monkeypatch.context() as patch:
            found.append(steps_and_copies(make(), batch_size, folder, patch, **settings))
    few, many = found
    assert (few[0], many[0]) == (1, 2)
    assert few[1] == many[1] > 0


@pytest.mark.parametrize("name", exported(DistillationLoss))
def test_with_every_loss(name, tmp_path, monkeypatch):
    check(partial(make, loss=getattr(fedkd.losses, name)()), tmp_path, monkeypatch)


@pytest.mark.parametrize(("name", "mix"), [("DKD", MixUp()), ("RKD", CutMix())])
def test_with_mixed_images(name, mix, tmp_path, monkeypatch):
    settings = {"strategy": fedkd.strategies.FedNTD(), "mix": mix}
    check(partial(make, loss=getattr(fedkd.losses, name)()), tmp_path, monkeypatch, **settings)


@pytest.mark.parametrize("name", exported(LabelLoss))
def test_with_every_label_loss(name, tmp_path, monkeypatch):
    settings = {"loss": fedkd.losses.KD(), "label_loss": getattr(fedkd.losses, name)()}
    check(partial(make, **settings), tmp_path, monkeypatch)


def test_with_a_resnet(tmp_path, monkeypatch):
    check(partial(module, "resnet8", teacher=BrightRowTeacher()), tmp_path, monkeypatch)


@pytest.mark.parametrize("remembers", [False, True])
@pytest.mark.parametrize("name", STRATEGIES)
def test_with_every_term_of_a_strategy(name, remembers, tmp_path, monkeypatch):
    strategy, state = getattr(fedkd.strategies, name)(), student().state_dict() if remembers else {}
    check(make, tmp_path, monkeypatch, strategy=strategy, client_state=dict(state))
