"""``fedkd compare``: every run of a grid once, its table and its plot, and the error of a wrong grid."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from fedkd.cli.main import main

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

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


def compare(grid: Path, *arguments: str) -> int:
    """Run the command in this process and return its exit status; its runs have processes of their own."""
    try:
        main(["compare", str(grid), "--out", str(grid.parent / "out"), *arguments])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_a_grid_is_run_once_and_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "base.yaml").write_text(GRID.replace("federation.rounds: 1", "federation.rounds: 7"))
    grid = tmp_path / "grid.yaml"
    grid.write_text("base: base.yaml\narguments: {federation.rounds: 1}\n")
    status = compare(grid, "--jobs", "2", "--set", "CLIENTS=3")
    said = capsys.readouterr().out
    assert status == 0, said
    assert said.startswith("3 runs, 0 of them done")
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
    assert compare(grid, "--jobs", "2", "--set", "CLIENTS=3") == 1
    said = capsys.readouterr().out
    assert said.startswith("4 runs, 2 of them done")
    assert "wrong, seed 0: model.loss" in said
    assert "DKD" in said
    again = {row["method"]: row for row in csv.DictReader((out / "results.csv").open())}
    assert again["FedAvg"] == rows[0]
    assert again["distilled"]["rounds"] == "2"


@pytest.mark.parametrize(
    ("grid", "arguments", "message"),
    [
        (GRID, ["--set", "CLIENT=3"], "Unknown name of the grid grid.yaml 'CLIENT'. Did you mean 'CLIENTS'?"),
        (GRID, ["--set", "CLIENTS"], "--set takes NAME=VALUE, got 'CLIENTS'."),
        (GRID, ["--jobs", "0"], "--jobs must be"),
        (GRID, ["--jobs", "two"], "argument --jobs: invalid int value: 'two'"),
        (GRID, ["--only", "("], "--only must be a regular expression, got '('"),
        (GRID + "method: {}\n", [], "Unknown section of the grid grid.yaml 'method'. Did you mean 'methods'?"),
        (GRID.replace("seeds: [0]", "seeds: []"), [], "has no section 'seeds'"),
        ("base: nowhere.yaml\n", [], "There is no grid at"),
        ("a: [", [], "is not YAML"),
        ("- a\n", [], "must have sections"),
        (GRID.replace("${CLIENTS}", "${CLIENT}"), [], "Unknown name in the grid 'CLIENT'. Did you mean 'CLIENTS'?"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_runs(
    grid: str, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(grid)
    with pytest.raises(SystemExit) as stopped:
        main(["compare", str(path), "--out", str(tmp_path / "out"), *arguments])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("fedkd: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_every_grid_of_the_examples_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grids = sorted(EXAMPLES.glob("compare_*.yaml"))
    assert len(grids) >= 4
    for grid in grids:
        main(["compare", str(grid), "--out", str(tmp_path / grid.stem), "--only", "no such method"])
        assert capsys.readouterr().out.endswith(" runs, 0 of them done\n")
