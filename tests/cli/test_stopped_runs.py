"""A command that is told to stop while clients train: its status, its line, and that the run goes on."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedkd.core.messages import ServerState, from_bytes

CONFIG = Path(__file__).parents[2] / "examples" / "quickstart.yaml"
LIGHTNING = ["--trainer.max_steps", "40"]  # which needs Lightning's own loops
POOL = ["--federation.backend", "ProcessPool", "--federation.backend.workers", "2"]


def command(run_dir: Path, rounds: int, *options: str) -> list[str]:
    fit = [sys.executable, "-m", "fedkd.cli", "fit", "--config", str(CONFIG), "--model.teacher", "null"]
    return [*fit, "--federation.rounds", str(rounds), "--run_dir", str(run_dir), *options]


@pytest.mark.parametrize(
    ("number", "status", "options"),
    [
        pytest.param(signal.SIGTERM, 143, LIGHTNING, marks=pytest.mark.slow),
        (signal.SIGINT, 130, LIGHTNING),
        pytest.param(signal.SIGTERM, 143, [], marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, [], marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, POOL, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, POOL, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_says_so_and_keeps_its_rounds(tmp_path, number, status, options):
    run_dir = tmp_path / "run"
    process = subprocess.Popen(
        command(run_dir, 10_000, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 150
    while not (run_dir / "checkpoints" / "round_000002.ckpt").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in err
    newest = max((run_dir / "checkpoints").glob("*.ckpt"))
    done = from_bytes(ServerState, newest.read_bytes()).round
    assert f"stopped: {done} finished round(s) are in {str(run_dir)!r}" in err
    assert "ckpt_path 'last' goes on from there" in err
    assert len(list(csv.DictReader((run_dir / "metrics.csv").open()))) in (done, done + 1)
    assert not (run_dir / "summary.json").exists()
