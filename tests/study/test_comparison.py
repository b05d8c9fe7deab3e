"""The page that compares runs, whose files are written here, and the command that writes it."""

from __future__ import annotations

import json

import pytest
from pages import Page, write_run

import fedkd
from fedkd.cli.main import main
from fedkd.runs.record import read_run
from fedkd.study.comparison import Entry, compare_grid, differing_settings, run_names
from fedkd.study.grid import REFERENCES, Run


def finished(folder, balanced, worst, teacher=None, **settings):
    """Write a finished run of two rounds, the second 0.1 better than the first."""
    rows = [
        {"balanced_accuracy": value, "accuracy": 0.75, "accuracy/cat": low, "accuracy/<dog>": 1.0, "loss": 1.0}
        | {"bytes_up": 1_000_000, "bytes_down": 10, "seconds": 45.0}
        for value, low in ((balanced - 0.1, worst), (balanced, worst))
    ]
    return write_run(
        folder, rows, teacher=teacher and {"balanced_accuracy": teacher}, bytes_up=2_000_000, settings=settings
    )


def test_runs_stand_beside_each_other_with_what_differs(tmp_path, monkeypatch):
    first = finished(tmp_path / "a" / "<x> & y", 0.5, 0.25, teacher=0.875, strategy="FedAvg()", seed=0, loss="KD(<T>)")
    second = finished(tmp_path / "a" / "b", 0.625, 0.125, strategy="SCAFFOLD()", seed=0)
    third = finished(tmp_path / "a" / "c", 0.7, 0.0, strategy="FedAvg()", seed=0, loss="KD(<T>)")
    (third / "summary.json").unlink()
    fedkd.report(first)
    monkeypatch.chdir(tmp_path)
    assert fedkd.report("a/<x> & y", second, str(third)).name == "comparison.html"
    page = Page(tmp_path / "comparison.html")
    page.check_it_loads_nothing()
    assert page.links == ["a/%3Cx%3E%20%26%20y/report.html"]  # the others have no page
    header = "run rounds balanced accuracy worst class best round accuracy teacher sent up time"
    rows = ["<x> & y 2 50.0 25.0 50.0 75.0 87.5 2.0 MB 1 min 30 s", "b 2 62.5 12.5 62.5 75.0 2.0 MB 1 min 30 s"]
    rows += ["c 2 70.0 0.0 70.0 75.0 2.0 MB 1 min 30 s"]
    assert " ".join([header, *rows]) in page.text
    assert "c: The run is not finished: 2 rounds are on disk." in page.text
    differing = "strategy FedAvg() <x> & y SCAFFOLD() b not known c seed 0 <x> & y, b not known c"
    differing += " loss KD(<T>) <x> & y not known b, c"
    assert page.text.endswith(f"setting value runs {differing}")
    assert {"<x>", "<t>"} & set(page.tags) == set()


def test_what_clients_hold_out_has_a_column_if_there_is_any(tmp_path):
    rows = [{"balanced_accuracy": 0.5, "accuracy": 0.5, "bytes_up": 1, "bytes_down": 1, "seconds": 1.0}]
    held_out = write_run(tmp_path / "a", [{**rows[0], "val_accuracy": 0.625}])
    page = Page(fedkd.report(held_out, write_run(tmp_path / "b", rows), out=tmp_path / "comparison.html"))
    assert "run rounds validation balanced accuracy" in page.text
    assert "a 1 62.5 50.0" in page.text
    assert "b 1 50.0" in page.text


def test_what_is_the_same_is_counted(tmp_path):
    records = [read_run(finished(tmp_path / name, 0.5, 0.5, seed=0, loss="KD()")) for name in "ab"]
    assert differing_settings(records) == "<p>None: all 2 settings are the same.</p>"


def test_a_mean_is_over_the_rounds_that_all_runs_have(tmp_path):
    folders = [
        write_run(tmp_path / "long", [{"loss": 1.0}, {"loss": 2.0}, {"loss": 5.0}]),
        write_run(tmp_path / "short", [{"loss": 2.0}, {"loss": "nan"}]),
    ]
    entry = Entry("method", [read_run(folder) for folder in folders])
    assert entry.mean(lambda record: record.column("loss")) == [1.5, None]
    assert entry.mean(lambda record: record.worst_class) == []


def test_a_grid_has_a_part_for_each_partition_and_means_over_the_seeds(tmp_path):
    runs = []
    for partition, method, seed, final in [
        *(("even", "FedAvg", 0, 0.2), ("even", "FedAvg", 1, 0.4), ("skewed", "FedAvg", 0, 0.3)),
        (REFERENCES, "one client", 0, 0.7),
    ]:
        folder = finished(tmp_path / partition / method / f"seed-{seed}", final, 0.1, seed=seed)
        runs.append(Run(partition, method, seed, folder, ()))
    fedkd.report(runs[1].folder)
    page = Page(compare_grid(runs, tmp_path / "comparison.html"))
    assert page.links == ["even/FedAvg/seed-1/report.html"]  # the others have no page
    assert page.text.count("one client 2 70.0 10.0") == 2
    assert page.text.index("even") < page.text.index("skewed")
    assert "FedAvg: seed-0 seed-1 2 30.0 ± 14.1 10.0 ± 0.0 30.0 ± 14.1" in page.text
    assert "Accuracies in percent, after the last round" in page.text
    shown = "seed 0 even/FedAvg/seed-0, any partition/one client/seed-0, skewed/FedAvg/seed-0 1 even/FedAvg/seed-1"
    assert shown in page.text


def test_names_are_what_the_folders_do_not_share(tmp_path):
    records = [read_run(finished(tmp_path / part / "seed-0", 0.5, 0.5)) for part in ("a/x", "b")]
    assert run_names(records) == ["a/x/seed-0", "b/seed-0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "report: the following arguments are required: RUN. See: fedkd report --help"),
        (["nowhere"], "No run at 'nowhere': there is no 'nowhere/metrics.csv'."),
        (["run", "run/../run"], "The run 'run/../run' is given twice."),
        (["run", "--out", "run/student.safetensors"], "must end with .html, got 'run/student.safetensors'."),
        (
            ["run", "--out", "run/old.html"],
            "'run/old.html' exists and is not written over. Name another, or add --overwrite.",
        ),
        (["run", "--ot=x.html"], "Unknown option of report '--ot'. Did you mean '--out'?"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    finished(tmp_path / "run", 0.5, 0.5)
    (tmp_path / "run" / "old.html").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["report", *arguments])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    assert not (tmp_path / "run" / "report.html").exists()


def test_the_command_prints_the_page(tmp_path, monkeypatch, capsys):
    finished(tmp_path / "run", 0.5, 0.5)
    finished(tmp_path / "other", 0.5, 0.5)
    monkeypatch.chdir(tmp_path)
    main(["report", "run"])
    main(["report", "run", "other", "--out", "both.html"])
    main(["report", "run", "--out", "new/run.html"])
    main(["report", "run", "--out", "new/run.html", "--overwrite"])
    main(["report", "run"])  # it holds nothing but what is in the run
    assert capsys.readouterr().out == "run/report.html\nboth.html\nnew/run.html\nnew/run.html\nrun/report.html\n"
    assert "Settings" not in Page(tmp_path / "run" / "report.html").text
    assert "2 runs" in Page(tmp_path / "both.html").text
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rounds"] == 2
