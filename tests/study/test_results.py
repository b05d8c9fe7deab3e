"""Rows, tables and curves of runs whose files are written here."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from fedkd.study.compare import write_results
from fedkd.study.grid import REFERENCES, Run
from fedkd.study.report import mean_percent, write_tables
from fedkd.study.results import curve_of, partitions_of, row_of, write_csv


def finished(
    folder: Path,
    partition: str,
    method: str,
    seed: int,
    final: float,
    teacher: float | None = None,
    validation: float | str = "",
) -> Run:
    """Return a finished run of two rounds, with a best accuracy of 0.1 more than the final one."""
    run = Run(partition, method, seed, folder / partition / method / str(seed), ())
    run.folder.mkdir(parents=True)
    (run.folder / "metrics.csv").write_text(
        f"round,balanced_accuracy,val_accuracy\n0,{final + 0.1},\n1,{final},{validation}\n"
    )
    summary = {
        "rounds": 2,
        "balanced_accuracy": final,
        "best": {"balanced_accuracy": final + 0.1},
        "per_class_accuracy": {"cat": 0.2, "dog": 0.05, "absent": None},  # null: no test image of that class
        "teacher": None if teacher is None else {"balanced_accuracy": teacher},
        "bytes_up": 10,
        "round_seconds": 90.0,
    }
    (run.folder / "summary.json").write_text(json.dumps(summary))
    return run


def test_a_row_has_a_run_s_results(tmp_path):
    run = finished(tmp_path, "even", "distilled", 3, final=0.5, teacher=0.9)
    assert row_of(run) == {
        "partition": "even",
        "method": "distilled",
        "seed": 3,
        "rounds": 2,
        "final": 0.5,
        "best": 0.6,
        "validation": None,
        "worst_class": 0.05,
        "teacher": 0.9,
        "bytes_up": 10,
        "minutes": 1.5,
    }
    assert curve_of(run) == [0.6, 0.5]


def test_the_csv_has_a_row_a_run(tmp_path):
    rows = [row_of(finished(tmp_path, "even", "FedAvg", seed, final=0.25)) for seed in (0, 1)]
    write_csv(rows, tmp_path / "results.csv")
    with (tmp_path / "results.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [(row["seed"], row["final"], row["teacher"]) for row in read] == [("0", "0.25", ""), ("1", "0.25", "")]


def test_a_mean_has_a_deviation_from_two_seeds_on():
    assert mean_percent([]) == ""
    assert mean_percent([0.25]) == "25.0"
    assert mean_percent([0.2, 0.4]) == "30.0 ± 14.1"  # sqrt(2 * 10^2 / 1)


def test_the_table_repeats_a_reference_at_every_partition(tmp_path):
    runs = [
        finished(tmp_path, "even", "FedAvg", 0, final=0.2),
        finished(tmp_path, "even", "FedAvg", 1, final=0.4),
        finished(tmp_path, "skewed", "FedAvg", 0, final=0.1),
        finished(tmp_path, "skewed", "distilled", 0, final=0.3, teacher=0.9),
        finished(tmp_path, REFERENCES, "one client", 0, final=0.7),
    ]
    write_tables([row_of(run) for run in runs], tmp_path / "table.md")
    assert (
        (tmp_path / "table.md").read_text()
        == """\
| last round | even | skewed |
|---|---|---|
| FedAvg | 30.0 ± 14.1 | 10.0 |
| distilled |  | 30.0 |
| one client | 70.0 | 70.0 |

### even

| method | last round | best round | worst class | teacher | seeds |
|---|---|---|---|---|---|
| FedAvg | 30.0 ± 14.1 | 40.0 ± 14.1 | 5.0 ± 0.0 |  | 2 |
| one client | 70.0 | 80.0 | 5.0 |  | 1 |

### skewed

| method | last round | best round | worst class | teacher | seeds |
|---|---|---|---|---|---|
| FedAvg | 10.0 | 20.0 | 5.0 |  | 1 |
| distilled | 30.0 | 40.0 | 5.0 | 90.0 | 1 |
| one client | 70.0 | 80.0 | 5.0 |  | 1 |
"""
    )


def test_where_clients_hold_images_out_their_accuracy_comes_first(tmp_path):
    runs = [
        finished(tmp_path, "even", "FedAvg", 0, final=0.2, validation=0.3),
        finished(tmp_path, "even", "FedAvg", 1, final=0.4, validation=0.5),
        finished(tmp_path, "even", "distilled", 0, final=0.3),
    ]
    write_tables([row_of(run) for run in runs], tmp_path / "table.md")
    assert (
        (tmp_path / "table.md").read_text()
        == """\
| validation, last round | even |
|---|---|
| FedAvg | 40.0 ± 14.1 |
| distilled |  |

| last round | even |
|---|---|
| FedAvg | 30.0 ± 14.1 |
| distilled | 30.0 |

### even

| method | validation | last round | best round | worst class | teacher | seeds |
|---|---|---|---|---|---|---|
| FedAvg | 40.0 ± 14.1 | 30.0 ± 14.1 | 40.0 ± 14.1 | 5.0 ± 0.0 |  | 2 |
| distilled |  | 30.0 | 40.0 | 5.0 |  | 1 |
"""
    )


def test_references_alone_have_a_column():
    assert partitions_of([REFERENCES, REFERENCES]) == [REFERENCES]
    assert partitions_of(["b", REFERENCES, "a", "b"]) == ["b", "a"]


def test_results_are_written_of_what_is_finished(tmp_path):
    write_results([], tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    write_results([finished(tmp_path, "even", "FedAvg", 0, final=0.2)], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("even", "results.csv", "table.md", "curves.png", "comparison.html")
    }
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
