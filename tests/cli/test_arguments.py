"""What the command line does before the parser: short forms, and configurations that cannot be meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from fedkd.cli.arguments import expand
from fedkd.cli.main import main
from fedkd.core.command_line import put_classes_first
from fedkd.core.errors import FedKDError
from fedkd.runs.layout import run_of


def test_a_configuration_needs_no_option(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("data: {num_clients: 3}")
    given = ["--data.batch_size", "4"]
    assert expand(["fit", str(path), *given]) == ["fit", "--config", str(path), *given]
    assert expand(["partition", str(path)]) == ["partition", "--config", str(path)]
    assert expand(["fit", *given]) == ["fit", *given]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"data:\n  num_clients: 3\nmodel: {}\ndata:\n  batch_size: 2\n", "wrong in line 4: 'data' stands there twice"),
        (b"data:\n  seed: 1\n  seed: 2\n", "wrong in line 3: 'seed' stands there twice"),
        (b"data: [\n", "wrong in line 2: expected"),
        (b"? [1, 2]\n: x\n", "wrong in line 1: found unhashable key"),
        (b"\x7fELF\xff\xfe", "is not text"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    for given in (
        ["fit", str(path)],
        ["fit", "--config", str(path)],
        ["fit", f"--config={path}"],
        ["fit", "-c", str(path)],
    ):
        with pytest.raises(FedKDError, match=message) as found:
            expand(given)
        assert "\n" not in str(found.value)


def test_nothing_in_a_checkpoint_reaches_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """LightningCLI would read the file, and merge what it calls hyper_parameters into the options."""
    path, config = tmp_path / "foreign.ckpt", Path(__file__).parents[2] / "examples" / "quickstart.yaml"
    torch.save({"hyper_parameters": {"no_such_option": 1}, "state_dict": {}}, path)
    given = ["--run_dir", str(tmp_path / "run"), "--ckpt_path", str(path), "--model.teacher", "null"]
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(config), *given])
    assert ended.value.code == 2
    assert "foreign.ckpt' is damaged, or fedkd did not write it" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_keys_of_merged_mappings_may_repeat(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("a: &a {x: 1}\nb: &b {y: 1}\nc:\n  <<: [*a, *b]\n  x: 2\n")
    expand(["fit", str(path)])


QUICKSTART = str(Path(__file__).parents[2] / "examples" / "quickstart.yaml")


def test_the_options_of_a_class_come_after_it() -> None:
    given = ["--data.p.alpha", "1", "--data.num_clients", "3", "--data.p", "Shards", "--data.p.k=2"]
    ordered = ["--data.num_clients", "3", "--data.p", "Shards", "--data.p.alpha", "1", "--data.p.k=2"]
    assert expand(["fit", *given]) == ["fit", *ordered]
    assert expand(["fit", "--data.p=A", "--data.p.x", "1", "--data.p=B"])[1:] == [
        *("--data.p=A", "--data.p=B", "--data.p.x", "1")
    ]
    several = ["--federation.callbacks.patience", "1", "--federation.callbacks+", "SaveBest", "--data", "data.yaml"]
    assert expand(["fit", *several]) == ["fit", *several]  # a section is no class, and a list is added to
    with pytest.raises(FedKDError, match=r"^--data.p.x is dropped by the later --data.p null: leave one out.$"):
        expand(["fit", "--data.p.x=1", "--data.p", "null"])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            ["--data.partitioner.alpha", "0.5", "--data.partitioner", "ClassSpecific"],
            "data.partitioner: Unknown option 'alpha'. Choose one of: classes_per_client. The class is ClassSpecific.",
        ),
        (["--data.partitioner", "ClassSpecific"], None),
        (["--data.partitioner.alpha", "100"], None),
        (["--data.partitioner.min_examples", "5", "--data.partitioner", "Dirichlet"], None),
    ],
)
def test_an_option_of_a_class_that_is_replaced_is_not_dropped(tmp_path, monkeypatch, capsys, given, told) -> None:
    monkeypatch.chdir(tmp_path)
    if told is None:
        main(["partition", QUICKSTART, *given])
        return
    with pytest.raises(SystemExit) as ended:
        main(["partition", QUICKSTART, *given])
    assert (ended.value.code, capsys.readouterr().err) == (2, f"fedkd: error: {told}\n")
    assert not list(tmp_path.iterdir())


def test_files_that_a_user_names_are_not_written_over_but_their_folder_is_made(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for command, option, new, old in (
        (["init"], "--output", "a/b/run.yaml", "mine.yaml"),
        (["partition", QUICKSTART], "--output", "c/d/plot.svg", "mine.png"),
    ):
        (tmp_path / old).touch()
        main([*command, option, new])
        assert (tmp_path / new).stat().st_size
        with pytest.raises(SystemExit) as ended:
            main([*command, option, old])
        assert ended.value.code == 2
        assert f"{old!r} exists and is not written over. Name another, or add --overwrite." in capsys.readouterr().err
        assert not (tmp_path / old).stat().st_size
        main([*command, option, old, "--overwrite"])
        assert (tmp_path / old).stat().st_size


def test_what_is_derived_is_written_again_under_its_own_name(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        main(["partition", QUICKSTART])
    assert {path.name for path in tmp_path.iterdir()} == {"partition_report.png", "partition_report.json"}


def test_options_of_inner_classes_and_a_short_option_keep_their_order():
    given = ["fit", "--data.p.q.x", "1", "--data.p.q", "Q", "--data.p", "P"]
    assert put_classes_first(given) == ["fit", "--data.p", "P", "--data.p.q", "Q", "--data.p.q.x", "1"]
    given = ["fit", "--data.p.x", "-1", "-c", "run.yaml", "--data.p", "B"]
    assert put_classes_first(given) == ["fit", "-c", "run.yaml", "--data.p", "B", "--data.p.x", "-1"]


@pytest.mark.parametrize(("given", "run"), [("clients/a", "clients/a"), ("run/clients/1", "run"), ("run", "run")])
def test_a_run_in_a_folder_of_clients_is_no_client(tmp_path, monkeypatch, given: str, run: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path(given).mkdir(parents=True)
    Path(run, "config.yaml").write_text("model: {student: cnn}\n")
    assert run_of(Path(given)) == Path(run)
    assert run_of(tmp_path / given) == tmp_path / run
    assert expand(["test", given]) == ["test", "--config", "model:\n  student: cnn\n", "--run_dir", given]


@pytest.mark.parametrize(
    "given",
    [
        ["run", "--which", "best"],
        ["--which", "best", "run"],
        ["--which=best", "run"],
        ["--which", "best", "--run_dir", "run"],
        ["--run_dir=run", "--which", "best"],
    ],
)
def test_the_run_directory_may_stand_anywhere(tmp_path, monkeypatch, given: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run/config.yaml").write_text("model: {student: cnn}\n")
    (command, config, _, *rest) = expand(["test", *given])
    assert (command, config, rest[:2]) == ("test", "--config", ["--run_dir", "run"])
    assert rest[2:] in (["--which", "best"], ["--which=best"])


def test_a_run_directory_beside_a_configuration_has_the_data_of_the_latter(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data.yaml").write_text("data: {dataset: Digits}\n")
    given = ["test", "--config", "data.yaml", "--run_dir", "run"]
    assert expand(given) == given


def test_a_flag_may_stand_before_the_run_directory(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run/config.yaml").write_text("model: {student: cnn}\n")
    assert expand(["predict", "--overwrite", "run"])[3:] == ["--run_dir", "run", "--overwrite=true"]
    assert expand(["predict", "--overwrite", "no", "run"])[3:] == ["--run_dir", "run", "--overwrite", "no"]


@pytest.mark.parametrize("given", [["run", "--which", "best"], ["--which", "best", "--run_dir", "run"]])
def test_the_configuration_of_a_missing_run_is_not_made_up(tmp_path, monkeypatch, given: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FedKDError, match=r"No run at 'run': there is no student in it\."):
        expand(["test", *given])


RUN = """
seed_everything: 3
data: {dataset: Digits, num_clients: 2}
model:
  student: cnn
  student_options: {norm: group}
  teacher: {class_path: my_teacher.Mine}
  loss: {class_path: my_loss.Mine}
  optimizer: {class_path: my_optimizer.Mine}
