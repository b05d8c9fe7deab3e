"""What decides a run's result, and what of a finished run differs from the grid."""

from __future__ import annotations

import json

import pytest

from fedkd.core.errors import FedKDError
from fedkd.study.compare import changed, check_done
from fedkd.study.grid import Run
from fedkd.study.options import ABSENT, difference, options_of, read_options, write_options

CONFIG = """
data: {partitioner: {class_path: Dirichlet, init_args: {alpha: 0.1}}, eval_batch_size: 8}
federation: {rounds: 2, backend: {class_path: ProcessPool, init_args: {workers: 2}}}
trainer: {accelerator: cpu, max_epochs: 1, callbacks: [Timer]}
run_dir: here
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return ["--config", str(path)]


def test_options_are_those_of_the_configuration_and_the_command_line_that_decide_the_result(config):
    assert options_of(config) == {
        "data.partitioner": "Dirichlet",
        "data.partitioner.alpha": 0.1,
        "federation.rounds": 2,
        "trainer.max_epochs": 1,
        "trainer.callbacks": ["Timer"],
    }
    further = [
        "--data.partitioner=IID",
        "--federation.rounds",
        "3",
        "--federation.backend",
        "Stacked",
        "--run_dir",
        "x",
    ]
    options = options_of([*config, *further, "--trainer.logger=true", "--data.dataset", '{"class_path": "Digits"}'])
    assert options == {
        "data.partitioner": "IID",
        "federation.rounds": 3,
        "trainer.max_epochs": 1,
        "trainer.callbacks": ["Timer"],
        "data.dataset": "Digits",
    }


def test_the_order_of_an_option_and_its_class_and_the_form_of_a_number_do_not_count():
    first = options_of(["--data.partitioner.alpha", "0.001", "--data.partitioner", "Dirichlet"])
    assert first == {"data.partitioner": "Dirichlet", "data.partitioner.alpha": 0.001}
    assert options_of(["--data.partitioner", "Dirichlet", "--data.partitioner.alpha", "1e-3"]) == first


@pytest.mark.parametrize(
    ("made", "now", "found"),
    [
        ({"a": 1}, {"a": 1.0}, None),
        ({"a": 1}, {"a": 2}, ("a", 1, 2)),
        ({"a": 1}, {}, ("a", 1, ABSENT)),
        ({}, {"a": None}, ("a", ABSENT, None)),
        ({"a": "/mine/photos"}, {"a": "/yours/photos"}, None),
        ({"a": "photos"}, {"a": "/yours/photos"}, None),
        ({"a": "/usr/bin"}, {"a": "/yours/bin"}, ("a", "/usr/bin", "/yours/bin")),  # which is still there
        ({"a": "fedkd.strategies.FedAvg"}, {"a": "FedAvg"}, None),
        ({"a": "mine.FedAvg"}, {"a": "FedAvg"}, ("a", "mine.FedAvg", "FedAvg")),
        ({"a": "/mine/photos"}, {"a": "/mine/scans"}, ("a", "/mine/photos", "/mine/scans")),
        ({"a": "me/model"}, {"a": "you/model"}, ("a", "me/model", "you/model")),  # of the hub
    ],
)
def test_the_first_difference_is_found(made, now, found):
    assert difference(made, now) == found


def finished(tmp_path, *made: str, rounds: int = 2, stopped: str | None = None, now: list[str]) -> Run:
    """Return a run that was made with options, of a grid that has others now."""
    (tmp_path / "summary.json").write_text(json.dumps({"rounds": rounds, "stopped": stopped}))
    if made:
        write_options(tmp_path, made)
    return Run("even", "FedAvg", 0, tmp_path, tuple(now))


def test_a_run_without_a_record_counts_as_it_is_but_for_its_rounds(tmp_path):
    assert read_options(tmp_path) is None
    assert changed(finished(tmp_path, now=["--federation.rounds", "2", "--model.loss", "DKD"])) is None
    assert changed(finished(tmp_path, now=["--federation.rounds", "3"])) == ("federation.rounds", 2, 3)
    assert changed(finished(tmp_path, now=["--model.loss", "DKD"])) is None  # the default number of rounds


def test_the_rounds_are_those_that_are_done_unless_a_callback_stopped_the_run(tmp_path):
    made, now = ["--federation.rounds", "2"], ["--federation.rounds", "5"]
    assert changed(finished(tmp_path, *made, rounds=5, now=now)) is None
    assert changed(finished(tmp_path, *made, rounds=1, stopped="enough", now=made)) is None
    assert changed(finished(tmp_path, *made, rounds=1, stopped="enough", now=now)) == ("federation.rounds", 2, 5)


def test_a_run_of_another_grid_is_refused(tmp_path):
    run = finished(tmp_path, "--federation.strategy", "FedAvgM", now=["--federation.strategy", "FedAvg"])
    with pytest.raises(FedKDError, match=r"federation.strategy is FedAvgM, not FedAvg\. Give another --out"):
        check_done([run])
    (tmp_path / "options.json").unlink()
    check_done([run])
