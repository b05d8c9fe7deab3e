"""The runner: the error's line of a run that failed, what runs together, and how an interruption ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fedkd.study.grid import Run
from fedkd.study.options import read_options
from fedkd.study.runner import Runner, error_line


def make_run(tmp_path: Path, name: str, code: str) -> Run:
    """Return a run that executes Python code in place of ``fedkd fit``."""
    return Run("even", name, 0, tmp_path / name, (code,))


def run_all(runs: list[Run], jobs: int = 1) -> dict[str, str | None]:
    return {run.method: failure for run, failure in Runner(jobs, (sys.executable, "-c"))(runs)}


def test_each_run_has_its_folder_and_a_log_of_all_its_output(tmp_path):
    code = "import sys; print(sys.argv[1:], flush=True); print('and this', file=sys.stderr)"
    assert run_all([make_run(tmp_path, "fine", code)]) == {"fine": None}
    assert (tmp_path / "fine" / "output.log").read_text().splitlines() == [
        str(["--run_dir", str(tmp_path / "fine")]),
        "and this",
    ]


def test_a_run_that_was_begun_goes_on(tmp_path):
    run = make_run(tmp_path, "begun", "import sys; print(sys.argv[-2:])")
    run.folder.mkdir()
    (run.folder / "metrics.csv").touch()
    assert run_all([run]) == {"begun": None}
    assert (run.folder / "output.log").read_text().strip() == "['--ckpt_path', 'last']"


def test_a_run_keeps_its_options(tmp_path):
    run = make_run(tmp_path, "fine", "")
    assert run_all([replace(run, arguments=(*run.arguments, "--model.loss", "KD"))]) == {"fine": None}
    assert read_options(run.folder) == {"model.loss": "KD"}


def test_a_failure_is_one_line_with_its_log_and_the_others_run(tmp_path):
    failures = run_all(
        [
            make_run(
                tmp_path, "mistake", "import sys; print('fedkd: error: model.loss: no', file=sys.stderr); exit(2)"
            ),
            make_run(tmp_path, "crash", "1 / 0"),
            make_run(tmp_path, "killed", "import os; os.kill(os.getpid(), 9)"),
            make_run(tmp_path, "silent", "exit(3)"),
            make_run(tmp_path, "fine", ""),
        ],
        jobs=2,
    )
    log = {name: f" (log: {tmp_path / name / 'output.log'})" for name in failures}
    assert failures == {
        "mistake": "model.loss: no" + log["mistake"],
        "crash": "ZeroDivisionError: division by zero" + log["crash"],
        "killed": "ended by SIGKILL" + log["killed"],
        "silent": "exit status 3" + log["silent"],
        "fine": None,
    }


def test_the_error_of_an_earlier_start_is_not_repeated(tmp_path):
    run = make_run(tmp_path, "again", "exit(3)")
    run.folder.mkdir()
    (run.folder / "output.log").write_text("fedkd: error: mended since\n")
    assert run_all([run])["again"].startswith("exit status 3")
    assert (run.folder / "output.log").read_text() == "fedkd: error: mended since\n"


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("a warning\nfedkd: error: the reason\nanother warning\n", "the reason"),
        (
            "Traceback (most recent call last):\n  File 'a'\nKeyError: 1\n\nDuring handling of the above, another:\n\n"
            "Traceback (most recent call last):\n  File 'b'\n    raise\nValueError: the reason\nfurther lines\n",
            "ValueError: the reason",
        ),
        ("Traceback (most recent call last):\n  File 'cut off'\n", "File 'cut off'"),
        ("one\n  two  \n\n", "two"),
        ("", "exit status 1"),
    ],
)
def test_the_error_is_found_in_the_output(output, line):
    assert error_line(output, 1) == line


def test_as_many_run_at_a_time_as_jobs(tmp_path):
    code = f"import pathlib, time; a = pathlib.Path({str(tmp_path)!r}); (a / 'NAME.up').touch()\n"
    code += "end = time.monotonic() + 60\n"
    code += "while len(list(a.glob('*.up'))) < 2: assert time.monotonic() < end; time.sleep(0.01)"
    runs = [make_run(tmp_path, name, code.replace("NAME", name)) for name in ("a", "b")]
    assert run_all(runs, jobs=2) == {"a": None, "b": None}  # each waits until both are up


@pytest.mark.parametrize("way", ["close", "raise"])
def test_what_runs_is_ended_when_the_caller_stops(way, tmp_path):
    first = make_run(tmp_path, "first", "")
    sleeper = make_run(tmp_path, "sleeper", "import time; time.sleep(600)")
    never = make_run(tmp_path, "never", "")
    ended = Runner(2, (sys.executable, "-c"))([first, sleeper, sleeper, never])
    assert next(ended) == (first, None)
    started = time.monotonic()
    if way == "close":
        ended.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            ended.throw(KeyboardInterrupt)
    assert time.monotonic() - started < 60
    assert not (never.folder / "output.log").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_ends_its_runs_and_says_how_to_go_on(number, tmp_path):
    """The runs get no signal of their own here, as they do from a terminal: the command must end them."""
    (tmp_path / "config.yaml").write_text("{}")
    grid = tmp_path / "grid.yaml"
    grid.write_text("config: config.yaml\nseeds: [0]\npartitions: {p: }\nmethods: {a: , b: }\n")
    sleeper = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(600)"
    code = f"""import sys
import fedkd.cli.compare
from fedkd.cli.main import main
from fedkd.study.runner import Runner
fedkd.cli.compare.parse = None  # it imports torch
Runner.__init__.__defaults__ = (1, (sys.executable, "-c", {sleeper!r}))  # in place of fedkd fit
main(sys.argv[1:])"""
    command = [sys.executable, "-c", code, "compare", str(grid), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    log, end = tmp_path / "out" / "p" / "a" / "seed-0" / "output.log", time.monotonic() + 60
    while not (log.is_file() and log.read_text().endswith("\n")):
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert out == "2 runs, 0 of them done\n"
    assert err == "fedkd: interrupted. Finished rounds are saved; the same command resumes from them.\n"
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)
    assert not (tmp_path / "out" / "p" / "b").exists()
