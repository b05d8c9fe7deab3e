"""Compute what a loss needs from a teacher's outputs, when all outputs are on one machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fedkd.core.errors import FedKDError
from fedkd.losses.base import DistillationLoss, TeacherFacts
from fedkd.losses.features import feature_moments, feature_sums
from fedkd.losses.temperature import TemperedLoss, entropy_sums, solve_temperature


def local_facts(
    loss: DistillationLoss, logits: Tensor, features: Any = None, head: nn.Module | None = None
) -> TeacherFacts:
    """Compute what a loss needs from a teacher's outputs. `fedkd.client.fit_to_teacher` is the federated version.

    Args:
        loss: The loss.
        logits: The teacher's, (..., K).
        features: Its features, (n, D) or (n, V, D), if the loss needs them.
        head: Its head, if it has one.

    Raises:
        FedKDError: If the loss needs features and there are none.
    """
    temperature = moments = None
    if isinstance(loss, TemperedLoss) and loss.needs_temperature:
        rows = loss.softened(logits.float()).reshape(-1, logits.shape[-1])

        def mean_entropies(temperatures: Sequence[float]) -> list[float]:
            return (entropy_sums(rows, temperatures) / len(rows)).tolist()

        temperature = solve_temperature(mean_entropies, rows.shape[-1], loss.target_entropy)
    if loss.needs_projector:
        if features is None:
            raise FedKDError(f"{type(loss).__name__} needs the teacher's features, but got only its logits.")
        moments = feature_moments(feature_sums(features))
    return TeacherFacts(temperature, moments, head if loss.needs_head else None)
