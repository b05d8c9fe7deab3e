"""Bars on a terminal, and lines elsewhere."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

from rich.console import Console

from fedkd.core import progress
from fedkd.core.progress import LogLines

CODE = """
from fedkd.core.progress import progress_bar
with progress_bar("Rounds", 4, done=1) as bar:
    for i in range(3):
        bar.advance(note=f"accuracy {i}")
"""


def test_quiet_without_a_terminal_while_the_work_is_short():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""


def test_a_bar_on_a_terminal():
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen([sys.executable, "-c", CODE], stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    while True:
        try:
            chunk = os.read(ours, 4096)
        except OSError:  # the other end was closed
            break
        if not chunk:
            break
        seen += chunk
    os.close(ours)
    assert process.wait() == 0
    assert b"Rounds" in seen
    assert b"4/4" in seen
    assert b"accuracy 2" in seen


def test_a_line_a_minute_without_a_terminal(monkeypatch, capsys):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    lines = LogLines(Console(stderr=True), "outputs [DINOv2]", 50_000, done=1_000)

    def advance(seconds, steps, note=None):
        clock[0] += seconds
        lines.advance(steps, note)
        return capsys.readouterr().err

    assert advance(61, 0) == ""  # no speed is known
    assert advance(39, 1_000) == "outputs [DINOv2]: 2,000 of 50,000, about 1 h 20 min left\n"
    assert advance(59, 1_000) == ""
    # 9,000 images in 180 s, so 40,000 take 800 s.
    assert advance(21, 7_000, "view 1") == "outputs [DINOv2]: 10,000 of 50,000, about 13 min 20 s left, view 1\n"
    assert advance(900, 40_000) == ""  # the work has ended
