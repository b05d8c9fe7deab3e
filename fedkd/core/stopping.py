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


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM, unless the program has a handler of its own. A second one ends the process."""
    in_main = threading.current_thread() is threading.main_thread()  # Python takes handlers in no other thread
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(*_: Any) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
