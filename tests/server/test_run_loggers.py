"""Loggers get a run's settings, rounds and figures."""

from __future__ import annotations

import csv
import sys

import pytest
import torch
from helpers import datamodule, images, module

import fedkd
from fedkd.server.run_loggers import RunLoggers, confusion_figure, mlflow_names


def fit(run_dir, logger, rounds=2, ckpt_path=None):
    trained = module("cnn")
    run = fedkd.Federation(rounds, run_dir=run_dir, trainer={"accelerator": "cpu", "logger": logger})
    return run.fit(trained, datamodule(), ckpt_path)


def test_true_writes_into_the_run_directory(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    summary = fit(tmp_path / "run", True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    found = events.Tags()
    assert [event.step for event in events.Scalars("balanced_accuracy")] == [0, 1]
    assert events.Scalars("balanced_accuracy")[-1].value == pytest.approx(summary["balanced_accuracy"])
    assert set(found["images"]) == {"partition", "confusion"}
    assert (tmp_path / "run" / "tensorboard" / "hparams.yaml").read_text().count("strategy: FedAvg()") == 1
    assert not (tmp_path / "lightning_logs").exists()


def test_without_tensorboard_true_is_a_csv(tmp_path, monkeypatch):
    find = sys.modules["importlib.util"].find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name.startswith("tensorboard") else find(name, *rest)
    )
    (logger,) = RunLoggers(True, tmp_path).loggers
    assert type(logger).__name__ == "CSVLogger"
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.save()
    assert list(csv.DictReader((tmp_path / "csv" / "metrics.csv").open())) == [{"loss": "1.0", "step": "0"}]


def test_a_csv_has_the_settings_and_the_figures_beside_it(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    fit(tmp_path / "run", CSVLogger(tmp_path, name="logs", version=0))
    folder = tmp_path / "logs" / "version_0"
    assert {path.name for path in folder.iterdir()} == {"metrics.csv", "hparams.yaml", "partition.png", "confusion.png"}
    assert "strategy: FedAvg()" in (folder / "hparams.yaml").read_text()
    assert [row["step"] for row in csv.DictReader((folder / "metrics.csv").open())] == ["0", "1"]


def test_no_figure_is_drawn_for_a_logger_without_figures(tmp_path):
    from lightning.pytorch.loggers.logger import DummyLogger

    def draw():
        raise AssertionError("drawn for nothing")

    for logger in (None, False, [], DummyLogger()):
        RunLoggers(logger, tmp_path).log_figure("partition", draw, 0)


def test_a_confusion_matrix_shows_shares_of_the_true_class():
    counts = torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    figure = confusion_figure(counts, ["a", "$b$", "c"])
    (axes,) = figure.axes
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "$b$", "c"]
    figure.canvas.draw()


def test_what_is_no_logger_is_refused():
    for wrong in ("TensorBoardLogger", 3, ["csv"]):
        with pytest.raises(fedkd.FedKDError, match=r"trainer\.logger: must be a Lightning logger, true, false or null"):
            fedkd.Federation(trainer={"logger": wrong})


def test_weights_and_biases_gets_them_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    fit(tmp_path / "run", WandbLogger(save_dir=tmp_path, offline=True))
    (kept,) = tmp_path.glob("wandb/offline-run-*")
    assert {path.name.split("_")[0] for path in kept.glob("files/media/images/*.png")} == {"partition", "confusion"}


def test_mlflow_gets_them_in_a_database(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from lightning.pytorch.loggers import MLFlowLogger

    store = f"sqlite:///{tmp_path}/mlflow.db"
    logger = MLFlowLogger("fedkd", tracking_uri=store, artifact_location=str(tmp_path / "files"))
    data = fedkd.FederatedDataModule.from_datasets(images(60), images(30, seed=1), num_clients=3)
    data.prepare_data()
    for part in (data.train, data.test):
        object.__setattr__(part, "classes", ("äpfel", "ü", "ö"))
    run = fedkd.Federation(2, run_dir=tmp_path / "run", trainer={"accelerator": "cpu", "logger": logger})
    summary = run.fit(module("cnn"), data)
    client = mlflow.MlflowClient(store)
    (kept,) = client.search_runs([client.get_experiment_by_name("fedkd").experiment_id])
    assert kept.info.status == "FINISHED"
    assert [each.step for each in client.get_metric_history(kept.info.run_id, "balanced_accuracy")] == [0, 1]
    assert kept.data.metrics["balanced_accuracy"] == pytest.approx(summary["balanced_accuracy"])
    assert {name for name in kept.data.metrics if name.startswith("accuracy/")} == {
        *("accuracy/_pfel", "accuracy/_", "accuracy/__2")
    }
    assert kept.data.params["strategy"] == "FedAvg()"
    assert {each.path for each in client.list_artifacts(kept.info.run_id)} == {"confusion.png", "partition.png"}


def test_names_for_mlflow_are_paths_and_differ():
    given = [
        "loss",
        "train/kd",
        "accuracy/cat",
        "accuracy/ü",
        "accuracy/猫",
        "accuracy/a//b",
        "accuracy/..",
        "accuracy/.",
    ]
    assert list(mlflow_names(given).values()) == [
        *("loss", "train/kd", "accuracy/cat", "accuracy/_", "accuracy/__2", "accuracy/a__b", "accuracy/__"),
        "accuracy/__3",
    ]
    assert len(mlflow_names(["accuracy/" + "x" * 300])["accuracy/" + "x" * 300]) < 250
