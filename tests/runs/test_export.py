"""Exported students compute what the student computes, where fedkd is not."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from helpers import datamodule, module
from local_hub import local_hub
from torch import nn

import fedkd
from fedkd.cli.main import main
from fedkd.core.sealed import DamagedFileError
from fedkd.runs.export import compare, export_student
from fedkd.runs.published import PublishedStudent, teacher_license
from fedkd.server.callbacks import SaveBest
from fedkd.strategies import ClosedFormHead
from fedkd.teachers.registry import name_of

CPU = {"accelerator": "cpu"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a finished run with a best student, whose head is in closed form."""
    path = tmp_path_factory.mktemp("export") / "run"
    fedkd.Federation(2, strategy=ClosedFormHead(), callbacks=[SaveBest("loss", "min")], run_dir=path, trainer=CPU).fit(
        module("cnn"), datamodule()
    )
    return path


@pytest.fixture(scope="module")
def published(run):
    return export_student(run, "safetensors")


@pytest.mark.slow
def test_a_program_needs_torch_alone(run, tmp_path):
    exported = export_student(run, "torch")
    assert exported.path == run / "student.pt2"
    assert exported.max_difference < 1e-5
    images = torch.rand(5, 1, 8, 8)
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import sys, torch; student = torch.export.load(sys.argv[1]).module();"
        "torch.save(student(torch.load(sys.argv[2])), sys.argv[3]);"
        "assert not any(name.split('.')[0] in ('fedkd', 'lightning') for name in sys.modules)"
    )
    command = [sys.executable, "-c", code, exported.path, tmp_path / "images.pt", tmp_path / "logits.pt"]
    subprocess.run(command, check=True, cwd=tmp_path)
    with torch.inference_mode():
        expected = fedkd.load_student(run)(images)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, rtol=1e-5, atol=1e-5)


def test_a_named_output_is_not_written_over(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.pt2").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    for output, format in (("mine.pt2", "torch"), ("mine", "safetensors")):
        with pytest.raises(SystemExit):
            main(["export", str(run), "--format", format, "--output", str(tmp_path / output)])
        assert "exists and is not written over. Name another, or add --overwrite." in capsys.readouterr().err
    monkeypatch.setattr("fedkd.runs.export.as_program", lambda student, spec: b"content")
    monkeypatch.setattr("fedkd.runs.export.run_program", lambda content: fedkd.load_student(run))
    main(["export", str(run), "--format", "torch", "--output", str(tmp_path / "mine.pt2"), "--overwrite"])
    main(["export", str(run), "--format", "torch", "--output", str(tmp_path / "new" / "x.pt2")])
    assert (tmp_path / "mine.pt2").read_bytes() == (tmp_path / "new" / "x.pt2").read_bytes() == b"content"


@pytest.mark.slow  # half a minute, for torch's exporter
def test_onnx_runtime_gives_the_same_logits(run, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    exported = export_student(run, "onnx", tmp_path / "best.onnx", which="best")
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    student = fedkd.load_student(run, which="best")
    for size in (1, 4):
        images = torch.rand(size, 1, 8, 8)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), student(images).detach(), rtol=1e-4, atol=1e-5)
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == ["0", "1", "2"]
    assert "values in [0, 1]" in facts["input"]


def test_a_published_student_comes_back(run, published):
    student, images = PublishedStudent.from_pretrained(published.path), torch.rand(3, 1, 8, 8)
    assert published.path == run / "student_published"
    assert not student.training
    assert student.classes == ("0", "1", "2")
    assert torch.equal(student(images), fedkd.load_student(run)(images))
    assert {path.name for path in published.path.iterdir()} == {
        *("README.md", "config.json", "model.safetensors", "student.pt2")
    }


def test_a_published_student_is_pushed_and_loaded_by_its_name(run, tmp_path, monkeypatch, capsys):
    with local_hub() as hub:
        hub.be_the_hub(monkeypatch)
        monkeypatch.setenv("HF_TOKEN", "hf_mine")
        folder = tmp_path / "student"
        main(["export", str(run), "--format", "safetensors", "--output", str(folder), "--push", "me/student"])
        assert f"pushed: {hub.url}/me/student/commit/" in capsys.readouterr().out
        assert hub.tokens == ["Bearer hf_mine"]
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            name.removeprefix("me/student/"): content for name, content in hub.files.items()
        }
        loaded = PublishedStudent.from_pretrained("me/student", cache_dir=tmp_path / "cache")
    assert compare(loaded, fedkd.load_student(run), (1, 8, 8)) == 0


