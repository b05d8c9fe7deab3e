"""The temperature of losses that soften logits, given or found from the teacher's entropy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from fedkd.core.errors import FedKDError, check_range
from fedkd.core.metrics import entropies
from fedkd.losses.base import TeacherFacts, WeightedLoss

LOW, HIGH = 1e-6, 1e6
"""Between these the temperature is sought."""

STEPS = 40
"""Bisections of log T: they end log(1e12) / 2^40 from the solution."""

STEPS_AT_ONCE = 5
"""So many bisections are answered by one exchange, at all of their 2^5 - 1 possible midpoints."""


def entropy_sums(logits: Tensor, temperatures: Sequence[float]) -> Tensor:
    r"""Return the sum over rows of the entropy of ``softmax(logits / T)`` in nats, for each temperature.

    .. math:: -\sum_n \sum_k p_{nk} \log p_{nk}, \quad p = \mathrm{softmax}(t / T)

    Args:
        logits: (..., K); every view of an image counts.
        temperatures: G numbers > 0.

    Returns:
        (G,) float64; each sum over n rows is between 0 and n log K.
    """
    rows = logits.reshape(-1, logits.shape[-1]).float()  # (n, K)
    return torch.stack([entropies(rows, temperature).double().sum() for temperature in temperatures])


def solve_temperature(
    mean_entropies: Callable[[Sequence[float]], Sequence[float]], num_classes: int, target_entropy: float
) -> float:
    r"""Return the T at which the mean entropy of ``softmax(logits / T)`` is ``target_entropy * log K``.

    The entropy rises with T, since its derivative is :math:`\mathrm{Var}_p(t) / T^3 \ge 0`: bisection of log T finds
    the one solution. Entropies come from clients, so `STEPS_AT_ONCE` bisections share one exchange: it answers at all
    midpoints that they may come to.

    Args:
        mean_entropies: From temperatures to the mean entropy at each, in nats, over all clients' images.
        num_classes: K.
        target_entropy: Share of log K, in (0, 1).

    Raises:
        FedKDError: If no temperature meets the target, as when a teacher cannot tell its classes apart.
    """
    target = target_entropy * math.log(num_classes)
    low, high = LOW, HIGH
    least, greatest = mean_entropies([low, high])
    if not least < target < greatest:
        raise FedKDError(
            f"No temperature gives the teacher a mean entropy of {target_entropy} log K: its logits on the clients' "
            "images hardly differ between classes. Give temperature a number, or choose another teacher."
        )
    for _ in range(STEPS // STEPS_AT_ONCE):
        midpoints = _midpoints(low, high, STEPS_AT_ONCE)
        found = dict(zip(midpoints, mean_entropies(midpoints), strict=True))
        for _ in range(STEPS_AT_ONCE):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if found[middle] < target else (low, middle)
    return (low * high) ** 0.5


def _midpoints(low: float, high: float, steps: int) -> list[float]:
    """Return all geometric midpoints that so many bisections between two numbers may come to."""
    if not steps:
        return []
    middle = (low * high) ** 0.5
    return [middle, *_midpoints(low, middle, steps - 1), *_midpoints(middle, high, steps - 1)]


class TemperedLoss(WeightedLoss):
    r"""A weighted loss whose terms soften logits by a temperature T.

    ``temperature="auto"`` finds the T at which the mean entropy of the teacher's ``softmax(logits / T)`` on all
    clients' images is ``target_entropy * log K``: a CLIP's logits and a ridge head's live on different scales, and one
    number would be soft for the one and hard for the other. At the default 0.3 ten classes get a perplexity of
    10^0.3 = 2, a hundred 4, a thousand 8: the most likely class leads, and the few that it resembles share the rest,
    which is all that soft targets add to labels. Terms are times T^2, with which s / T learns at a pace that does not
    depend on T.

    Args:
        ce_weight: As for `WeightedLoss`.
        temperature: T > 0, or ``"auto"``.
        target_entropy: For ``"auto"``, a share of log K, in (0, 1).
        weights: As for `WeightedLoss`.
    """

    def __init__(
        self, ce_weight: float, temperature: float | Literal["auto"], target_entropy: float, **weights: float
    ) -> None:
        super().__init__(ce_weight, **weights)
        check_range("target_entropy", target_entropy, low=0, high=1, low_open=True, high_open=True)
        if isinstance(temperature, str):
            if temperature != "auto":
                raise FedKDError(f"temperature must be a number > 0 or 'auto', got {temperature!r}.")
        else:
            check_range("temperature", temperature, low=0, low_open=True)
        self.temperature, self.target_entropy = temperature, target_entropy
        self._found: float | None = None  # private: not a setting

    @property
    def T(self) -> float:  # noqa: N802  (the papers' symbol)
        """The temperature as a number.

        Raises:
            FedKDError: If it is ``"auto"`` and was not found yet.
        """
        if not isinstance(self.temperature, str):
            return self.temperature
        if self._found is None:
            raise FedKDError(
                "temperature 'auto' is found on the teacher's logits: call fit_to_teacher(facts) first, or train on a "
                "FederatedDataModule."
            )
        return self._found

    @property
    def needs_temperature(self) -> bool:
        """Whether the temperature is "auto"."""
        return self.temperature == "auto"

    @property
    def is_fitted(self) -> bool:
        """Whether the temperature is a number by now."""
        return not self.needs_temperature or self._found is not None

    def softened(self, logits: Tensor) -> Tensor:
        """Return what is divided by T: the logits (..., K) themselves by default."""
        return logits

    def fit_to_teacher(self, facts: TeacherFacts) -> None:
        """Take the temperature, if it is ``"auto"``: see `DistillationLoss.fit_to_teacher`."""
        if self.needs_temperature:
            if facts.temperature is None:
                raise FedKDError(f"{type(self).__name__} needs the temperature that was found, and got none.")
            self._found = facts.temperature

    def resolved(self) -> dict[str, float]:
        """Return the temperature, if it was found."""
        return {} if self._found is None else {"temperature": self._found}
