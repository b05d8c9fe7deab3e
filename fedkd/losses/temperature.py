"""The temperature of losses that soften logits: a given number, or computed from the teacher's entropy."""

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
"""The bounds of the search for the temperature."""

STEPS = 40
"""The number of bisections of log T. They end within log(1e12) / 2^40 of the solution."""

STEPS_AT_ONCE = 5
"""The number of bisections per exchange, which gets the entropies at all of their 2^5 - 1 possible midpoints."""


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

    The entropy rises with T, since its derivative is :math:`\mathrm{Var}_p(t) / T^3 \ge 0`. Bisection of log T finds
    the one solution. Entropies come from clients, so `STEPS_AT_ONCE` bisections share one exchange, which returns the
    entropies at all midpoints that these bisections can reach.

    Args:
        mean_entropies: From temperatures to the mean entropy at each, in nats, over all clients' images.
        num_classes: K.
        target_entropy: Share of log K, in (0, 1).

    Raises:
        FedKDError: If no temperature meets the target, for example because the teacher does not separate the classes.
    """
    target = target_entropy * math.log(num_classes)
    low, high = LOW, HIGH
    least, greatest = mean_entropies([low, high])
    if not least < target < greatest:
        raise FedKDError(
            f"No temperature gives the teacher a mean entropy of {target_entropy} log K: its logits on the clients' "
            "images are almost equal for all classes. Set temperature to a number, or choose another teacher."
        )
    for _ in range(STEPS // STEPS_AT_ONCE):
        midpoints = _midpoints(low, high, STEPS_AT_ONCE)
        found = dict(zip(midpoints, mean_entropies(midpoints), strict=True))
        for _ in range(STEPS_AT_ONCE):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if found[middle] < target else (low, middle)
    return (low * high) ** 0.5


def _midpoints(low: float, high: float, steps: int) -> list[float]:
    """Return all geometric midpoints that ``steps`` bisections between two numbers can reach."""
    if not steps:
        return []
    middle = (low * high) ** 0.5
    return [middle, *_midpoints(low, middle, steps - 1), *_midpoints(middle, high, steps - 1)]


class TemperedLoss(WeightedLoss):
    r"""A weighted loss whose terms soften logits by a temperature T.

    ``temperature="auto"`` finds the T at which the mean entropy of the teacher's ``softmax(logits / T)`` on all
    clients' images is ``target_entropy * log K``. The logits of CLIP and of a ridge head have different scales, so one
    temperature would give soft targets for one and hard targets for the other. The default 0.3 gives 10 classes a
    perplexity of 10^0.3 = 2, 100 classes 4, and 1000 classes 8. The most likely class then has most of the probability
    and a few similar classes share the rest; this rest is all that soft targets add to labels. Terms are multiplied by
    T^2, so that the speed at which s / T learns does not depend on T.

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
            FedKDError: If it is ``"auto"`` and not computed yet.
        """
        if not isinstance(self.temperature, str):
            return self.temperature
        if self._found is None:
            raise FedKDError(
                "temperature 'auto' is computed from the teacher's logits: call fit_to_teacher(facts) first, or train "
                "on a FederatedDataModule."
            )
        return self._found

    @property
    def needs_temperature(self) -> bool:
        """Whether the temperature is "auto"."""
        return self.temperature == "auto"

    @property
    def is_fitted(self) -> bool:
        """Whether the temperature is already a number."""
        return not self.needs_temperature or self._found is not None

    def softened(self, logits: Tensor) -> Tensor:
        """Return the values that are divided by T: the logits (..., K) themselves by default."""
        return logits

    def fit_to_teacher(self, facts: TeacherFacts) -> None:
        """Store the computed temperature, if the setting is ``"auto"``: see `DistillationLoss.fit_to_teacher`."""
        if self.needs_temperature:
            if facts.temperature is None:
                raise FedKDError(f"{type(self).__name__} needs the computed temperature, but got none.")
            self._found = facts.temperature

    def resolved(self) -> dict[str, float]:
        """Return the temperature, if it was computed."""
        return {} if self._found is None else {"temperature": self._found}
