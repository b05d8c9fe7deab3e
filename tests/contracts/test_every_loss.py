"""What holds for every exported loss in a federation, here with its defaults."""

from __future__ import annotations

import functools
import inspect

import pytest
import torch
from helpers import Remote, same, weights

import fedkd
from fedkd.data import Digits, Subset
from fedkd.losses import DistillationLoss, LabelLoss
from fedkd.partition import Dirichlet


def exported(base: type) -> list[str]:
    return [
        name
        for name in fedkd.losses.__all__
        if inspect.isclass(found := getattr(fedkd.losses, name))
        and issubclass(found, base)
        and not inspect.isabstract(found)
        and found is not base
    ]


def run(backend: fedkd.Backend, run_dir, **arguments):
    """Train three clients for a round, with a real teacher, and return the student's state and the run's summary."""
    data = fedkd.FederatedDataModule(Subset(Digits(), 0.1), num_clients=3, partitioner=Dirichlet(1.0), batch_size=16)
    optimizer = functools.partial(torch.optim.Adam, lr=0.003)
    module = fedkd.DistillationModule("cnn", teacher="digits-tiny", optimizer=optimizer, **arguments)
    trainer = {"accelerator": "cpu"}
    summary = fedkd.Federation(rounds=1, backend=backend, trainer=trainer, run_dir=run_dir).fit(module, data)
    return weights(module), summary


OF_EACH_KIND = {"CenteredDKD", "FeatureMSE", "FrozenHead", "RKD"}
"""One of logits, one with a projector and the teacher's moments, one with its head, one of relations."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in OF_EACH_KIND else pytest.mark.slow) for name in exported(DistillationLoss)],
)
def test_a_loss_trains_the_same_from_bytes(name, tmp_path):
    here, summary = run(fedkd.InProcess(), tmp_path / "here", loss=getattr(fedkd.losses, name)())
    there, again = run(Remote(), tmp_path / "there", loss=getattr(fedkd.losses, name)())
    assert same(here, there)
    assert all(value.isfinite().all() for value in here.values())
    assert [summary[key] for key in ("bytes_up", "bytes_down")] == [again[key] for key in ("bytes_up", "bytes_down")]


@pytest.mark.slow
@pytest.mark.parametrize("name", exported(LabelLoss))
def test_a_label_loss_trains_the_same_from_bytes(name, tmp_path):
    settings = {"loss": fedkd.losses.KD(), "label_loss": getattr(fedkd.losses, name)()}
    here, _ = run(fedkd.InProcess(), tmp_path / "here", **settings)
    assert same(here, run(Remote(), tmp_path / "there", **settings)[0])
