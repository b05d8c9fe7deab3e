"""Subcommands without sections: ``fedkd init`` and ``fedkd students``."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
import yaml
from test_cli import fedkd
from torch import nn

from fedkd.cli import students as command
from fedkd.cli.init import FOLDER, templates
from fedkd.cli.main import main
from fedkd.students.cost import measure_cost


@pytest.mark.parametrize("template", templates())
def test_a_template_is_a_whole_configuration(tmp_path, template):
    done = fedkd("init", "--template", template, "--output", "mine.yaml", cwd=tmp_path)
    assert done.stdout.startswith("mine.yaml: ")
    text = (tmp_path / "mine.yaml").read_text()
    assert "fedkd fit --config mine.yaml" in text
    assert "{output}" not in text
    given = yaml.safe_load(text)
    printed = yaml.safe_load(fedkd("fit", "--config", "mine.yaml", "--print_config", cwd=tmp_path).stdout)
    assert printed["federation"]["rounds"] == given["federation"]["rounds"]
    assert printed["data"]["batch_size"] == given["data"]["batch_size"]
    assert "#" in text.split("data:")[1]


def write_scans(folder: Path) -> None:
    from PIL import Image

    rows = []
    for i in range(36):
        color = (200, 20, 20) if i % 2 else (20, 20, 200)
        Image.new("RGB", (70, 64), color).save(folder / f"{i}.png")
        row = {"path": f"{i}.png", "label": ("benign", "other")[i % 2]}
        rows.append({**row, "hospital": ("north", "south", "west")[i % 3], "split": "test" if i > 29 else "train"})
    with (folder / "scans.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_the_medical_template_trains_on_a_csv_of_hospitals(tmp_path):
    write_scans(tmp_path)
    fedkd("init", "--template", "medical", cwd=tmp_path)
    small = ["--model.teacher", "null", "--federation.rounds", "1", "--model.student", "cnn", "--run_dir", "run"]
    fedkd("fit", "run.yaml", *small, "--model.student_options", "{}", "--trainer.accelerator", "cpu", cwd=tmp_path)
    found = list(csv.DictReader((tmp_path / "run" / "clients.csv").open()))
    assert [(row["client"], row["num_examples"]) for row in found] == [("0", "9"), ("1", "9"), ("2", "9")]
    assert (tmp_path / "run" / "best.safetensors").exists()


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "run.yaml").write_text("mine")
    done = fedkd("init", cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "fedkd: error: 'run.yaml' exists and is not written over. Name another, or add --overwrite.\n",
    )
    assert (tmp_path / "run.yaml").read_text() == "mine"


def test_an_unknown_template_gets_the_nearest(tmp_path):
    done = fedkd("init", "--template", "foldr", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "Unknown template 'foldr'. Did you mean 'folder'?" in done.stderr
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.yaml" for name in templates()}


def test_costs_are_those_counted_by_hand():
    # 8 filters of 3 x 3 x 1 at 6 x 6 places, and 288 x 5; biases are no multiplication
    student = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))
    cost = measure_cost(student, (1, 8, 8), repeats=2)
    assert cost.parameters == 8 * 9 + 8 + 288 * 5 + 5
    assert cost.macs == 8 * 9 * 36 + 288 * 5
    assert cost.milliseconds > 0
    assert student.training
    student[0].weight.requires_grad_(False)
    assert measure_cost(student, (1, 8, 8), repeats=1).parameters == cost.parameters - 72


def test_students_are_listed_with_their_costs(tmp_path):
    threads = torch.get_num_threads()
    printed = fedkd("students", "resnet8", "--image_size", "8", cwd=tmp_path).stdout
    assert torch.get_num_threads() == threads
    (row,) = [line for line in printed.splitlines() if "resnet8" in line]
    assert "75,290" in row
    done = fedkd("students", "resnt8", cwd=tmp_path, check=False)
    assert "Did you mean 'resnet8'?" in done.stderr


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--image_size", "4", "must be >= 8 and <= 4096, got 4."),
        ("--image_size", "100000", "must be >= 8 and <= 4096, got 100000."),
        ("--in_channels", "-1", "must be >= 1 and <= 1000, got -1."),
        ("--num_classes", "0", "must be >= 1, got 0."),
    ],
)
def test_images_that_cannot_be_are_refused(tmp_path, option, value, message):
    for names in ([], ["resnet8"]):
        done = fedkd("students", *names, option, value, cwd=tmp_path, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"fedkd: error: {option} {message}\n"


def test_patterns_choose_students_of_torchvision(capsys):
    main(["students", "resnet8", "torchvision/squeeze*1", "resnet*8", "--image_size", "24"])
    printed = capsys.readouterr().out
    names = [line.split()[1] for line in printed.splitlines() if "net" in line and line.startswith("│")]
    assert names == ["resnet8", "torchvision/squeezenet1_1", "resnet18"]  # each once, in the order given
    assert "727,626" in printed  # squeezenet1_1 with ten classes


def test_a_folder_is_measured(capsys, tmp_path):
    from transformers import ViTConfig

    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    ViTConfig(**size, image_size=32, patch_size=8).save_pretrained(tmp_path)
    main(["students", f"hf/{tmp_path}", "--num_classes", "7", "--in_channels", "1"])
    tokens = 4 * 4 + 1
    embedding = 64 * 16 + 16 + 16 + tokens * 16  # patches, the class token and positions
    layer = 4 * (16 * 16 + 16) + (16 * 24 + 24) + (24 * 16 + 16) + 2 * 2 * 16
    parameters = embedding + layer + 2 * 16 + (16 * 7 + 7)
    macs = 16 * 64 * 16 + tokens * (4 * 16 * 16 + 2 * 16 * 24) + 2 * tokens * tokens * 16 + 16 * 7
    printed = capsys.readouterr().out
    assert f"{parameters:,}" in printed
    assert f"{macs:,}" in printed


def test_many_students_are_listed_by_name_alone(capsys, monkeypatch):
    monkeypatch.setattr(command, "MAX_MEASURED", 2)
    main(["students", "torchvision/mobilenet_*"])
    assert capsys.readouterr().out.splitlines()[:3] == [
        f"torchvision/mobilenet_{name}" for name in ("v2", "v3_large", "v3_small")
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "torchvision/*mobilnet*",
            "No student matches 'torchvision/*mobilnet*'. Did you mean 'torchvision/mobilenet_v",
        ),
        ("hf/*", "'hf/*': the names behind hf/ cannot be listed"),
        ("hf//no/such", "No student checkpoint '/no/such': the folder does not exist"),
        ("torchvision/resnet81", "Unknown student 'torchvision/resnet81'. Did you mean 'torchvision/resnet18'?"),
        ("torchvision/inception_v3", "torchvision/inception_v3 cannot be measured on images (3, 32, 32)"),
    ],
)
def test_students_that_are_not_there_are_one_line(given, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["students", given])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"fedkd: error: {said}")
    assert error.count("\n") == 1
