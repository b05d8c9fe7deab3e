"""Run the missing runs of a grid, several at a time, each in its own process."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Lock

from fedkd.study.grid import Run
from fedkd.study.options import write_options

FIT = (sys.executable, "-m", "fedkd.cli", "fit")
ERROR = "fedkd: error: "
TRACEBACK = "Traceback (most recent call last):"


class Runner:
    """Runs ``fedkd fit`` for runs of a grid.

    Args:
        jobs: Runs at a time, >= 1.
        command: The command for one run. The options of the run are appended.
    """

    def __init__(self, jobs: int = 1, command: Sequence[str] = FIT) -> None:
        self.jobs = jobs
        self.command = tuple(command)
        self._processes: set[subprocess.Popen] = set()
        self._lock = Lock()
        self._stopped = False

    def __call__(self, runs: Sequence[Run]) -> Generator[tuple[Run, str | None], None, None]:
        """Run all. An interrupted run resumes from its last round.

        An exception, including Ctrl-C, or closing the generator ends the running processes and waits for them. Each of
        them keeps its finished rounds.

        Yields:
            Each run when it ends, with one line that names its error and its log file if it failed, else None.
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
        write_options(run.folder, run.arguments)
        log = run.folder / "output.log"
        resume = ["--ckpt_path", "last"] if run.is_begun else []
        command = [*self.command, *run.arguments, "--run_dir", str(run.folder), *resume]
        with log.open("ab") as output:
            start = output.tell()  # the log of an earlier start comes before this position
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
    """Return the one line of a failed command's output with the error.

    This is the line with which ``fedkd`` reports an error, else the error of the last traceback, else the last line.
    If a signal ended the process, such as SIGKILL when memory runs out, the output has no error, and the line names the
    signal.

    Args:
        output: The output of the command.
        status: Its exit status, not 0; ``-n`` if signal n ended it.
    """
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    if errors := [line for line in lines if line.startswith(ERROR)]:
        return errors[-1].removeprefix(ERROR)
    if TRACEBACK in lines:
        last = len(lines) - lines[::-1].index(TRACEBACK)
        # Libraries may print warnings at shutdown. The error is the first line that is not indented.
        for line in lines[last:]:
            if not line.startswith(" "):
                return line
    return lines[-1].strip() if lines else f"exit status {status}"
