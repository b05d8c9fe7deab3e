"""The comparison example: every run of a grid once, its table and its plot."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

GRID = f"""
names: {{CLIENTS: 2}}
config: {EXAMPLES / "quickstart.yaml"}
arguments: {{federation.rounds: 1, trainer.max_epochs: 1, data.num_clients: "${{CLIENTS}}"}}
seeds: [0]
partitions:
  even: {{data.partitioner: IID}}
methods:
  FedAvg: {{model.teacher: null}}
  distilled:
references:
  one client: {{model.teacher: null, data.num_clients: 1}}
"""


def compare(grid: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "compare.py"), str(grid), "--out", str(grid.parent / "out"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_grid_is_run_once_and_goes_on_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(GRID.replace("federation.rounds: 1", "federation.rounds: 7"))
    grid = tmp_path / "grid.yaml"
    grid.write_text("base: base.yaml\narguments: {federation.rounds: 1}\n")
    first = compare(grid, "--jobs", "2", "--set", "CLIENTS=3")
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout.startswith("3 runs, 0 of them done")
    out = tmp_path / "out"
    rows = list(csv.DictReader((out / "results.csv").open()))
    ran = [(row["partition"], row["method"], row["rounds"]) for row in rows]
    assert ran == [("even", "FedAvg", "1"), ("even", "distilled", "1"), ("any partition", "one client", "1")]
    assert rows[0]["teacher"] == ""
    assert float(rows[1]["teacher"]) > 0.9
    table = (out / "table.md").read_text()
    assert table.startswith("| last round | even |")
    for row in rows:  # a reference stands with every partition
        assert table.count(f"| {row['method']} | {100 * float(row['final']):.1f} |") == 2
    assert (out / "curves.png").stat().st_size > 1000
    assert (out / "even" / "fedavg" / "seed-0" / "partition.json").read_text().count('"num_clients": 3') == 1

    # one is finished, one was killed before its last round, one is new
    (out / "even" / "distilled" / "seed-0" / "summary.json").unlink()
    grid.write_text(
        GRID.replace("federation.rounds: 1", "federation.rounds: 2").replace(
            "references:", "  wrong: {model.loss: DKDD}\nreferences:"
        )
    )
    second = compare(grid, "--jobs", "2", "--set", "CLIENTS=3")
    assert second.returncode == 1
    assert second.stdout.startswith("4 runs, 2 of them done")
    assert "wrong, seed 0: fedkd: error:" in second.stdout
    assert "DKD" in second.stdout
    again = {row["method"]: row for row in csv.DictReader((out / "results.csv").open())}
    assert again["FedAvg"] == rows[0]
    assert again["distilled"]["rounds"] == "2"


def test_an_unknown_name_is_said(tmp_path: Path) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text(GRID)
    done = compare(grid, "--set", "CLIENT=3")
    assert done.returncode == 1
    assert "has no name CLIENT; it has CLIENTS" in done.stderr
