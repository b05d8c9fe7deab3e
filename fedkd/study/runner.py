"""Run what is missing of a grid, several runs at a time, each in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Lock

from fedkd.study.grid import Run

FIT = (sys.executable, "-m", "fedkd.cli", "fit")
ERROR = "fedkd: error: "
TRACEBACK = "Traceback (most recent call last):"


class Runner:
    """Runs ``fedkd fit`` for runs of a grid.

    Args:
        jobs: Runs at a time, >= 1.
        command: The command that runs one; the options of the run follow it.
    """

    def __init__(self, jobs: int = 1, command: Sequence[str] = FIT) -> None:
        self.jobs = jobs
        self.command = tuple(command)
        self._processes: set[subprocess.Popen] = set()
        self._lock = Lock()
        self._stopped = False

    def __call__(self, runs: Sequence[Run]) -> Generator[tuple[Run, str | None], None, None]:
        """Run all. A run that was interrupted goes on from its last round.

        An exception, Ctrl-C included, and closing the generator end the running processes and wait for them. Each of
        them keeps its finished rounds.

        Yields:
            Each run as it ends, with one line that gives its error and its log if it failed, else None.
        """
        with ThreadPoolExecutor(self.jobs) as pool:
            futures = {pool.submit(self._run, run): run for run in runs}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BaseException:
                self._stop()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _run(self, run: Run) -> str | None:
        run.folder.mkdir(parents=True, exist_ok=True)
        log = run.folder / "output.log"
        resume = ["--ckpt_path", "last"] if run.is_begun else []
        command = [*self.command, *run.arguments, "--run_dir", str(run.folder), *resume]
        with log.open("ab") as output:
            start = output.tell()  # the log of an earlier start stands before
            with self._lock:
                if self._stopped:
                    return "not started"
                process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
                self._processes.add(process)
            status = process.wait()
            with self._lock:
                self._processes.discard(process)
        if status == 0:
            return None
        return f"{error_line(log.read_bytes()[start:].decode(errors='replace'), status)} (log: {log})"

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._processes:
                process.terminate()


def error_line(output: str, status: int) -> str:
    """Return the one line of a failed command's output that gives the error.

    That is the line that ``fedkd`` reports a mistake with, else the last line of a traceback, else the last line. If a
    signal ended the process, as SIGKILL does when memory runs out, the output has no error and the signal is named.

    Args:
        output: What the command wrote.
        status: Its exit status, not 0; ``-n`` if signal n ended it.
    """
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    if errors := [line for line in lines if line.startswith(ERROR)]:
        return errors[-1].removeprefix(ERROR)
    if TRACEBACK in lines:
        last = len(lines) - lines[::-1].index(TRACEBACK)
        # warnings of libraries that shut down may follow; the error is the first line that is not indented
        for line in lines[last:]:
            if not line.startswith(" "):
                return line
    return lines[-1].strip() if lines else f"exit status {status}"
