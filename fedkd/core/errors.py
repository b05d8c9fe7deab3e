"""Errors that name the bad value, what is allowed, and the nearest match."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable


class FedKDError(ValueError):
    """A mistake that the caller can correct: a wrong value, or something that does not exist.

    The command line prints it as one line and exits with status 2. In Python it is a ``ValueError``.
    """


class MissingResourceError(FedKDError):
    """A dataset, checkpoint, run or package that does not exist."""


MAX_THREADS = 1024
"""More threads, or processes, are a mistake, and the operating system would refuse them one by one."""

MAX_CLIENTS = 10_000_000
"""A larger number is a mistake: the lists of shards alone would fill the memory."""

MAX_PIXELS = 4096
"""A longer side of an image is a mistake: a single one would fill the memory."""


def in_one_line(error: BaseException) -> str:
    """Return an error's message in one line; its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")
"""Texts of PyTorch's out-of-memory errors."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of the machine or of a device.

    PyTorch raises a RuntimeError for the CPU's memory, and a class of its own below it for a device's.
    """
    said = type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in NO_MEMORY)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and said)


def unknown_name(kind: str, value: str, allowed: Iterable[str]) -> FedKDError:
    """Build the error for a name that is not one of ``allowed``.

    Args:
        kind: The kind of thing, such as ``"student"``.
        value: The unknown name.
        allowed: The known names.

    Returns:
        The error, for the caller to raise.
    """
    names = sorted(allowed)
    lowered = {name.lower(): name for name in names}  # scafold is near SCAFFOLD
    nearest = difflib.get_close_matches(str(value).lower(), list(lowered), n=1, cutoff=0.5)
    hint = f" Did you mean {lowered[nearest[0]]!r}?" if nearest else ""
    return FedKDError(f"Unknown {kind} {value!r}.{hint} Choose one of: {', '.join(names) or '(none)'}.")


def refuse_classes(**arguments: object) -> None:
    """Raise if a class stands in the place of an instance.

    Args:
        arguments: By name.

    Raises:
        FedKDError: If one is a class.
    """
    for name, value in arguments.items():
        if isinstance(value, type):
            raise FedKDError(f"{name} is the class {value.__name__}: give an instance of it, {value.__name__}(...).")


def check_range(
    name: str,
    value: float,
    *,
    low: float | None = None,
    high: float | None = None,
    low_open: bool = False,
    high_open: bool = False,
    whole: bool = False,
) -> None:
    """Raise an error unless ``value`` is a number between ``low`` and ``high``.

    NaN and infinity are errors.

    Args:
        name: The argument's name, for the message.
        value: The value to check.
        low: Lower bound; None is no bound.
        high: Upper bound; None is no bound.
        low_open: Exclude ``low`` itself.
        high_open: Exclude ``high`` itself.
        whole: Require an integer.

    Raises:
        FedKDError: If ``value`` is of another type, or out of range.
    """
    kind = numbers.Integral if whole else numbers.Real
    if not isinstance(value, kind) or isinstance(value, bool):
        raise FedKDError(f"{name} must be {'an integer' if whole else 'a number'}, got {value!r}.")
    above = low is None or (value > low if low_open else value >= low)
    below = high is None or (value < high if high_open else value <= high)
    is_infinite = value in (math.inf, -math.inf)
    if above and below and value == value and not is_infinite:
        return
    bounds = ["finite"] if is_infinite and above and below else []
    bounds += [f"{'>' if low_open else '>='} {low}"] if low is not None else []
    bounds += [f"{'<' if high_open else '<='} {high}"] if high is not None else []
    raise FedKDError(f"{name} must be {' and '.join(bounds) or 'a number'}, got {value!r}.")
