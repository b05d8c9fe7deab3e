"""How clients' learning rates change from round to round."""

from __future__ import annotations

import math

from fedkd.core.errors import unknown_name

LR_SCHEDULES = ("constant", "cosine")


def check_lr_schedule(schedule: str) -> None:
    """Raise a `fedkd.FedKDError` unless there is such a schedule."""
    if schedule not in LR_SCHEDULES:
        raise unknown_name("lr_schedule", schedule, LR_SCHEDULES)


def lr_factor(schedule: str, round: int, rounds: int) -> float:
    r"""Return by what clients' learning rates are multiplied in a round, in (0, 1].

    Args:
        schedule: "constant" is 1 in every round. "cosine" is :math:`(1 + \cos(\pi t / R)) / 2` in round t of R, as
            in Loshchilov and Hutter, arXiv 1608.03983, equation 5, with rounds in place of steps: 1 in the first
            round, near 0 in the last.
        round: t, 0-based.
        rounds: R > t.
    """
    return 1.0 if schedule == "constant" else (1 + math.cos(math.pi * round / rounds)) / 2
