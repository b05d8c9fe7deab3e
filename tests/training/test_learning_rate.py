"""A factor multiplies the learning rates of every step, whatever torch scheduler gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as schedulers

from fedkd.training.learning_rate import scale_learning_rates

STEPS = 12


def warmup_then_cosine(optimizer: torch.optim.Optimizer) -> Any:
    warmup = schedulers.LinearLR(optimizer, 0.5, total_iters=3)
    cosine = schedulers.CosineAnnealingLR(optimizer, STEPS - 3, eta_min=0.01)
    return schedulers.SequentialLR(optimizer, [warmup, cosine], milestones=[3])


def chained(optimizer: torch.optim.Optimizer) -> Any:
    decay = schedulers.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    return schedulers.ChainedScheduler([decay, schedulers.StepLR(optimizer, 4, gamma=0.5)], optimizer)


def nested(optimizer: torch.optim.Optimizer) -> Any:
    return schedulers.ChainedScheduler([warmup_then_cosine(optimizer), schedulers.StepLR(optimizer, 5)], optimizer)


MAKERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "lambda": lambda optimizer: schedulers.LambdaLR(optimizer, lambda step: 0.9**step),
    "step": lambda optimizer: schedulers.StepLR(optimizer, 4),
    "polynomial": lambda optimizer: schedulers.PolynomialLR(optimizer, STEPS),
    "cosine": lambda optimizer: schedulers.CosineAnnealingLR(optimizer, STEPS, eta_min=0.02),
    "restarts": lambda optimizer: schedulers.CosineAnnealingWarmRestarts(optimizer, 4, eta_min=0.02),
    "one cycle": lambda optimizer: schedulers.OneCycleLR(optimizer, 0.8, total_steps=STEPS + 1),
    "cyclic": lambda optimizer: schedulers.CyclicLR(optimizer, 0.1, 0.8, step_size_up=3),
    "averaged weights": lambda optimizer: torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.05, anneal_epochs=5),
    "plateau": lambda optimizer: schedulers.ReduceLROnPlateau(optimizer, patience=1, min_lr=0.1, eps=0.0),
    "warm-up, then cosine": warmup_then_cosine,
    "chained": chained,
    "nested": nested,
}


def rates(make: Callable[[torch.optim.Optimizer], Any], factor: float) -> list[float]:
    """Return the learning rate of each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5, momentum=0.9)
    scheduler, found = make(optimizer), []
    scale_learning_rates(optimizer, factor, scheduler)
    for _ in range(STEPS):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step(*([1.0] if isinstance(scheduler, schedulers.ReduceLROnPlateau) else []))
    return found


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.filterwarnings("ignore:.*epoch parameter.*")
def test_every_step_has_the_factor(name):
    make = MAKERS[name]
    plain, scaled = rates(make, 1.0), rates(make, 0.25)
    assert len(set(plain)) > 1
    assert scaled == pytest.approx([0.25 * rate for rate in plain])
