"""The temperature of losses that soften logits, given or found from the teacher's entropy."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor

from fedkd.core.errors import FedKDError, check_range
from fedkd.losses.base import FeatureMoments, WeightedLoss

LOW, HIGH = 1e-6, 1e6
"""Between these the temperature is sought."""

MAX_ROWS = 20_000
"""So many rows, evenly spaced, are looked at: their mean entropy is off by less than 1/sqrt(20,000) = 0.7% of log K."""


def mean_entropy(logits: Tensor, temperature: float = 1.0) -> float:
    r"""Return the mean entropy of ``softmax(logits / T)`` in nats, between 0 and log K.

    .. math:: -\frac{1}{N} \sum_n \sum_k p_{nk} \log p_{nk}, \quad p = \mathrm{softmax}(t / T)

    Args:
        logits: (N, K).
        temperature: T > 0.
    """
    log_p = (logits.float() / temperature).log_softmax(dim=-1)
    return float(-(log_p.exp() * log_p).nan_to_num(0.0).sum(-1).double().mean())  # 0 log 0 = 0


def solve_temperature(logits: Tensor, target_entropy: float) -> float:
    r"""Return the T at which the mean entropy of ``softmax(logits / T)`` is ``target_entropy * log K``.

    The entropy rises with T, for its derivative is :math:`\mathrm{Var}_p(t) / T^3 \ge 0`: bisection of log T finds the
    one solution. Between clients it costs a float up and one down a step, each client's sum of entropies at the T that
    is tried, 40 times.

    Args:
        logits: The teacher's, (..., K); every look at an image counts.
        target_entropy: Share of log K, in (0, 1).

    Raises:
        FedKDError: If no temperature meets the target, as when a teacher cannot tell its classes apart.
    """
    rows = logits.reshape(-1, logits.shape[-1])  # (N, K)
    rows = rows[:: max(1, -(-len(rows) // MAX_ROWS))]
    target = target_entropy * math.log(rows.shape[-1])
    low, high = LOW, HIGH
    if not mean_entropy(rows, low) < target < mean_entropy(rows, high):
        raise FedKDError(
            f"No temperature gives the teacher a mean entropy of {target_entropy} log K: its logits on the clients' "
            "images hardly differ between classes. Give temperature a number, or choose another teacher."
        )
    for _ in range(40):  # to log(1e12) / 2^40 of log T
        middle = (low * high) ** 0.5
        low, high = (middle, high) if mean_entropy(rows, middle) < target else (low, middle)
    return (low * high) ** 0.5


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
                "temperature 'auto' is found on the teacher's logits: call calibrate(teacher_logits) first, or train "
                "on a FederatedDataModule."
            )
        return self._found

    @property
    def calibrated(self) -> bool:
        """Whether the temperature is a number by now."""
        return self.temperature != "auto" or self._found is not None

    def softened(self, logits: Tensor) -> Tensor:
        """Return what is divided by T: the logits (..., K) themselves by default."""
        return logits

    def calibrate(self, logits: Tensor, moments: FeatureMoments | None = None) -> None:
        """Find the temperature, if it is ``"auto"``: see `DistillationLoss.calibrate`."""
        if self.temperature == "auto":
            self._found = solve_temperature(self.softened(logits.float()), self.target_entropy)

    def resolved(self) -> dict[str, float]:
        """Return the temperature, if it was found."""
        return {} if self._found is None else {"temperature": self._found}

    def settings(self) -> dict[str, Any]:
        """See `WeightedLoss.settings`."""
        automatic = {"target_entropy": self.target_entropy} if self.temperature == "auto" else {}
        return {**super().settings(), "temperature": self.temperature, **automatic}
