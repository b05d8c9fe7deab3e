"""Partitioners from the command line, by their class's name; test_cli.py has the older ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedkd.cli.main import main
from fedkd.data import Digits

CASES = {
    "Shards": ["--data.partitioner.shards_per_client", "2"],
    "QuantitySkew": ["--data.partitioner.alpha", "0.5"],
    "ClassAndQuantity": ["--data.partitioner.alpha", "0.5", "--data.partitioner.classes_per_client", "3"],
    "Given": ["--data.partitioner.clients", "owner.npy"],
    "ByAttribute": ["--data.partitioner.values", "writers.csv", "--data.partitioner.column", "writer"],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    size = len(Digits().load()[0])
    np.save(tmp_path / "owner.npy", np.arange(size) % 10)
    rows = [f"{i},w{i % 10}" for i in range(size)]
    (tmp_path / "writers.csv").write_text("\n".join(["image,writer", *rows]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", CASES)
def test_by_name(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["partition", "--data.partitioner", name, *CASES[name], "--data.val_fraction", "0.1"])
    out = capsys.readouterr().out
    assert "effective classes" in out
    assert out.splitlines()[-2:] == ["partition_report.png", "partition_report.json"]
    record = json.loads((folder / "partition_report.json").read_text())
    assert record["num_clients"] == 10
    assert sum(record["sizes"]) + record["validation"] == len(Digits().load()[0])


def test_from_yaml_as_bubbles(folder: Path) -> None:
    text = "data:\n  partitioner:\n    class_path: ByAttribute\n    init_args: {values: writers.csv, column: writer}\n"
    (folder / "run.yaml").write_text(text)
    main(["partition", "--config", "run.yaml", "--kind", "bubble", "--output", "plots/bubble.svg"])
    assert "<svg" in (folder / "plots" / "bubble.svg").read_text()
    assert len(json.loads((folder / "plots" / "bubble.json").read_text())["js_distance"]) == 10


def test_a_draw_that_fails_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["partition", "--data.partitioner.alpha", "0.001", "--data.partitioner.min_examples", "5"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "fedkd: error: data.partitioner: Dirichlet with alpha=0.001: none of 100 draws gave each of 10 clients min_ex"
    )
    assert len(error.splitlines()) == 1
