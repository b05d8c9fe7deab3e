"""Grids: what is read, which runs they make, and the errors of wrong ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from fedkd.core.errors import FedKDError, MissingResourceError
from fedkd.study.grid import Run, as_options, read_grid, runs_of, slug, without_replaced

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

GRID = """
names: {RATE: 0.5, FOLDER: here}
config: config.yaml
arguments: {data.batch_size: 8, federation.rounds: 2}
seeds: [0, 3]
partitions:
  even: {data.partitioner: IID}
  Dirichlet 0.1: {data.partitioner: Dirichlet, data.partitioner.alpha: 0.1}
methods:
  FedAvg: {model.teacher: null}
  "KD, T = 2": {model.optimizer.lr: "${RATE}", model.teacher: "${FOLDER}/teacher"}
references:
  one client: {data.num_clients: 1}
"""


@pytest.fixture
def write(tmp_path: Path):
    """Return a function that writes a grid, and its configuration beside it."""
    (tmp_path / "config.yaml").write_text("{}")

    def write(text: str, name: str = "grid.yaml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_every_method_runs_at_every_partition_and_a_reference_once_a_seed(write, tmp_path):
    runs = list(runs_of(read_grid(write(GRID)), tmp_path / "out"))
    assert [(run.seed, run.name) for run in runs] == [
        (seed, name)
        for seed in (0, 3)  # the runs of one seed come before those of the next
        for name in (
            "even, FedAvg",
            "even, KD, T = 2",
            "Dirichlet 0.1, FedAvg",
            "Dirichlet 0.1, KD, T = 2",
            "any partition, one client",
        )
    ]
    assert len({run.folder for run in runs}) == len(runs)
    assert runs[-2].folder == tmp_path / "out" / "dirichlet-0.1" / "kd-t-2" / "seed-3"


def test_options_of_the_method_come_last(write, tmp_path):
    further = ["--data.dataset", "ImageFolder"]
    run = list(runs_of(read_grid(write(GRID)), tmp_path / "out", further))[3]
    assert run.arguments == (
        *("--config", str(tmp_path / "config.yaml")),
        *("--data.batch_size", "8", "--federation.rounds", "2"),
        *further,
        *("--data.partitioner", "Dirichlet", "--data.partitioner.alpha", "0.1"),
        *("--model.optimizer.lr", "0.5", "--model.teacher", "here/teacher"),
        *("--seed_everything", "0"),
    )


def test_set_replaces_a_name_and_its_value_has_its_own_type(write):
    method = read_grid(write(GRID), ["RATE=1.5", "FOLDER=/a=b"])["methods"]["KD, T = 2"]
    assert method == {"model.optimizer.lr": 1.5, "model.teacher": "/a=b/teacher"}


@pytest.mark.parametrize(
    "text", ["/data/a #1", "/data/a: b", "a: [", "2026-01-31", "'quoted'", "${RATE}", "$5", "null island", ""]
)
def test_text_that_set_gives_stays_as_it_is(text, write):
    grid = GRID.replace("{data.num_clients: 1}", '{data.root: "${FOLDER}"}')
    read = read_grid(write(grid), [f"FOLDER={text}"])
    assert read["references"]["one client"] == {"data.root": text}
    assert read["methods"]["KD, T = 2"]["model.teacher"] == f"{text}/teacher"


@pytest.mark.parametrize(
    ("text", "value"), [("null", None), ("true", True), ("3", 3), ("[1, a]", [1, "a"]), ("{a: 1}", {"a": 1})]
)
def test_what_is_no_text_keeps_its_type_where_it_is_the_whole_value(text, value, write):
    for written in ("${RATE}", "$RATE"):
        grid = read_grid(write(GRID.replace("${RATE}", written)), [f"RATE={text}"])
        assert grid["methods"]["KD, T = 2"]["model.optimizer.lr"] == value


def test_two_dollars_are_one(write):
    assert read_grid(write(GRID.replace("${FOLDER}", "$$FOLDER")))["methods"]["KD, T = 2"]["model.teacher"] == (
        "$FOLDER/teacher"
    )


def test_a_grid_replaces_sections_of_its_base_and_merges_arguments(write):
    write(GRID)
    write("base: grid.yaml\nseeds: [7]\narguments: {federation.rounds: 9}\n", "middle.yaml")
    grid = read_grid(write("base: middle.yaml\nmethods: {only: }\n", "last.yaml"))
    assert grid["seeds"] == [7]
    assert grid["methods"] == {"only": {}}
    assert grid["arguments"] == {"data.batch_size": 8, "federation.rounds": 9}
    assert list(grid["partitions"]) == ["even", "Dirichlet 0.1"]


def test_a_name_may_hold_the_whole_path_of_the_configuration(write, tmp_path):
    text = GRID.replace("config: config.yaml", "config: ${CONFIG}").replace(
        "FOLDER: here", "FOLDER: here, CONFIG: none"
    )
    (tmp_path / "elsewhere").mkdir()
    grid = read_grid(write(text, "elsewhere/grid.yaml"), [f"CONFIG={tmp_path / 'config.yaml'}"])
    assert grid["config"] == str(tmp_path / "config.yaml")


@pytest.mark.parametrize("folder", ["elsewhere", "a $folder: #1"])
def test_the_configuration_of_a_base_in_another_folder_is_beside_the_base(folder, write, tmp_path):
    write(GRID)
    (tmp_path / folder).mkdir()
    grid = read_grid(write("base: ../grid.yaml\n", f"{folder}/mine.yaml"))
    assert Path(grid["config"]).samefile(tmp_path / "config.yaml")
    (tmp_path / folder / "own.yaml").write_text("{}")
    grid = read_grid(write("base: ../grid.yaml\nconfig: own.yaml\n", f"{folder}/mine.yaml"))
    assert Path(grid["config"]).samefile(tmp_path / folder / "own.yaml")


def test_values_become_options_that_yaml_reads_back():
    values = {"a": None, "b": True, "c": 0.1, "d": "text", "e": [{"class_path": "SCAFFOLD"}]}
    options = as_options(values)
    assert options[::2] == ["--a", "--b", "--c", "--d", "--e"]
    assert [yaml.safe_load(text) for text in options[1::2]] == list(values.values())


def test_a_folder_keeps_letters_digits_and_points():
    assert slug("Distilled, CE of weight 0.1 (auto)") == "distilled-ce-of-weight-0.1-auto"


def test_a_run_reads_its_state_off_the_disk(tmp_path):
    run = Run("even", "FedAvg", 0, tmp_path, ())
    assert (run.is_begun, run.is_done) == (False, False)
    (tmp_path / "metrics.csv").touch()
    assert (run.is_begun, run.is_done) == (True, False)
    (tmp_path / "summary.json").touch()
    assert (run.is_begun, run.is_done) == (True, True)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: [0, 3]", "seeds: 3", "seeds must be a list of distinct integers >= 0, got 3."),
        ("seeds: [0, 3]", "seeds: [0, -1]", r"got \[0, -1\]."),
        ("seeds: [0, 3]", "seeds: [0, true]", r"got \[0, True\]."),
        ("seeds: [0, 3]", "seeds: [1, 1]", r"got \[1, 1\]."),
        ("seeds: [0, 3]", "", "has no section 'seeds': it needs config, seeds, partitions, methods."),
        ("seeds:", "seed:", "Unknown section of the grid grid.yaml 'seed'. Did you mean 'seeds'?"),
        ("{data.batch_size: 8, federation.rounds: 2}", "[a]", r"arguments must be a mapping, got \['a'\]."),
        ("{data.partitioner: IID}", "IID", "partitions: even must be a mapping, got 'IID'."),
        ("one client:", "fedavg:", "two methods, 'FedAvg' and 'fedavg', have the folder 'fedavg'. Rename one."),
        ("even:", "Any Partition:", "two partitions, 'Any Partition' and 'any partition', have the folder"),
        ("seeds:", "seeds: [5]\nseeds:", "is wrong in line 6: 'seeds' stands there twice."),
        ("FedAvg:", "'?':", r"the method '\?' needs a letter a-z or a digit in its name."),
        ("FedAvg:", "'..':", "needs a letter a-z or a digit in its name."),
        ("${FOLDER}/", "$5/", "'\\$5/teacher' is not valid; write \\${NAME}, or \\$\\$ for a \\$."),
        ("${FOLDER}/", "${FOLDERS}/", "Unknown name in the grid grid.yaml 'FOLDERS'. Did you mean 'FOLDER'?"),
        ("config: config.yaml", "config: other.yaml", r"needs the configuration .*other.yaml': no such file\."),
    ],
)
def test_a_wrong_grid_is_refused(write, old, new, message):
    assert old in GRID
    with pytest.raises(FedKDError, match=message) as refused:
        read_grid(write(GRID.replace(old, new)))
    assert "\n" not in str(refused.value)


def test_a_grid_that_is_no_file_and_one_that_starts_from_itself_are_refused(write, tmp_path):
    with pytest.raises(MissingResourceError, match="There is no grid at"):
        read_grid(tmp_path / "nowhere.yaml")
    write("base: b.yaml", "a.yaml")
    with pytest.raises(FedKDError, match="is its own base, directly or through another grid"):
        read_grid(write("base: a.yaml", "b.yaml"))


def test_a_method_without_a_teacher_takes_no_options_of_the_teacher_that_all_others_have(write, tmp_path):
    teacher = "model.teacher: A, model.teacher.size: 3"
    grid = f"{{config: {EXAMPLES / 'quickstart.yaml'}, arguments: {{{teacher}}}, seeds: [0], partitions: {{p: {{}}}}, "
    grid += "methods: {none: {model.teacher: null}, other: {model.teacher: B, model.teacher.depth: 1}, same: {}}}"
    found = {run.method: " ".join(run.arguments) for run in runs_of(read_grid(write(grid)), tmp_path)}
    assert "--model.teacher A --model.teacher null" in found["none"]
    assert "--model.teacher A --model.teacher B --model.teacher.depth 1" in found["other"]
    assert "--model.teacher A --model.teacher.size 3 --seed" in found["same"]


def test_options_of_a_class_of_the_configuration_go_when_a_method_names_another():
    options = {"model.teacher.size": 3, "data.views": 2}
    for method in ({"model.teacher": None}, {"model.teacher": "B"}):
        assert without_replaced(options, method) == {"data.views": 2}
    assert without_replaced(options, {"model.teacher.size": 4}) == options


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *(("algorithms", 99), ("algorithms_gpu", 297), ("public", 19), ("teachers", 80), ("closed_form", 141)),
        *(
            ("closed_form_60", 63),
            ("closed_form_all", 16),
            ("closed_form_digits", 36),
            ("closed_form_public", 21),
            ("closed_form_body", 14),
            ("closed_form_rates", 56),
        ),
    ],
)
def test_every_grid_of_the_examples_is_one(name, count, tmp_path):
    runs = list(runs_of(read_grid(EXAMPLES / f"compare_{name}.yaml"), tmp_path))
    assert len(runs) == len({run.folder for run in runs}) == count


def test_the_table_of_the_documentation_has_the_number_of_runs_of_each_grid(tmp_path):
    page = (EXAMPLES.parent / "docs" / "reproducing.md").read_text()
    told = re.findall(r"^\| `(compare_\w+\.yaml)` \| (\d+) \|", page, re.MULTILINE)
    assert len(told) == page.count("| `compare_") >= 8
    assert {name: int(count) for name, count in told} == {
        name: len(list(runs_of(read_grid(EXAMPLES / name), tmp_path))) for name, _ in told
    }
