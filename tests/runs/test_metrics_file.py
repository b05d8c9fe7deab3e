"""metrics.csv: appended to, and read back as it was."""

from __future__ import annotations

import math

import pytest

from fedkd.core.errors import FedKDError
from fedkd.runs.metrics_file import MetricsFile, read

ROWS = [
    {"round": 0, "loss": 0.1 + 0.2, "accuracy/a": float("nan"), "cohort": "7", "num_examples": 12, "seconds": 1.0},
    {"round": 1, "loss": 1e-17, "accuracy/a": 1.0, "cohort": "1 2", "num_examples": 3, "seconds": 0.25},
]


def test_rows_come_back_with_their_types(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv")
    for row in ROWS:
        file.append(row)
    found = read(tmp_path / "metrics.csv")
    assert math.isnan(found[0].pop("accuracy/a"))
    assert found == [{name: value for name, value in ROWS[0].items() if name != "accuracy/a"}, ROWS[1]]
    assert [type(value) for value in found[1].values()] == [int, float, float, str, int, float]


def test_a_row_is_appended_and_what_was_there_is_not_touched(tmp_path):
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path)
    file.append(ROWS[0])
    before, inode = path.read_text(), path.stat().st_ino
    file.append(ROWS[1])
    assert path.read_text().startswith(before)
    assert path.stat().st_ino == inode


def test_a_new_column_is_empty_in_the_rows_before(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv")
    file.append({"round": 0, "loss": 1.0})
    file.append({"round": 1, "loss": 2.0, "train/kd": 3.0})
    file.append({"round": 2})
    assert (tmp_path / "metrics.csv").read_text() == "round,loss,train/kd\n0,1.0,\n1,2.0,3.0\n2,,\n"
    assert read(tmp_path / "metrics.csv", 2) == [{"round": 0, "loss": 1.0}, {"round": 1, "loss": 2.0, "train/kd": 3.0}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("round,loss\n0,1.0\n", "has the rows of 1 rounds; the checkpoint is of round 2"),
        ("round,loss\n0,1.0\n2,1.0\n", "is damaged in line 3, the row of round 1"),
        ("round,loss\n0,1.0\n1,1.0,5\n", "is damaged in line 3, the row of round 1"),
        (None, "with the rows of 2 finished rounds, cannot be read"),
    ],
)
def test_rows_that_are_missing_or_others_are_an_error(text, message, tmp_path):
    if text is not None:
        (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(FedKDError, match=message):
        read(tmp_path / "metrics.csv", 2)
