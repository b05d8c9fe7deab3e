"""Runs what is missing of a grid, several at a time, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Lock

from fedkd.study.grid import Run

ERROR = "fedkd: error: "


class Runner:
    """Runs ``fedkd fit`` for runs of a grid.

    Args:
        jobs: Runs at a time, >= 1.
    """

    def __init__(self, jobs: int = 1) -> None:
        self.jobs = jobs
        self._processes: set[subprocess.Popen] = set()
        self._lock = Lock()
        self._stopped = False

    def __call__(self, runs: Sequence[Run]) -> Iterator[tuple[Run, str | None]]:
        """Run all; a run that was interrupted goes on from its last round.

        Ctrl-C ends the running processes; each of them keeps its finished rounds.

        Yields:
            Each run as it ends, with the error's line if it failed, else None.
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
        command = [sys.executable, "-m", "fedkd.cli", "fit", *run.arguments, "--run_dir", str(run.folder), *resume]
        with log.open("a") as output:
            start = output.tell()
            with self._lock:
                if self._stopped:
                    return "not started"
                process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
                self._processes.add(process)
            status = process.wait()
            self._processes.discard(process)
        if status == 0:
            return None
        return f"{_reason(log.read_bytes()[start:].decode(errors='replace'), status)} ({log})"

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._processes:
                process.terminate()


def _reason(output: str, status: int) -> str:
    """Return the line of a run's output that gives the error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(ERROR)]
    if errors:
        return errors[-1].removeprefix(ERROR)
    return lines[-1] if lines else f"exit status {status}"