def test_what_cannot_be_pushed_is_a_line_and_stays_in_its_folder(run, tmp_path, monkeypatch):
    with local_hub() as hub:
        hub.be_the_hub(monkeypatch)
    message = rf"^The student is in '{tmp_path}/student', but could not be pushed to 'me/student': \w+: .+"
    with pytest.raises(fedkd.FedKDError, match=message):  # the hub is gone
        export_student(run, "safetensors", tmp_path / "student", push="me/student")
    assert compare(PublishedStudent.from_pretrained(tmp_path / "student"), fedkd.load_student(run), (1, 8, 8)) == 0


def test_the_card_says_what_the_run_was(run, published):
    card = (published.path / "README.md").read_text()
    summary = json.loads((run / "summary.json").read_text())
    for name, value in summary["per_class_accuracy"].items():
        assert f"| {name} | {value:.1%} |" in card
    assert f"| balanced accuracy on the test set | {summary['balanced_accuracy']:.1%} |" in card
    assert "| data | Datasets(train=list of 60, test=list of 30) |" in card
    assert "| teacher | none |" in card
    assert "library_name: fedkd" in card
    assert 'from_pretrained("THIS FOLDER OR REPOSITORY")' in card


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\nlicense: cc-by-4.0\n---\n# A model\n", "cc-by-4.0"),
        ("---\nlicense: [\n---\n", "see its own page"),
        ("# A model\n", "see its own page"),
    ],
)
def test_the_license_of_a_folder_is_that_of_its_card(tmp_path, text, expected):
    (tmp_path / "README.md").write_text(text)
    assert teacher_license(str(tmp_path)) == expected


def test_the_license_is_that_of_the_catalogue():
    assert teacher_license("facebook/dinov2-small") == fedkd.teachers.catalogue.teachers["dinov2-s"].license
    assert name_of(fedkd.teachers.catalogue.teachers["digits-tiny"].checkpoint) == "digits-tiny"
    assert name_of("facebook/dinov2-small") == "facebook/dinov2-small"
    assert teacher_license("digits-tiny") == "Apache-2.0"
    assert teacher_license("someone/something") == "see its own page"


def test_a_damaged_published_student_is_named(published, tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    for path in published.path.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"model\.safetensors"):
        PublishedStudent.from_pretrained(folder)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 3)

    def forward(self, images):
        return self.layer(images.flatten(1))


class DependsOnValues(Own):
    def forward(self, images):
        if images.mean() > 0.5:
            return super().forward(images)
        return -super().forward(images)


def test_a_student_of_ones_own_is_exported(tmp_path):
    fedkd.Federation(1, run_dir=tmp_path, trainer=CPU).fit(module(Own()), datamodule())
    with pytest.raises(fedkd.FedKDError, match="give the module, student="):
        export_student(tmp_path, "torch")
    with pytest.raises(
        fedkd.FedKDError, match=r"It was not made by name: give a module like it, .*--model\.student"
    ) as said:
        export_student(tmp_path, "torch", student=fedkd.students.create("resnet56", 3, 1, 8))
    assert len(str(said.value)) < 700  # torch lists every name
    assert export_student(tmp_path, "safetensors", student=Own()).max_difference < 1e-5
    student = PublishedStudent.from_pretrained(tmp_path / "student_published", student=Own())
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(student(images), fedkd.load_student(tmp_path, Own())(images))
    card = (tmp_path / "student_published" / "README.md").read_text()
    assert 'from_pretrained("THIS FOLDER OR REPOSITORY", student=A_MODULE_LIKE_IT)' in card


def test_what_cannot_be_exported_is_a_line_and_writes_nothing(tmp_path):
    fedkd.Federation(1, run_dir=tmp_path, trainer=CPU).fit(module(DependsOnValues()), datamodule())
    with pytest.raises(fedkd.FedKDError, match="cannot be exported for any batch size") as raised:
        export_student(tmp_path, "torch", student=DependsOnValues())
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "student.pt2").exists()


def test_what_computes_something_else_is_refused():
    student = Own()
    with pytest.raises(fedkd.FedKDError, match="differs from the student: by "):
        compare(lambda images: student(images) + 0.1, student, (1, 8, 8))
    with pytest.raises(fedkd.FedKDError, match="by nan"):
        compare(lambda images: student(images) * float("nan"), student, (1, 8, 8))


def test_a_format_is_one_of_three(tmp_path):
    with pytest.raises(fedkd.FedKDError, match=r"Unknown format 'onxn'\. Did you mean 'onnx'"):
        export_student(tmp_path, "onxn")


@pytest.mark.slow
def test_a_network_of_timm_is_exported(tmp_path):
    pytest.importorskip("timm")
    data = datamodule()
    fedkd.Federation(1, run_dir=tmp_path, trainer=CPU).fit(module("timm/mobilenetv3_small_050"), data)
    for format in ("torch", "onnx", "safetensors"):
        assert export_student(tmp_path, format).max_difference < 1e-3
