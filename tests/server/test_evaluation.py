"""What a run measures beside the test set: the images that clients hold out."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from helpers import images, module, same

import fedkd
from fedkd.data import FederatedDataModule
from fedkd.partition import Dirichlet
from fedkd.runs.record import read_run
from fedkd.study.grid import Run
from fedkd.study.results import row_of


def test_clients_held_out_images_are_measured_and_change_nothing(tmp_path: Path) -> None:
    data = FederatedDataModule.from_datasets(
        images(60), images(30), num_clients=6, partitioner=Dirichlet(0.05), val_fraction=0.3, eval_batch_size=7
    )
    federation = fedkd.Federation(rounds=2, run_dir=tmp_path / "run")
    summary = federation.fit(module(), data)
    student = fedkd.load_student(tmp_path / "run", module().student)
    each, right, total = summary["client_val_accuracy"], 0, 0
    for client, held in enumerate(data.val_shards):
        if not len(held):
            assert each[client] is None
            continue
        with torch.no_grad():
            said = student(data.train.images[held].float() / 255).argmax(dim=1)
        hits = int((said == data.train.targets[held]).sum())
        assert each[client] == pytest.approx(hits / len(held))
        right, total = right + hits, total + len(held)
    assert None in each
    assert 0 < right < total
    last = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))[-1]
    assert float(last["val_accuracy"]) == pytest.approx(right / total)
    assert summary["val_accuracy"] == pytest.approx(right / total)

    # the same images gone to nobody: the same weights, and nothing said of clients
    data.val_shards = [held[:0] for held in data.val_shards]
    again = fedkd.Federation(rounds=2, run_dir=tmp_path / "again").fit(module(), data)
    assert again["client_val_accuracy"] is None
    assert again["val_accuracy"] is None
    assert "val_accuracy" not in (tmp_path / "again" / "metrics.csv").read_text()
    other = fedkd.load_student(tmp_path / "again", module().student)
    assert same(student.state_dict(), other.state_dict())


def test_the_validation_of_a_study_is_over_all_clients_though_each_round_samples_one(tmp_path: Path) -> None:
    data = FederatedDataModule.from_datasets(
        images(60), images(30), num_clients=6, partitioner=Dirichlet(0.3), val_fraction=0.3
    )
    federation = fedkd.Federation(rounds=1, clients_per_round=1, run_dir=tmp_path / "run")
    summary = federation.fit(module(), data)
    counts = [len(held) for held in data.val_shards]
    right = sum(n * (share or 0) for n, share in zip(counts, summary["client_val_accuracy"], strict=True))
    assert summary["val_accuracy"] == pytest.approx(right / sum(counts))
    row = row_of(Run("even", "FedAvg", 0, tmp_path / "run", ()))
    assert row["validation"] == read_run(tmp_path / "run").validation == summary["val_accuracy"]
    last = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))[-1]
    assert float(last["val_accuracy"]) != pytest.approx(summary["val_accuracy"])
