"""``fedkd compare``: every run of a grid once, its table and its plot, and the error of a wrong grid."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from pages import Page

from fedkd.cli import compare as command
from fedkd.cli.main import main
from fedkd.cli.subcommands import SECTIONS, SUBCOMMANDS
from fedkd.core.errors import FedKDError
from fedkd.study.compare import check_missing
from fedkd.study.grid import Run

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
    assert said.startswith("2 runs, 0 of them done")
    out = tmp_path / "out"
    rows = list(csv.DictReader((out / "results.csv").open()))
    ran = [(row["partition"], row["method"], row["rounds"]) for row in rows]
    assert ran == [("even", "FedAvg", "1"), ("even", "distilled", "1")]
    assert rows[0]["teacher"] == ""
    assert float(rows[1]["teacher"]) > 0.9
    table = (out / "table.md").read_text()
    assert table.startswith("| last round | even |")
    for row in rows:  # in the table of all partitions, and in that of its own
        assert table.count(f"| {row['method']} | {100 * float(row['final']):.1f} |") == 2
    assert (out / "curves.png").stat().st_size > 1000
    page = Page(out / "comparison.html")
    page.check_it_loads_nothing()
    assert page.links == ["even/fedavg/seed-0/report.html", "even/distilled/seed-0/report.html"]
    assert all((out / link).is_file() for link in page.links)
    assert "FeatureTeacher" in page.text  # the setting in which they differ
    assert (out / "even" / "fedavg" / "seed-0" / "partition.json").read_text().count('"num_clients": 3') == 1

    # one is finished, one was killed before its last round, one is new
    (out / "even" / "distilled" / "seed-0" / "summary.json").unlink()
    more = GRID.replace("distilled:", "distilled: {federation.rounds: 2}\n  wrong: {model.loss: DKDD}")
    grid.write_text(more)
    assert compare(grid, "--jobs", "2", "--set", "CLIENTS=3") == 1
    said = capsys.readouterr().out
    assert said.startswith("3 runs, 1 of them done")
    wrong = next(line for line in said.splitlines() if line.startswith("even, wrong, seed 0: model.loss: "))
    assert "'DKDD'. Did you mean 'DKD'?" in wrong
    assert wrong.endswith(f"(log: {out / 'even' / 'wrong' / 'seed-0' / 'output.log'})")
    again = {row["method"]: row for row in csv.DictReader((out / "results.csv").open())}
    assert again["FedAvg"] == rows[0]
    assert again["distilled"]["rounds"] == "2"

    # what is finished is not shown as the result of another grid
    for old, new, said in [
        ("model.teacher: null", "model.teacher: null, model.loss: DKD", "model.loss is KD, not DKD."),
        ("{model.teacher: null}", "", "model.teacher is null, not digits-tiny."),
        ("{model.teacher: null}", "{model.teacher: null, federation.rounds: 2}", "federation.rounds is 1, not 2."),
    ]:
        grid.write_text(more.replace(old, new))
        assert compare(grid, "--set", "CLIENTS=3") == 2
        error = capsys.readouterr().err
        assert error.startswith(f"fedkd: error: The finished run 'even, FedAvg', seed 0, differs from the grid: {said}")
        assert error.endswith(f"or delete '{out / 'even' / 'fedavg' / 'seed-0'}'.\n")
        assert error.count("\n") == 1
    grid.write_text(more)
    assert compare(grid, "--set", "CLIENTS=4") == 2
    assert "data.num_clients is 3, not 4. So do 1 more. Give another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("grid", "arguments", "message"),
    [
        (GRID, ["--set", "CLIENT=3"], "Unknown name of the grid grid.yaml 'CLIENT'. Did you mean 'CLIENTS'?"),
        (GRID, ["--set", "CLIENTS"], "--set takes NAME=VALUE, got 'CLIENTS'."),
        (GRID, ["--jobs", "0"], "--jobs must be >= 1, got 0."),
        (GRID, ["--jobs", "two"], "argument --jobs: invalid int value: 'two'"),
        (GRID, ["--only", "("], "--only must be a regular expression, got '('"),
        (GRID, ["--job", "2"], "Unknown option of compare '--job'. Did you mean '--jobs'?"),
        (GRID, ["--dat.dataset", "X"], "Unknown option of compare '--dat'. Did you mean '--data'?"),
        (GRID, ["--run_dir=x"], "compare takes no --run_dir: --out and the grid's seeds set it"),
        (GRID, ["another.yaml"], "compare takes one grid, but 'another.yaml' has no option before it."),
        (GRID, ["--data.num_client", "5"], "There is no option --data.num_client. Did you mean --data.num_clients?"),
        (GRID, ["--data.num_clients", "many"], "data.num_clients: 'many' is none of int, null."),
        (GRID, ["--set", "CLIENTS=few"], "data.num_clients: 'few' is none of int, null."),
        (GRID + "method: {}\n", [], "Unknown section of the grid grid.yaml 'method'. Did you mean 'methods'?"),
        (GRID.replace("seeds: [0]", "seeds: []"), [], "has no section 'seeds'"),
        ("base: nowhere.yaml\n", [], "There is no grid at"),
        ("a: [", [], "grid.yaml' is wrong in line 1: "),
        (
            f"{GRID}  FedAvg: {{model.loss: DKD}}\n",
            [],
            "grid.yaml' is wrong in line 11: 'FedAvg' stands there twice.",
        ),
        ("- a\n", [], "must have sections"),
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


def test_a_mistake_of_one_method_is_left_to_its_runs() -> None:
    parsed = []

    def parse(arguments: Sequence[str]) -> None:
        parsed.append(arguments[0])
        if arguments[0] != "fine":
            raise FedKDError(arguments[0])

    def runs(*arguments: str) -> list[Run]:
        return [Run("even", text, 0, Path(text), (text,)) for text in arguments]

    check_missing([], parse)
    check_missing(runs("fine", "wrong"), parse)
    assert parsed == ["fine"]
    check_missing(runs("wrong", "wrong", "fine"), parse)
    check_missing(runs("wrong", "other"), parse)
    for several in (["wrong"], ["wrong", "fine", "wrong"]):
        with pytest.raises(FedKDError, match="wrong"):
            check_missing(runs(*several), parse)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: GRID, --out"),
        (["grid.yaml"], "the following arguments are required: --out"),
        (["nowhere.yaml", "--out", "out"], "There is no grid at 'nowhere.yaml'."),
    ],
)
def test_a_grid_and_a_folder_are_needed(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_options_of_every_section_of_fit_go_to_every_run() -> None:
    assert {*SECTIONS["fit"], "config"} == set(command.OF_FIT)
    command.check_further(["--data.dataset", "ImageFolder", "--trainer.callbacks+=Timer", "--config", "more.yaml"])


def test_the_help_names_it_among_the_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    after = capsys.readouterr().out.partition("subcommands:")[2]
    assert SUBCOMMANDS["compare"] in " ".join(after.split())
    with pytest.raises(SystemExit):
        main(["compar"])
    assert "'compare'" in capsys.readouterr().err


def test_it_imports_nothing_heavy() -> None:
    heavy = ("torch", "lightning", "jsonargparse", "matplotlib")
    code = "import sys\nfrom fedkd.cli.main import main\ntry: main(['compare', '--help'])\n"
    code += f"except SystemExit: print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: fedkd compare GRID --out DIR")
    assert done.stdout.endswith("[]\n")
