"""`LearningRateFactor`: multiplies the learning rates of one fit, as a round of a schedule asks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

GROUP_ENTRIES = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
"""Where torch's optimizers and schedulers keep learning rates in a parameter group."""

SCHEDULER_ENTRIES = ("base_lrs", "_last_lr", "max_lrs", "min_lrs", "eta_min")
"""Where torch's schedulers keep them themselves."""


class LearningRateFactor(Callback):
    """Multiplies the learning rates of all optimizers, and of schedulers by step, before the first step of a fit.

    Args:
        factor: >= 0.
    """

    runs_lean: ClassVar[bool] = True

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Multiply."""
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        for optimizer in trainer.optimizers:
            own = [each for each in schedulers if getattr(each, "optimizer", None) is optimizer]
            scale_learning_rates(optimizer, self.factor, *own)


def scale_learning_rates(optimizer: Optimizer, factor: float, *schedulers: Any) -> None:
    """Multiply the learning rates of an optimizer that has not stepped yet.

    Args:
        optimizer: The optimizer.
        factor: By what.
        schedulers: Those of the optimizer: they go on from the new rates.
    """
    for group in optimizer.param_groups:
        for name in GROUP_ENTRIES:
            if isinstance(group.get(name), Tensor):  # a capturable optimizer reads it in place
                group[name].mul_(factor)
            elif name in group:
                group[name] *= factor
    for scheduler in with_parts(schedulers):
        for name in SCHEDULER_ENTRIES:
            value = getattr(scheduler, name, None)
            if isinstance(value, list):
                setattr(scheduler, name, [each * factor for each in value])
            elif isinstance(value, int | float):
                setattr(scheduler, name, value * factor)


def with_parts(schedulers: Iterable[Any]) -> Iterator[Any]:
    """Yield schedulers and those that they are made of, as ``SequentialLR`` and ``ChainedScheduler`` are."""
    for scheduler in schedulers:
        yield scheduler
        yield from with_parts(getattr(scheduler, "_schedulers", ()))
