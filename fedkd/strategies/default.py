"""The strategy that ``strategy: auto`` stands for."""

from __future__ import annotations

from fedkd.core.errors import FedKDError
from fedkd.strategies.base import Strategy
from fedkd.strategies.compose import Compose
from fedkd.strategies.fedavg import FedAvg
from fedkd.strategies.refinement.closed_form_head import MANY_FEATURES, ClosedFormHead
from fedkd.strategies.refinement.server_distillation import ServerDistillation
from fedkd.strategies.server_side.fedavgm import FedAvgM
from fedkd.students import ClosedFormStudent
from fedkd.teachers import Teacher
from fedkd.training.module import DistillationModule


def default_strategy(module: DistillationModule, has_public: bool) -> Strategy:
    """Return the strategy that ``docs/results.md`` found best with a teacher, and the baseline without one.

    | the run has | strategy |
    |---|---|
    | a teacher and public images | `ServerDistillation`, and `ClosedFormHead` after the last round |
    | a teacher | `FedAvgM` with a momentum of 0.5, and `ClosedFormHead` after every round |
    | no teacher | `FedAvg` |

    `ClosedFormHead` takes the student's stages if they give at most 2,048 numbers an image, else the inputs of its last
    layer. It is left out where neither is found, or both give more, or the loss has a head of its own; without public
    images that leaves `FedAvg`. It is also left out where a head of the teacher is private: sums without noise would
    reveal what the teacher's head protects.

    Args:
        module: Built.
        has_public: Whether there are public images (``data.public_fraction`` above 0).
    """
    if module.teacher is None:
        return FedAvg()
    # the server distills into the student's own layer too, so the rounds before the last can do without the head
    head = closed_form_head(module, every=None if has_public else 1)
    if has_public:
        return ServerDistillation() if head is None else Compose([ServerDistillation(), head])
    return FedAvg() if head is None else Compose([FedAvgM(momentum=0.5), head])


def closed_form_head(module: DistillationModule, every: int | None) -> ClosedFormHead | None:
    """Return the head in closed form that suits a student; None if none does.

    Args:
        module: Built.
        every: After how many rounds it is solved.
    """
    if module.loss.needs_head or has_private_head(module):
        return None
    for strategy in (ClosedFormHead(every=every), ClosedFormHead(inputs="last", every=every)):
        try:
            wrapped = strategy.wrap(module.student, len(module.classes), module.image_shape)
        except FedKDError:
            continue
        if isinstance(wrapped, ClosedFormStudent) and wrapped.num_features <= MANY_FEATURES:
            return strategy
    return None


def has_private_head(module: DistillationModule) -> bool:
    """Whether what clients send for a head of the teacher is differentially private."""
    parts = () if module.teacher is None else module.teacher.modules()  # an ensemble has several teachers
    heads = (part.head_method for part in parts if isinstance(part, Teacher))
    return any(getattr(head, "privacy", None) is not None for head in heads)
