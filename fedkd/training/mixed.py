"""The targets and the teacher's outputs of a batch whose images are mixed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fedkd.losses import Mixed, Outputs


def mixed_of(batch: Any, teacher: Outputs | None) -> Mixed | None:
    """Return the targets and the teacher's outputs of both images of each, if a batch's images are mixed; else None.

    Args:
        batch: ``(images, targets)`` or a `fedkd.data.Batch`. Its targets, and its teacher outputs if it has any, are of
            single images.
        teacher: The teacher's outputs for it. If they are not the batch's own, the teacher has seen the mixed images:
            then they serve for both of the images that a mixed one is made of.
    """
    weight: Tensor | None = getattr(batch, "mix_weight", None)
    if weight is None:
        return None
    second = teacher if teacher is None or batch.teacher_logits is None else teacher.before()
    return Mixed(weight, (batch.targets, batch.targets.roll(1, 0)), (teacher, second))


def mean_of_pair(batch: Any, values: Tensor, term: Callable[[Tensor], Tensor]) -> Tensor:
    """Return a term, or for mixed images its mean over the two images of which each is made, weighted by the shares.

    Args:
        batch: The batch.
        values: What the term takes of single images, (B, ...).
        term: From such values to a scalar.
    """
    weight: Tensor | None = getattr(batch, "mix_weight", None)
    if weight is None:
        return term(values)
    return weight * term(values) + (1 - weight) * term(values.roll(1, 0))