federation: {strategy: my_strategy.Mine}
trainer: {accelerator: cpu, max_epochs: 3, callbacks: [my_callback.Mine], logger: {class_path: my_logger.Mine}}
"""


@pytest.mark.parametrize("command", ["test", "predict", "export"])
def test_inference_needs_none_of_the_classes_that_trained_the_student(tmp_path, capsys, command: str) -> None:
    (tmp_path / "config.yaml").write_text(RUN)
    given = expand([command, str(tmp_path)])
    used = yaml.safe_load(given[2])
    model = {"student": "cnn", "student_options": {"norm": "group"}}
    rest = {} if command == "export" else {"data": {"dataset": "Digits", "num_clients": 2}}
    trainer = {} if command == "export" else {"trainer": {"accelerator": "cpu"}}
    assert used == {"seed_everything": 3, **rest, "model": model, **trainer}
    with pytest.raises(SystemExit):
        main([command, str(tmp_path)])
    assert "the run is not there, or has not finished" in capsys.readouterr().err  # so the parser took it
    (tmp_path / "config.yaml").write_text(RUN.replace("student: cnn", "student: [cnn]"))
    with pytest.raises(SystemExit):
        main([command, str(tmp_path)])
    assert capsys.readouterr().err.startswith("fedkd: error: model.student: ")


@pytest.mark.parametrize("command", ["test", "predict"])
def test_an_argument_that_the_trainer_refuses_is_named(tmp_path, capsys, command: str) -> None:
    (tmp_path / "config.yaml").write_text(RUN)
    for option, value in (("accelerator", "tpu"), ("precision", "17")):
        with pytest.raises(SystemExit):
            main([command, str(tmp_path), f"--trainer.{option}", value])
        error = capsys.readouterr().err
        assert error.startswith(f"fedkd: error: trainer.{option}")
        assert error.count("\n") == 1
