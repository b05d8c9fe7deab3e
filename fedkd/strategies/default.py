"""The strategy that ``strategy: auto`` resolves to."""

from __future__ import annotations

from typing import Literal

from fedkd.strategies.base import Strategy
from fedkd.strategies.fedavg import FedAvg
from fedkd.strategies.refinement.server_distillation import ServerDistillation


def resolve_strategy(strategy: Strategy | Literal["auto"], has_teacher: bool, has_public: bool) -> Strategy:
    """Return the strategy that a run uses.

    "auto" is the best one measured for what a run has; ``docs/results.md`` has the figures. With a teacher and
    public images it is `ServerDistillation` with its defaults, else `FedAvg`.

    Args:
        strategy: As it was configured.
        has_teacher: Whether the module has a teacher.
        has_public: Whether there are public images (``data.public_fraction`` above 0).
    """
    if isinstance(strategy, Strategy):
        return strategy
    return ServerDistillation() if has_teacher and has_public else FedAvg()
