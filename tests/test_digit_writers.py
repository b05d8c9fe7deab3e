"""The example with natural clients: its script writes what its YAML trains on."""

from __future__ import annotations

import csv
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedkd.cli.main import main

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_the_script_writes_what_the_configuration_trains_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["digit_writers.py"])
    runpy.run_path(str(EXAMPLES / "digit_writers.py"), run_name="__main__")
    with open("data/digit_writers/labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    train = [row for row in rows if row["split"] == "train"]
    assert (len(train), len(rows)) == (1004, 1363)  # 1,797 without the 434 that the teacher was trained on
    writers = sorted({row["writer"] for row in train})
    assert len(writers) == 13
    assert np.asarray(Image.open(Path("data/digit_writers", rows[0]["path"]))).shape == (24, 24)
    main(["partition", "--config", str(EXAMPLES / "digit_writers.yaml")])
    record = json.loads(Path("partition_report.json").read_text())
    assert record["sizes"] == [sum(row["writer"] == writer for row in train) for writer in writers]
