"""The command as its users type it, its output and its exit status."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from fedkd.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
QUICK = [
    "--config",
    str(ROOT / "examples" / "quickstart.yaml"),
    "--model.teacher",
    "null",
    "--federation.rounds",
    "2",
]


@dataclass
class Done:
    """What a command left: exit status and output."""

    returncode: int
    stdout: str
    stderr: str


def fedkd(*args: object, cwd: Path, check: bool = True) -> Done:
    """Run the command in ``cwd``, in this process: importing torch once is enough."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(arg) for arg in args])
        except SystemExit as stop:
            status = int(stop.code or 0)
    done = Done(status, out.getvalue(), err.getvalue())
    assert not check or status == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two rounds, given with dotted overrides, in a process of its own."""
    cwd = tmp_path_factory.mktemp("cli")
    overrides = ["--data.num_clients", "20", "--data.partitioner.alpha", "0.01", "--trainer.precision", "bf16-mixed"]
    command = [sys.executable, "-m", "fedkd.cli", "fit", *QUICK, *overrides, "--run_dir", "run"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return cwd / "run", done


def test_overrides_reach_the_run_and_its_config(run):
    run_dir, _ = run
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert config["data"]["num_clients"] == 20
    assert config["data"]["partitioner"]["init_args"]["alpha"] == 0.01
    assert config["trainer"]["precision"] == "bf16-mixed"
    assert config["model"]["teacher"] is None
    assert len(json.loads((run_dir / "partition.json").read_text())["indices"]) == 20


def test_it_is_quiet_off_a_terminal(run):
    _, done = run
    first, second, *rounds = done.stderr.splitlines()
    assert (first, second) == ("strategy auto: FedAvg()", "training loop: lean")
    assert [line.split(":")[0] for line in rounds] == ["round 1 of 2", "round 2 of 2"]
    assert "balanced accuracy" in done.stdout
    assert "\x1b" not in done.stdout


def test_the_saved_config_reproduces_the_run(run):
    run_dir, _ = run
    fedkd("fit", "--config", run_dir / "config.yaml", "--run_dir", "again", cwd=run_dir.parent)
    first, again = (load_file(d / "student.safetensors") for d in (run_dir, run_dir.parent / "again"))
    assert all((first[name] == again[name]).all() for name in first)


def test_a_run_goes_on_from_the_command_line(run):
    run_dir, _ = run
    config = run_dir / "config.yaml"
    fedkd("fit", "--config", config, "--run_dir", "parts", "--federation.rounds", "1", cwd=run_dir.parent)
    fedkd("fit", "--config", config, "--run_dir", "parts", "--ckpt_path", "last", cwd=run_dir.parent)
    parts, whole = (load_file(d / "student.safetensors") for d in (run_dir.parent / "parts", run_dir))
    assert all((parts[name] == whole[name]).all() for name in whole)


def test_test_and_predict_take_a_run_directory(run):
    run_dir, _ = run
    done = fedkd("test", run_dir, cwd=run_dir.parent)
    final = json.loads((run_dir / "summary.json").read_text())["balanced_accuracy"]
    assert f"{final:.4f}" in done.stdout

    done = fedkd("predict", run_dir, cwd=run_dir.parent)
    with open(done.stdout.strip()) as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 359
    assert all(abs(sum(float(row[str(k)]) for k in range(10)) - 1) < 1e-4 for row in rows)
    assert all(max("0123456789", key=lambda k, row=row: float(row[k])) == row["prediction"] for row in rows)


@pytest.mark.slow
def test_predictions_are_not_written_over_unasked(run, tmp_path):
    from PIL import Image

    run_dir, _ = run
    for name, gray in (("a", 0), ("b", 200), ("c", 90)):
        Image.new("L", (8, 8), gray).save(tmp_path / f"{name}.png")
    (tmp_path / "list.csv").write_text("label,path\nx,c.png\ny,a.png\n")
    images = ["--images", tmp_path / "list.csv"]
    first = fedkd("predict", run_dir, *images, "--output", "out/p.csv", cwd=tmp_path)
    assert first.stdout.strip() == "out/p.csv"
    with open(tmp_path / "out" / "p.csv") as file:
        assert [Path(row["image"]).name for row in csv.DictReader(file)] == ["c.png", "a.png"]
    with Image.open(tmp_path / "out" / "p.png") as sheet:
        assert sheet.width > sheet.height
    again = fedkd("predict", run_dir, *images, "--output", "out/p.csv", cwd=tmp_path, check=False)
    assert (again.returncode, again.stderr) == (
        2,
        "fedkd: error: output: 'out/p.csv' exists and is not written over. Name another, or add --overwrite.\n",
    )
    wrong = fedkd("predict", run_dir, *images, "--output", "out/p.png", cwd=tmp_path, check=False)
    assert "'out/p.png' must end in .csv" in wrong.stderr
    before = len(list(run_dir.glob("predictions*.csv")))
    for _ in range(2):
        fedkd("predict", run_dir, *images, cwd=tmp_path)
    assert len(list(run_dir.glob("predictions*.csv"))) == before + 2
    (tmp_path / "list.csv").write_text("path\nnone.png\n")
    lost = fedkd("predict", run_dir, *images, cwd=tmp_path, check=False)
    assert "line 2: the image " in lost.stderr


@pytest.mark.slow
def test_the_best_student_is_tested_predicted_and_exported(run, tmp_path):
    run_dir, _ = run
    wrong = fedkd("test", run_dir, "--which", "best", cwd=tmp_path, check=False)
    assert (wrong.returncode, wrong.stderr.count("Unknown student 'best'")) == (2, 1)
    done = fedkd("export", run_dir, "--format", "torch", "--output", tmp_path / "s.pt2", cwd=tmp_path)
    assert done.stdout.startswith(f"{tmp_path / 's.pt2'} (logits differ from the student's by ")
    refused = fedkd("export", run_dir, "--push", "me/it", cwd=tmp_path, check=False)
    assert "push 'me/it' needs the format 'safetensors', got 'onnx'" in refused.stderr


def test_a_run_from_python_is_tested_and_predicted(tmp_path):
    import torch
    from PIL import Image

    from fedkd import DistillationModule, FederatedDataModule, Federation
    from fedkd.data import Digits

    data = FederatedDataModule(Digits(), num_clients=2)
    summary = Federation(1, run_dir=tmp_path / "run", trainer={"accelerator": "cpu"}).fit(
        DistillationModule("cnn", optimizer=lambda p: torch.optim.SGD(p, 0.02)), data
    )
    told = fedkd("test", "run", cwd=tmp_path, check=False)
    assert told.stderr.startswith("fedkd: error: The run 'run' was made from Python, so its data set is not known here")
    done = fedkd("test", "run", "--data.dataset", "Digits", cwd=tmp_path)
    assert f"{summary['balanced_accuracy']:.4f}" in done.stdout
    Image.new("L", (8, 8), 200).save(tmp_path / "a.png")
    fedkd("predict", "run", "--images", "a.png", cwd=tmp_path)
    assert (tmp_path / "run" / "predictions.csv").exists()


def test_a_logger_and_callbacks_can_be_named(tmp_path):
    logger = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "logs"]
    callback = [
        "--trainer.callbacks+=EarlyStopping",
        "--trainer.callbacks.monitor",
        "train/loss",
        "--trainer.max_steps",
        "2",
    ]
    done = fedkd("fit", *QUICK, *logger, "--federation.rounds", "1", "--run_dir", "run", cwd=tmp_path)
    assert done.stderr == ""
    (logged,) = (tmp_path / "logs").rglob("metrics.csv")
    with open(logged) as ours, open(tmp_path / "run" / "metrics.csv") as theirs:
        left, right = next(csv.DictReader(ours)), next(csv.DictReader(theirs))
    assert float(left["balanced_accuracy"]) == float(right["balanced_accuracy"])

    fedkd("fit", *QUICK, *callback, "--federation.rounds", "1", "--run_dir", "steps", cwd=tmp_path)
    with open(tmp_path / "steps" / "metrics.csv") as file:
        row = next(csv.DictReader(file))
    assert int(row["num_steps"]) == 2 * len(row["cohort"].split())


def test_a_callback_that_needs_a_logger_is_refused_at_once(tmp_path):
    done = fedkd("fit", *QUICK, "--trainer.callbacks+=LearningRateMonitor", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "fedkd: error: trainer.callbacks: LearningRateMonitor needs a logger, which a client's Trainer does not have: "
        "loggers get a row a round. Leave it out.\n"
    )


def test_predict_takes_image_files(run, tmp_path):
    from PIL import Image

    from fedkd.data import Digits

    run_dir, _ = run
    (tmp_path / "pictures").mkdir()
    for i, pixels in enumerate(Digits().load()[0].images[:3]):
        Image.fromarray(pixels[0].numpy()).resize((40, 40)).save(tmp_path / "pictures" / f"{i}.png")
    fedkd("predict", run_dir, "--images", tmp_path / "pictures", "--output", tmp_path / "p.csv", cwd=tmp_path)
    rows = list(csv.reader((tmp_path / "p.csv").read_text().splitlines()))
    assert [Path(row[0]).name for row in rows[1:]] == ["0.png", "1.png", "2.png"]


def test_predict_sees_the_pixels_that_training_saw(tmp_path):
    from PIL import Image

    from fedkd.data import ImageFolder
    from fedkd.runs.inference import read_image

    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (30, 48, 3), dtype=np.uint8)).save(tmp_path / part / "a" / "0.png")
    train, _ = ImageFolder(tmp_path, image_size=12).load()
    assert (read_image(tmp_path / "train" / "a" / "0.png", (3, 12, 12)) == train.images[0]).all()
    assert read_image(tmp_path / "train" / "a" / "0.png", (1, 12, 12)).shape == (1, 12, 12)


def test_a_student_given_by_class_is_tested_and_predicts(tmp_path):
    student = [
        "--model.student",
        "fedkd.students.CNN",
        "--model.student.num_classes=10",
        "--model.student.in_channels=1",
        "--model.student.image_size=8",
    ]
    fedkd("fit", *QUICK, *student, "--federation.rounds", "1", "--run_dir", "run", cwd=tmp_path)
    final = json.loads((tmp_path / "run" / "summary.json").read_text())["balanced_accuracy"]
    assert f"{final:.4f}" in fedkd("test", "run", cwd=tmp_path).stdout
    fedkd("predict", "run", cwd=tmp_path)
    assert len((tmp_path / "run" / "predictions.csv").read_text().splitlines()) == 360


def test_predict_names_a_file_that_is_no_image(run, tmp_path):
    run_dir, _ = run
    (tmp_path / "x.png").write_bytes(b"no image")
    done = fedkd("predict", run_dir, "--images", tmp_path / "x.png", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "x.png could not be read as an image" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_partition_shows_and_plots(tmp_path):
    done = fedkd("partition", *QUICK, "--output", "plot.png", cwd=tmp_path)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    counts = [line for line in done.stdout.splitlines() if line.strip()]
    assert len(counts) >= 12
    assert not (tmp_path / "runs").exists()


def test_teachers_are_listed(tmp_path):
    out = fedkd("teachers", cwd=tmp_path).stdout
    assert "digits-tiny" in out
    assert "dinov2" in out


def test_print_config_is_complete(tmp_path):
    config = yaml.safe_load(fedkd("fit", *QUICK, "--print_config", cwd=tmp_path).stdout)
    assert {"data", "model", "federation", "trainer", "run_dir", "seed_everything", "ckpt_path"} <= config.keys()
    assert config["model"]["loss"]["class_path"].endswith("KD")
    assert config["federation"]["strategy"] == "auto"  # what suits the run
    given = yaml.safe_load((ROOT / "examples" / "quickstart.yaml").read_text())
    assert config["model"]["optimizer"]["init_args"]["lr"] == given["model"]["optimizer"]["init_args"]["lr"]


def test_what_is_suggested_can_be_chosen():
    from fedkd.cli.errors import subclass_names
    from fedkd.partition import Partitioner
    from fedkd.strategies import Strategy
    from fedkd.teachers.heads.head import FederatedHead

    heads = set(subclass_names(FederatedHead))
    assert {"RidgeHead", "PrototypeHead", "LinearHead", "ZeroShotRidge"} <= heads
    assert "MembersHeads" not in heads  # an ensemble makes it
    assert {"SCAFFOLD", "Compose", "FedMD"} <= set(subclass_names(Strategy))
    assert {"Dirichlet", "Given"} <= set(subclass_names(Partitioner))
