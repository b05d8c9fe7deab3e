"""A student that uses one tensor in two places: it is one parameter, wherever it goes."""

from __future__ import annotations

import pytest
import torch
from helpers import datamodule, module, same, sgd, weights
from torch import nn

import fedkd
from fedkd.core.tensors import load_state, split_state
from fedkd.strategies import MOON, SCAFFOLD, FedAdam, FedAvg, FedAvgM, FedDyn, FedGKD, NormClipping


class Tied(nn.Module):
    """An autoencoder's weight, used forth and back; the state_dict has it under two names, and a buffer too."""

    def __init__(self):
        super().__init__()
        self.forth = nn.Linear(64, 16, bias=False)
        self.back = nn.Linear(16, 64, bias=False)
        self.again = nn.Linear(64, 16, bias=False)
        self.again.weight = self.forth.weight
        self.register_buffer("shift", torch.tensor(0.1))
        self.register_buffer("shift_too", self.shift)
        self.head = nn.Linear(16, 3)

    def forward(self, images):
        x = torch.tanh(self.forth(images.flatten(1)) + self.shift)
        return self.head(torch.tanh(self.again(self.back(x))) + self.shift_too)


def federate(run_dir, strategy, rounds=2, backend=None):
    torch.manual_seed(0)
    trained = module(Tied(), optimizer=sgd(0.1))
    federation = fedkd.Federation(
        rounds,
        strategy=strategy,
        backend=backend or fedkd.InProcess(),
        run_dir=run_dir,
        trainer={"accelerator": "cpu"},
    )
    return trained, federation.fit(trained, datamodule(3))


def test_a_state_has_one_entry_for_one_tensor_and_loads_into_both_places():
    student = Tied()
    parameters, buffers = split_state(student)
    assert list(parameters) == ["forth.weight", "back.weight", "head.weight", "head.bias"]
    assert list(buffers) == ["shift"]
    other = Tied()
    load_state(other, {name: value + 1 for name, value in parameters.items()}, {"shift": torch.tensor(3.0)})
    assert torch.equal(other.again.weight, student.forth.weight + 1)
    assert other.again.weight is other.forth.weight
    assert other.shift_too == other.shift == 3


def test_a_server_optimizer_moves_it_as_the_others(tmp_path):
    torch.manual_seed(0)
    before = Tied().state_dict()
    trained, summary = federate(tmp_path, FedAvgM(server_lr=1e-6), rounds=1)
    after = weights(trained)
    for name, value in before.items():
        assert (after[name] - value).abs().max() < 1e-5, name
    parameters = 64 * 16 * 2 + 16 * 3 + 3
    assert summary["bytes_up"] == 3 * 4 * (parameters + 1)  # and the buffer


@pytest.mark.parametrize("strategy", [FedAvg(), FedAdam(0.01), NormClipping(0.01), SCAFFOLD(), FedDyn(0.1)], ids=repr)
def test_both_names_stay_one_tensor_and_a_run_can_be_loaded(tmp_path, strategy):
    trained, _ = federate(tmp_path, strategy)
    assert trained.student.again.weight is trained.student.forth.weight
    loaded = fedkd.load_student(tmp_path, Tied())
    assert same(loaded.state_dict(), weights(trained))


@pytest.mark.parametrize("strategy", [MOON(), FedGKD()], ids=repr)
def test_copies_of_it_are_tied_too(tmp_path, strategy):
    trained, _ = federate(tmp_path, strategy, rounds=3)
    assert trained.student.again.weight is trained.student.forth.weight


def test_stacked_clients_share_it_each_on_its_own(tmp_path):
    alone, _ = federate(tmp_path / "alone", SCAFFOLD())
    stacked, _ = federate(tmp_path / "stacked", SCAFFOLD(), backend=fedkd.Stacked(3))
    for name, value in weights(alone).items():
        torch.testing.assert_close(weights(stacked)[name], value, rtol=1e-4, atol=1e-4)
