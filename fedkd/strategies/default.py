"""The strategy that ``strategy: auto`` stands for."""

from __future__ import annotations

from fedkd.core.errors import FedKDError
from fedkd.strategies.base import Strategy
from fedkd.strategies.fedavg import FedAvg
from fedkd.strategies.refinement.closed_form_head import MANY_FEATURES, ClosedFormHead
from fedkd.strategies.refinement.server_distillation import ServerDistillation
from fedkd.students import ClosedFormStudent
from fedkd.training.module import DistillationModule


def default_strategy(module: DistillationModule, has_public: bool) -> Strategy:
    """Return the strategy that is the best one measured for what a run has; ``docs/results.md`` has the figures.

    | the run has | strategy |
    |---|---|
    | a teacher and public images | `ServerDistillation` |
    | a teacher | `ClosedFormHead` |
    | no teacher | `FedAvg` |

    `ClosedFormHead` takes the student's stages if they give at most 2,048 numbers an image, else the inputs of its last
    layer. The run is left to `FedAvg` where neither is found, or both give more, or the loss has a head of its own.

    Args:
        module: Built.
        has_public: Whether there are public images (``data.public_fraction`` above 0).
    """
    if module.teacher is None:
        return FedAvg()
    if has_public:
        return ServerDistillation()
    if module.loss.needs_head:
        return FedAvg()
    for strategy in (ClosedFormHead(), ClosedFormHead(inputs="last")):
        try:
            wrapped = strategy.wrap(module.student, len(module.classes), module.image_shape)
        except FedKDError:
            continue
        if isinstance(wrapped, ClosedFormStudent) and wrapped.num_features <= MANY_FEATURES:
            return strategy
    return FedAvg()
