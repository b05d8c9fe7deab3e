"""What a federation does where no strategy is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedkd.strategies.base import Strategy
from fedkd.strategies.fedavg import FedAvg
from fedkd.strategies.refinement.server_distillation import ServerDistillation

if TYPE_CHECKING:
    from fedkd.data import FederatedDataModule
    from fedkd.training.module import DistillationModule


def default_strategy(module: DistillationModule, datamodule: FederatedDataModule) -> Strategy:
    """Return what was measured to be best with what a run has; ``docs/results.md`` has the figures.

    With a teacher and public images, `ServerDistillation` as it is by default; else `FedAvg`.

    Args:
        module: With its teacher, if there is one.
        datamodule: Set up.
    """
    has_both = module.teacher is not None and len(datamodule.public_indices) > 0
    return ServerDistillation() if has_both else FedAvg()
