"""FedNova: steps that differ do not weigh, steps that are equal change nothing."""

from __future__ import annotations

import pytest
import torch
from helpers import datamodule, module, weights
from rounds import state, update

import fedkd
from fedkd.partition import IID, Dirichlet
from fedkd.strategies import FedAvg, FedNova
from fedkd.strategies.server_side.fednova import accumulation


def sgd(**arguments):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, **arguments)


def with_sums(deltas, sums, num_examples=(10, 10)):
    """Return updates of one parameter that say ||a_i||_1."""
    rows = zip(deltas, sums, num_examples, strict=True)
    return [
        update(i, d, num_examples=n, extras={"accumulation": torch.tensor(a, dtype=torch.float64)})
        for i, (d, a, n) in enumerate(rows)
    ]


def nova(*arguments) -> float:
    return FedNova().aggregate(state(0.0), with_sums(*arguments)).weights.parameters["w"].item()


def test_by_hand():
    # both move 1 a step, in 1 and 3 steps: the mean of 2 steps goes 2, as FedAvg's mean of 1 and 3 does
    assert nova([1.0, 3.0], [1.0, 3.0]) == pytest.approx(2.0)
    # the second has moved the same in thrice the steps, so a third a step: 2 * (1 + 1/3) / 2, where FedAvg has 1
    assert nova([1.0, 1.0], [1.0, 3.0]) == pytest.approx(4 / 3)
    # p = 1/4, 3/4: (1/4 + 9/4) * (1/4 * 4 + 3/4 * 3 / 3) = 2.5 * 1.75
    assert nova([4.0, 3.0], [1.0, 3.0], (1, 3)) == pytest.approx(4.375)
    # who took no step is no part of the direction, nor of the length
    assert nova([1.0, 0.0], [2.0, 0.0]) == pytest.approx(0.25)
    assert nova([0.0, 0.0], [0.0, 0.0]) == 0


def test_accumulation_has_the_papers_closed_form():
    assert accumulation(sgd(), 7) == 7
    for steps in (0, 1, 2, 10, 300):
        rho = 0.9
        closed = (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
        assert accumulation(sgd(momentum=rho), steps) == pytest.approx(closed, abs=1e-9)
    assert accumulation(torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))]), 5) == 5


@pytest.mark.parametrize(
    "arguments",
    [{}, {"momentum": 0.5}, {"momentum": 0.9, "dampening": 0.3}, {"momentum": 0.9, "nesterov": True}],
    ids=str,
)
def test_accumulation_is_how_far_torch_goes(arguments):
    optimizer = sgd(**arguments)
    (parameter,) = optimizer.param_groups[0]["params"]
    for step in range(1, 6):
        parameter.grad = torch.ones(1)
        optimizer.step()
        assert accumulation(optimizer, step) == pytest.approx(-parameter.item(), rel=1e-5)


def test_groups_of_different_momentum_are_refused():
    optimizer = sgd()
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "momentum": 0.9})
    with pytest.raises(fedkd.FedKDError, match="one momentum for all parameters"):
        accumulation(optimizer, 3)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_equal_steps_are_fedavg_and_unequal_ones_are_not(tmp_path, momentum):
    def run(name, strategy, partitioner):
        trained = module(optimizer=lambda params: torch.optim.SGD(params, lr=0.1, momentum=momentum))
        data = datamodule(partitioner=partitioner)
        federation = fedkd.Federation(
            rounds=2, strategy=strategy, run_dir=tmp_path / name, trainer={"accelerator": "cpu"}
        )
        federation.fit(trained, data)
        return weights(trained)

    equal = run("a", FedAvg(), IID()), run("b", FedNova(), IID())
    skewed = run("c", FedAvg(), Dirichlet(0.3)), run("d", FedNova(), Dirichlet(0.3))
    for name in equal[0]:
        torch.testing.assert_close(equal[0][name], equal[1][name], rtol=0, atol=1e-6)
    assert (skewed[0]["net.1.weight"] - skewed[1]["net.1.weight"]).abs().max() > 1e-3
