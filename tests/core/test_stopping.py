"""SIGTERM ends a process as Ctrl-C does."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from fedkd.core.stopping import SIGTERM_STATUS, Terminated, terminable


def test_sigterm_raises_within_and_the_default_comes_back() -> None:
    def wait() -> None:
        with terminable():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                signal.pause()
            finally:
                assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # a second one ends the process at once

    with pytest.raises(Terminated) as ended:
        wait()
    assert ended.value.code == SIGTERM_STATUS == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_handler_of_the_programs_own_stays() -> None:
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        with terminable():
            os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [1]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_outside_of_the_main_thread_it_does_nothing() -> None:
    errors = []

    def work() -> None:
        try:
            with terminable():
                pass
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors
