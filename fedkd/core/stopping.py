"""SIGTERM as an exception, so that a process cleans up as after Ctrl-C and ends with status 143."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

SIGINT_STATUS, SIGTERM_STATUS = 130, 143
"""Exit statuses by the shell's convention: 128 and the signal's number. A scheduler reads them."""


class Terminated(SystemExit):
    """SIGTERM came. If nothing catches it, the process ends with status 143."""

    def __init__(self) -> None:
        super().__init__(SIGTERM_STATUS)


_pending: type[BaseException] | None = None  # of the process, as signals are


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM and KeyboardInterrupt on SIGINT, where the program has no handlers of its own.

    A second SIGTERM ends the process. An exception that comes while Python runs a destructor or a weak reference's
    callback is lost: Python prints it and goes on. So what a signal asked for stays pending until this ends, and
    `raise_pending` raises it again.
    """
    global _pending
    in_main = threading.current_thread() is threading.main_thread()  # Python takes handlers in no other thread
    usual: dict[int, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    taken = [number for number, handler in usual.items() if in_main and signal.getsignal(number) is handler]

    def stop(number: int, frame: Any) -> NoReturn:
        global _pending
        _pending = Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if number == signal.SIGTERM:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise _pending

    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, usual[number])
        if taken:
            _pending = None


def raise_pending() -> None:
    """Raise what a signal asked for within `terminable`, whether or not its exception was lost."""
    if _pending is not None:
        raise _pending
