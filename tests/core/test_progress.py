"""Bars on a terminal, and nothing elsewhere."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

CODE = """
from fedkd.core.progress import progress_bar
with progress_bar("Rounds", 4, done=1) as bar:
    for i in range(3):
        bar.advance(note=f"accuracy {i}")
"""


def test_quiet_without_a_terminal():
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
