"""How clients' learning rates change from round to round."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

from fedkd.core.config import Configured
from fedkd.core.errors import FedKDError, check_range, unknown_name


class LearningRateSchedule(Configured, ABC):
    """Multiplies the clients' learning rates by a factor in each round: for ``Federation(lr_schedule=...)``.

    A subclass states `factor`. A scheduler by step, within a client's training, is multiplied too.
    """

    @abstractmethod
    def factor(self, round: int, rounds: int) -> float:
        r"""Return by what learning rates are multiplied, >= 0.

        Args:
            round: t, 0-based.
            rounds: R > t, of the whole run. A run that goes on to more rounds is given the new number.
        """


class CosineSchedule(LearningRateSchedule):
    r"""Falls from 1 to ``end`` as a cosine, after some rounds of warm-up.

    After W rounds of warm-up the factor is :math:`e + (1 - e) (1 + \cos(\pi (t - W) / (R - W))) / 2` in round t of R,
    as in Loshchilov and Hutter, arXiv 1608.03983, equation 5, with rounds in place of steps. Before that it is
    :math:`(t + 1) / (W + 1)`.

    Args:
        warmup: W, rounds, >= 0.
        end: e, in [0, 1].

    Raises:
        FedKDError: If a number is out of range.
    """

    def __init__(self, warmup: int = 0, end: float = 0.0) -> None:
        check_range("warmup", warmup, low=0, whole=True)
        check_range("end", end, low=0, high=1)
        self.warmup, self.end = warmup, end

    def factor(self, round: int, rounds: int) -> float:
        """Return the factor of a round: see `LearningRateSchedule.factor`."""
        if round < self.warmup:
            return (round + 1) / (self.warmup + 1)
        share = (round - self.warmup) / (rounds - self.warmup)
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * share)) / 2


class StepSchedule(LearningRateSchedule):
    """Multiplies by ``decay`` at each milestone.

    Args:
        milestones: The rounds, 0-based, from which on another factor of ``decay`` holds, each >= 1.
        decay: In (0, 1].

    Raises:
        FedKDError: If a number is out of range.
    """

    def __init__(self, milestones: Sequence[int], decay: float = 0.1) -> None:
        if not isinstance(milestones, list | tuple):
            raise FedKDError(f"milestones must be a list of rounds, such as [30, 45], got {milestones!r}.")
        for milestone in milestones:
            check_range("milestones", milestone, low=1, whole=True)
        check_range("decay", decay, low=0, low_open=True, high=1)
        self.milestones, self.decay = list(milestones), decay

    def factor(self, round: int, rounds: int) -> float:
        """Return the factor of a round: see `LearningRateSchedule.factor`."""
        return self.decay ** sum(milestone <= round for milestone in self.milestones)


class ExponentialSchedule(LearningRateSchedule):
    """Is ``decay ** t`` in round t.

    Args:
        decay: In (0, 1].

    Raises:
        FedKDError: If it is out of range.
    """

    def __init__(self, decay: float = 0.998) -> None:
        check_range("decay", decay, low=0, low_open=True, high=1)
        self.decay = decay

    def factor(self, round: int, rounds: int) -> float:
        """Return the factor of a round: see `LearningRateSchedule.factor`."""
        return self.decay**round


class ConstantSchedule(LearningRateSchedule):
    """Is 1 in every round."""

    def factor(self, round: int, rounds: int) -> float:
        """Return 1."""
        return 1.0


NAMED: dict[str, LearningRateSchedule] = {"constant": ConstantSchedule(), "cosine": CosineSchedule()}
"""The schedules that a name stands for."""


def schedule_of(schedule: LearningRateSchedule | str) -> LearningRateSchedule:
    """Return a schedule, or the one that a name stands for.

    Raises:
        FedKDError: If there is none of this name.
    """
    if isinstance(schedule, LearningRateSchedule):
        return schedule
    if schedule not in NAMED:
        raise unknown_name("lr_schedule", str(schedule), NAMED)
    return NAMED[schedule]


def lr_factor(schedule: LearningRateSchedule, round: int, rounds: int) -> float:
    """Return by what clients' learning rates are multiplied in a round.

    Args:
        schedule: The run's.
        round: t, 0-based.
        rounds: R > t.

    Raises:
        FedKDError: If the schedule's factor is negative or not finite.
    """
    factor = float(schedule.factor(round, rounds))
    if not 0 <= factor < math.inf:
        raise FedKDError(f"{schedule!r} must give a finite factor >= 0, got {factor} in round {round} of {rounds}.")
    return factor
