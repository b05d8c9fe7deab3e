"""``report.html``: what a run's page holds, of finished, stopped and damaged runs."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
import torch
from helpers import BrightRowTeacher, images, module
from pages import Page, write_run

import fedkd
from fedkd.core.errors import MissingResourceError
from fedkd.data import Datasets, FederatedDataModule
from fedkd.partition import Dirichlet
from fedkd.runs.layout import MAX_CONFUSION_CLASSES
from fedkd.runs.record import read_run
from fedkd.runs.report import write_report
from fedkd.server import federation as server

NAMES = ("<script>alert(1)</script>", 'a & "b"', "it's")


def fit(run_dir, rounds=2, ckpt_path=None, trained=None, **arguments):
    """Run a federation of four clients that hold images out, with classes whose names HTML must not read."""
    data = FederatedDataModule(
        Datasets(images(60), images(30, seed=1), NAMES),
        num_clients=4,
        partitioner=Dirichlet(1.0),
        batch_size=10,
        val_fraction=0.3,
    )
    arguments = {"strategy": fedkd.FedAvg(), "trainer": {"accelerator": "cpu"}, **arguments}
    trained = trained or module()
    return fedkd.Federation(rounds=rounds, run_dir=run_dir, **arguments).fit(trained, data, ckpt_path=ckpt_path), data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two rounds with a teacher, in a folder whose name HTML must not read; and its summary."""
    folder = tmp_path_factory.mktemp("report") / "<b>run & 'mine'"
    summary, data = fit(folder, trained=module(teacher=BrightRowTeacher()))
    return folder, summary, data


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the run, to damage."""
    return shutil.copytree(run[0], tmp_path / "run")


def test_a_run_without_a_teacher_shows_the_loss_that_it_had(tmp_path):
    fit(tmp_path / "run", trained=module(loss=fedkd.losses.DKD()))
    assert read_run(tmp_path / "run").settings["loss"] == "cross-entropy"
    assert "DKD" not in (tmp_path / "run" / "report.html").read_text()


def test_a_finished_run_has_its_page(run):
    folder, summary, data = run
    page = Page(folder / "report.html")
    page.check_it_loads_nothing()
    values = [summary[name] for name in ("balanced_accuracy", "accuracy")]
    values += [*summary["per_class_accuracy"].values(), summary["teacher"]["balanced_accuracy"]]
    texts = [f"{value:.1%}" for value in values]
    texts += ["2 rounds, finished", "BrightRowTeacher", "Dirichlet(alpha=1.0, min_examples=0)", "FedAvg()"]
    texts += [summary["versions"]["torch"], f"({summary['bytes_up']:,} bytes)"]
    texts += [f"student = fedkd.load_student({str(folder)!r}, student=MyStudent())", f"run_dir={str(folder)!r}"]
    texts += ["finished rounds", "client 3", f"{sum(map(len, data.shards)):,}"]
    assert [text for text in texts if " ".join(text.split()) not in page.text] == []
    # partition, accuracy, loss, classes, confusion matrix, clients, seconds, megabytes; the other SVGs are of legends
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(labels) == len(set(labels)) == 8


def test_a_list_of_images_is_not_written_down_image_by_image(run):
    data = run[1]["settings"]["data"]
    assert data.startswith("Datasets(train=list of ")
    assert len(data) < 60


def test_names_are_text_and_no_html(run):
    page = Page(run[0] / "report.html")
    assert "script" not in page.tags
    assert "b" in page.tags  # of the tiles
    assert page.tags.count("b") == page.tags.count("span")  # none of the folder's name
    for name in (*NAMES, "<b>run & 'mine'"):
        assert name in page.text


def test_the_confusion_matrix_is_the_final_students_on_the_test_set(run, tmp_path):
    _, summary, _ = run

    def counted(run_dir, data):
        student = fedkd.load_student(run_dir, module().student)
        with torch.no_grad():
            said = student(data.test.images.float() / 255).argmax(dim=1)
        counts = torch.zeros(3, 3, dtype=torch.int64)
        for true, predicted in zip(data.test.targets.tolist(), said.tolist(), strict=True):
            counts[true, predicted] += 1
        return counts.tolist()

    assert summary["confusion"] == counted(run[0], run[2])
    # a run that has no round left tests nothing; that of another checkpoint ends with its student
    first, data = fit(tmp_path / "first", rounds=1)
    again, _ = fit(tmp_path / "first", rounds=1, ckpt_path="last")
    assert first["confusion"] == again["confusion"] == counted(tmp_path / "first", data)
    sampled, data = fit(tmp_path / "sampled", clients_per_round=2)
    assert sampled["confusion"] == counted(tmp_path / "sampled", data)


def test_each_client_has_a_curve(run):
    record = read_run(run[0])
    assert [values[-1] for values in record.clients.values()] == pytest.approx(run[1]["client_val_accuracy"], abs=1e-6)
    assert {len(values) for values in record.clients.values()} == {2}


def test_a_stopped_run_has_a_page_of_its_rounds(copy):
    for name in ("summary.json", "student.safetensors", "report.html"):
        (copy / name).unlink()
    with (copy / "metrics.csv").open("a") as file:
        file.write("2,0.5,0.")  # of a round that was not committed, and only half of it
    page = Page(write_report(copy))
    page.check_it_loads_nothing()
    assert "2 rounds, not finished" in page.text
    assert "FedAvg()" in page.text  # out of the checkpoint
    assert "load_student" not in page.text
    assert 'federation.fit(module, data, ckpt_path="last")' in page.text

    newest = copy / "checkpoints" / "round_000002.ckpt"
    newest.write_bytes(b"damaged")
    page = Page(write_report(copy))
    assert "round_000002.ckpt cannot be read." in page.text
    assert "FedAvg()" in page.text
    shutil.rmtree(copy / "checkpoints")
    (copy / "metrics.csv").write_text("\n".join((copy / "metrics.csv").read_text().splitlines()[:3]) + "\n")
    assert "Its settings are not known" in Page(write_report(copy)).text


def test_a_run_that_went_on_does_not_show_the_results_of_its_earlier_end(copy, run):
    fit(copy, rounds=3, ckpt_path="last", trained=module(teacher=BrightRowTeacher()))
    shutil.copy(run[0] / "summary.json", copy / "summary.json")  # as if it had been stopped after the third round
    page = Page(write_report(copy))
    assert "The run went on after round 2, when summary.json was written." in page.text
    assert "3 rounds, not finished" in page.text
    assert "Confusion matrix" not in page.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", "{", "summary.json' is damaged: "),
        ("summary.json", "[]", "summary.json' is damaged, or was changed: "),
        ("partition.json", "\0", "partition.json' is damaged: "),
        ("metrics.csv", "round\n5\n", "metrics.csv' is damaged in line 2, the row of round 0."),
        ("metrics.csv", "", "metrics.csv' has the rows of 0 rounds; the checkpoint is of round 2."),
    ],
)
def test_a_damaged_file_is_one_line(copy, name, content, message):
    before = (copy / "report.html").read_bytes()
    (copy / name).write_text(content)
    with pytest.raises(fedkd.FedKDError) as raised:
        write_report(copy)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert (copy / "report.html").read_bytes() == before


def test_what_is_no_run_or_has_no_round_is_named(tmp_path):
    with pytest.raises(MissingResourceError, match=r"No run at '.*nowhere'"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(fedkd.FedKDError, match="has no finished round yet"):
        write_report(tmp_path)


def test_a_report_that_fails_takes_nothing_from_the_run(tmp_path, monkeypatch):
    def fail(run_dir):
        assert (run_dir / "summary.json").is_file()
        assert (run_dir / "student.safetensors").is_file()
        raise OSError("no space left")

    monkeypatch.setattr(server, "write_report", fail)
    with pytest.warns(UserWarning, match=r"report.html' was not written: OSError: no space left.*fedkd report "):
        summary, _ = fit(tmp_path / "run", rounds=1)
    written = json.loads((tmp_path / "run" / "summary.json").read_text())
    del written["sha256"]
    assert written == json.loads(json.dumps(summary))


def test_many_classes_and_clients_stay_small(tmp_path):
    count = MAX_CONFUSION_CLASSES + 1
    row = {f"accuracy/class {k}": k / 100 for k in range(count)} | {"balanced_accuracy": 0.5}
    folder = write_run(tmp_path / "run", [row], confusion=None, balanced_accuracy=0.5)
    counts = [[client % 7] * count for client in range(2000)]
    (folder / "partition.json").write_text(
        json.dumps({"counts": counts, "classes": [f"class {k}" for k in range(count)]})
    )
    path = write_report(folder)
    page = Page(path)
    assert f"It is kept for up to {count - 1} classes; this run has {count}." in page.text
    assert "The 20 worst of 101 classes" in page.text
    assert "These are the first 396 of 2,000 clients." in page.text  # 40,000 cells // 101
    assert path.stat().st_size < 2e6


def test_the_summary_has_a_row_of_the_matrix_in_a_line(run):
    lines = (run[0] / "summary.json").read_text().splitlines()
    assert [f"    {json.dumps(row)}" for row in run[1]["confusion"]] == [
        line.rstrip(",") for line in lines[lines.index('  "confusion": [') + 1 :][:3]
    ]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_shows_it_without_errors_and_without_cutting_it_off(run, tmp_path):
    shutil.copy(run[0] / "report.html", tmp_path / "report.html")
    frames = "".join(
        f'<iframe src="report.html" style="width:{width}px;height:800px"></iframe>' for width in (480, 1280)
    )
    script = """<script>
        const beyond = page => page.scrollWidth - page.clientWidth;
        const frames = [...document.querySelectorAll("iframe")];
        onload = () => { document.title = frames.map(f => beyond(f.contentDocument.documentElement)).join(" "); };
    </script>"""
    (tmp_path / "frame.html").write_text(f"<!DOCTYPE html><title>none</title>{frames}{script}")
    command = ["chromium", "--headless", "--no-sandbox", "--allow-file-access-from-files", "--enable-logging=stderr"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "<title>0 0</title>" in done.stdout
    assert "CONSOLE" not in done.stderr
