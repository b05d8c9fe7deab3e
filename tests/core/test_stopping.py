"""SIGTERM ends a process as Ctrl-C does."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from fedkd.core.stopping import SIGTERM_STATUS, Terminated, raise_pending, terminable


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


class Dying:
    """Gets a signal while it is destroyed, where Python drops what a handler raises."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_what_a_signal_raised_and_python_dropped_is_raised_again(number: int, kind: type[BaseException]) -> None:
    def work() -> None:
        with terminable():
            dying = Dying(number)
            del dying
            reached.append(1)
            raise_pending()

    reached: list[int] = []
    with pytest.raises(kind):
        work()
    assert reached == [1]
    raise_pending()  # it is over
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_run_ends_although_python_dropped_its_interrupt(tmp_path) -> None:
    from helpers import datamodule, module

    import fedkd
    from fedkd.server.callbacks import RoundCallback

    class Interrupts(RoundCallback):
        def on_round_end(self, event) -> None:
            if event.state.round == 2:
                Dying(signal.SIGINT)

    run = fedkd.Federation(50, strategy=fedkd.FedAvg(), callbacks=Interrupts(), run_dir=tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run.fit(module(), datamodule())
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 1 + 2
