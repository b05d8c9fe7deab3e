"""``fedkd`` commands as real processes that cost no import: each is forked from one process, which has imported all.

`Forks` is the test's side. The process that it starts runs this file as a script.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

PHASES = ("start", "cache", "training", "aggregation", "evaluation", "commit", "finish")
TIMEOUT = 120.0
QUICKSTART = Path(__file__).resolve().parents[1] / "examples" / "quickstart.yaml"


class Forks:
    """Starts commands, kills them with SIGKILL where that is asked for, and waits for them.

    Args:
        folder: Where the commands run, and where their output goes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, __file__], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, *arguments: str, kill: tuple[str, int, float] | None = None, **environment: str) -> dict:
        """Run ``fedkd ARGUMENTS`` to its end.

        Args:
            arguments: The command line.
            kill: (phase, n, seconds): SIGKILL comes so long after the n-th time (from 0) that the phase began.
            environment: Further variables.

        Returns:
            ``status`` (-9 if it was killed), ``output``, ``phase`` (the last that began), and ``phases``: the
            seconds of each of its phases, by name.
        """
        order = {"arguments": arguments, "kill": kill, "environment": environment}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the process that forks ended with {self.process.wait()}"
        return json.loads(answer)

    def close(self) -> None:
        """End the process that forks."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def serve() -> None:
    """Answer one order a line."""
    from fedkd.cli.main import main

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open("warm.txt", os.O_WRONLY | os.O_CREAT), 1)  # what is printed is no answer
    os.environ["FEDKD_CACHE"] = "warm_cache"
    short = ["--federation.rounds", "1", "--trainer.max_epochs", "1", "--data.num_clients", "2"]
    main(["fit", "--config", str(QUICKSTART), *short, "--run_dir", "warm"])  # imports what is imported late
    for number, line in enumerate(sys.stdin):
        answers.write(json.dumps(_run(json.loads(line), Path(f"output_{number}.txt"))) + "\n")
        answers.flush()


def _run(order: dict[str, Any], output: Path) -> dict[str, Any]:
    """Fork a command, follow its phases, kill it where that is asked for, and wait for its end."""
    reads, writes = os.pipe()
    began = time.monotonic()
    pid = os.fork()
    if not pid:
        os.close(reads)
        _command(order, output, writes)
    os.close(writes)
    seconds: dict[str, list[float]] = {phase: [] for phase in PHASES}
    name, nth, delay = order["kill"] or (None, 0, 0.0)
    now, since = "start", began
    with os.fdopen(reads) as events:
        if name == "start":
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)
        for event in events:
            phase, text = event.split()
            seconds[now].append(float(text) - since)
            now, since = phase, float(text)
            if phase == name:
                nth -= 1
                if nth < 0:
                    time.sleep(delay)
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                    name = None
    _, status = os.waitpid(pid, 0)
    return {
        "status": os.waitstatus_to_exitcode(status),
        "output": output.read_text(errors="replace") if output.exists() else "",
        "phase": now,
        "phases": seconds,
    }


def _command(order: dict[str, Any], output: Path, events: int) -> None:
    """Be the command; this never returns."""
    status = 99
    try:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(order["environment"])
        signal.alarm(int(TIMEOUT))  # a hang is a failure
        _tell_phases(events)
        import torch

        from fedkd.cli.main import main

        torch.set_num_threads(1)  # makes torch's pool anew after the fork; if threads do that at once, one may fail
        try:
            main(order["arguments"])
            status = 0
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _tell_phases(events: int) -> None:
    """Let fedkd tell when a phase begins. One that ends gives way to the one around it."""
    from fedkd.client import works
    from fedkd.data import ImageFolder
    from fedkd.runs.directory import RunDirectory
    from fedkd.server.federation import Federation
    from fedkd.strategies import Strategy
    from fedkd.teachers import TeacherCache

    stack = ["start"]

    def tell(phase: str) -> None:
        os.write(events, f"{phase} {time.monotonic()}\n".encode())

    def during(phase: str, function: Any) -> Any:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            stack.append(phase)
            tell(phase)
            try:
                return function(*args, **kwargs)
            finally:
                stack.pop()
                tell(stack[-1])

        return wrapped

    works.fit = during("training", works.fit)
    for owner, method, phase in (
        (ImageFolder, "load", "cache"),
        (TeacherCache, "get", "cache"),
        (RunDirectory, "commit", "commit"),
        (Federation, "_finish", "finish"),
    ):
        setattr(owner, method, during(phase, getattr(owner, method)))
    for kind in (Strategy, *_below(Strategy)):
        for method, phase in (("round", "aggregation"), ("evaluate", "evaluation")):
            if method in vars(kind):
                setattr(kind, method, during(phase, vars(kind)[method]))


def _below(kind: type) -> list[type]:
    return [each for child in kind.__subclasses__() for each in (child, *_below(child))]


if __name__ == "__main__":
    serve()
