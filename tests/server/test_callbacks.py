"""Callbacks of a run's rounds: what they see, that they stop and save, and that a resumed run does the same."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import datamodule, images, module, same, weights

import fedkd
from fedkd.data import FederatedDataModule
from fedkd.partition import Given
from fedkd.runs.student_file import read_spec
from fedkd.server.callbacks import ClientTable, EarlyStopping, RoundCallback, SaveBest
from fedkd.server.callbacks.base import RunEvent
from fedkd.strategies import ClosedFormHead, FedMD

CPU = {"accelerator": "cpu"}


def validated(num_clients: int = 3):
    return FederatedDataModule.from_datasets(
        images(90), images(30, seed=1), num_clients=num_clients, batch_size=10, val_fraction=0.3
    )


def fit(run_dir, callbacks, rounds=4, ckpt_path=None, data=None, strategy="auto", **arguments):
    trained = module("cnn")
    run = fedkd.Federation(rounds, callbacks=callbacks, run_dir=run_dir, trainer=CPU, strategy=strategy, **arguments)
    return trained, run.fit(trained, data or validated(), ckpt_path)


class Recorder(RoundCallback):
    def __init__(self):
        self.seen = []

    def on_run_start(self, event):
        self.seen.append(("start", event.state.round, len(event.history)))

    def on_round_end(self, event):
        on_disk = list(csv.DictReader((event.run_dir / "metrics.csv").open()))
        assert len(on_disk) == event.row["round"] + 1 == event.state.round == len(event.history)
        self.seen.append((event.row["round"], event.clients))

    def on_run_end(self, event):
        self.seen.append(("end", event.state.round))


class StopAfter(RoundCallback):
    def __init__(self, rounds: int):
        self.rounds = rounds

    def on_round_end(self, event):
        if event.state.round == self.rounds:
            event.stop("enough")


def rows(*values: float | None):
    numbers = [{} if value is None else {"val_accuracy": value, "loss": -value} for value in values]
    return [{"round": i, **each} for i, each in enumerate(numbers)]


def test_a_callback_sees_each_round_once_it_is_on_disk(tmp_path):
    recorder = Recorder()
    fit(tmp_path, [recorder], rounds=2)
    (start, first, second, end) = recorder.seen
    assert (start, end) == (("start", 0, 0), ("end", 2))
    assert first[0] == 0
    assert list(first[1]) == list(second[1]) == [0, 1, 2]
    numbers = {name for told in second[1].values() for name in told}
    assert numbers == {"num_examples", "num_steps", "seconds", "train/loss", "train/ce", "val_accuracy"} & numbers
    assert {"num_examples", "num_steps", "val_accuracy", "train/loss"} <= numbers
    assert all(isinstance(number, int | float) for told in second[1].values() for number in told.values())
    last = list(csv.DictReader((tmp_path / "metrics.csv").open()))[-1]
    held_out = [
        len(shard) for shard in (lambda data: (data.prepare_data(), data.setup(), data)[2])(validated()).val_shards
    ]
    mean = sum(second[1][client]["val_accuracy"] * count for client, count in enumerate(held_out)) / sum(held_out)
    assert float(last["val_accuracy"]) == pytest.approx(mean, abs=1e-6)


def test_callbacks_change_no_bit(tmp_path):
    watched, _ = fit(tmp_path / "a", [Recorder(), SaveBest(), ClientTable(), EarlyStopping(patience=9)])
    alone, _ = fit(tmp_path / "b", None)
    assert same(weights(watched), weights(alone))


def test_a_stopped_run_is_a_finished_run_that_can_go_on(tmp_path):
    _, summary = fit(tmp_path / "run", [StopAfter(2)])
    assert (summary["rounds"], summary["stopped"]) == (2, "enough")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["stopped"] == "enough"
    assert "A callback ended the run early: enough." in (tmp_path / "run" / "report.html").read_text()
    fit(tmp_path / "short", None, rounds=2)
    assert same(fedkd.load_student(tmp_path / "run").state_dict(), fedkd.load_student(tmp_path / "short").state_dict())
    longer, summary = fit(tmp_path / "run", None, ckpt_path="last")
    whole, _ = fit(tmp_path / "whole", None)
    assert same(weights(longer), weights(whole))
    assert (summary["rounds"], summary["stopped"]) == (4, None)


@pytest.mark.parametrize(
    ("values", "patience", "min_delta", "stops"),
    [
        ((0.1, 0.2, 0.3, 0.4), 1, 0.0, False),
        ((0.4, 0.3), 1, 0.0, True),
        ((0.4, 0.3), 2, 0.0, False),
        ((0.4, 0.4, 0.4), 2, 0.0, True),  # an equal value is no new best
        ((0.40, 0.41, 0.42), 2, 0.05, True),  # each is higher, but not by enough
        ((0.40, 0.43, 0.46), 2, 0.05, False),  # the third beats the first
        ((math.nan, 0.1, 0.2), 2, 0.0, False),
        ((0.1, math.nan, math.nan), 2, 0.0, True),
        ((0.4, None, None, 0.3), 2, 0.0, False),  # a round without a value does not count
        ((None, 0.4, None, 0.3, 0.2), 2, 0.0, True),
        ((None, None, None), 1, 0.0, False),
    ],
)
def test_patience_counts_rounds_since_the_best(tmp_path, values, patience, min_delta, stops):
    for mode, monitor in (("max", "val_accuracy"), ("min", "loss")):
        event = RunEvent(None, rows(*values), 9, tmp_path, lambda name, note: None)
        EarlyStopping(monitor, patience, mode, min_delta).on_round_end(event)
        assert bool(event.reasons) == stops


def test_a_run_that_was_killed_when_it_was_about_to_stop_stops(tmp_path):
    class Killed(RoundCallback):
        def on_round_end(self, event):
            if event.state.round == 2:
                raise KeyboardInterrupt

    # an improvement by 2 is not possible: the first round stays the best
    stopping = EarlyStopping(patience=1, min_delta=2.0)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, [Killed(), stopping])
    _, summary = fit(tmp_path, [stopping], ckpt_path="last")
    assert summary["rounds"] == 2
    assert summary["stopped"].startswith("val_accuracy is no better than ")


@pytest.mark.parametrize(("monitor", "mode"), [("loss", "min"), ("loss", "max"), ("val_accuracy", "max")])
def test_the_best_student_is_that_of_the_best_round(tmp_path, monitor, mode):
    fit(tmp_path / "run", [SaveBest(monitor, mode)], rounds=4)
    values = [float(row[monitor]) for row in csv.DictReader((tmp_path / "run" / "metrics.csv").open())]
    best = values.index(min(values) if mode == "min" else max(values))
    spec = read_spec(tmp_path / "run", "best")
    assert (spec["round"], spec["note"]) == (best, {monitor: values[best]})
    fit(tmp_path / "short", None, rounds=best + 1)
    one, other = fedkd.load_student(tmp_path / "run", which="best"), fedkd.load_student(tmp_path / "short")
    assert same(one.state_dict(), other.state_dict())


def test_rounds_whose_cohort_holds_nothing_out_are_passed_over(tmp_path):
    owners = [0] * 40 + [client for client in range(1, 5) for _ in range(4)]  # a tenth of 4 images is none
    data = FederatedDataModule.from_datasets(
        images(56), images(30, seed=1), num_clients=5, partitioner=Given(owners), val_fraction=0.1
    )

    def go(rounds, ckpt_path=None):
        callbacks = [SaveBest(), EarlyStopping(patience=9)]
        fit(tmp_path, callbacks, rounds, ckpt_path, data, clients_per_round=1)
        return [row["val_accuracy"] for row in csv.DictReader((tmp_path / "metrics.csv").open())]

    found = go(6)
    assert "" in found
    best = max(float(value) for value in found if value)
    assert read_spec(tmp_path, "best")["note"] == {"val_accuracy": best}
    assert go(7, "last")[:6] == found


def test_a_best_student_that_was_not_kept_is_named(tmp_path):
    fit(tmp_path, None, rounds=4)
    losses = [float(row["loss"]) for row in csv.DictReader((tmp_path / "metrics.csv").open())]
    worst = SaveBest("loss", "max" if losses.index(max(losses)) < 3 else "min")
    with pytest.warns(UserWarning, match="is the best so far, and its student was not kept"):
        fit(tmp_path, [worst], rounds=4, ckpt_path="last")


def test_a_note_cannot_spoil_the_student(tmp_path):
    class Saves(RoundCallback):
        def on_round_end(self, event):
            event.save_student("noted", round=99, classes=3, name="x")

    fit(tmp_path, [Saves()], rounds=1)
    spec = read_spec(tmp_path, "noted")
    assert (spec["round"], spec["note"]) == (0, {"round": 99, "classes": 3, "name": "x"})
    fedkd.load_student(tmp_path, which="noted")


def test_the_best_student_is_written_by_the_run_that_goes_on(tmp_path):
    class Killed(RoundCallback):
        def on_round_end(self, event):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, [Killed(), SaveBest("loss", "min")], rounds=1)
    assert not (tmp_path / "best.safetensors").exists()
    fit(tmp_path, [SaveBest("loss", "min")], rounds=1, ckpt_path="last")
    assert read_spec(tmp_path, "best")["round"] == 0


def test_students_that_differ_are_each_saved(tmp_path):
    data = FederatedDataModule.from_datasets(
        images(90), images(30, seed=1), num_clients=2, batch_size=10, public_fraction=0.3
    )
    fit(tmp_path, [SaveBest("loss", "min")], rounds=1, data=data, strategy=FedMD(students=["cnn", "cnn"]))
    for client in (0, 1):
        fedkd.load_student(tmp_path / "clients" / str(client), which="best")


def test_the_client_table_has_each_client_of_each_round(tmp_path):
    fit(tmp_path, [ClientTable()], rounds=2, clients_per_round=2)
    found = list(csv.DictReader((tmp_path / "clients.csv").open()))
    cohorts = [row["cohort"].split() for row in csv.DictReader((tmp_path / "metrics.csv").open())]
    assert [(row["round"], row["client"]) for row in found] == [
        (str(round), client) for round, cohort in enumerate(cohorts) for client in cohort
    ]
    totals = [int(row["num_examples"]) for row in csv.DictReader((tmp_path / "metrics.csv").open())]
    for round, total in enumerate(totals):
        assert sum(int(row["num_examples"]) for row in found if row["round"] == str(round)) == total
    assert all(0 <= float(row["val_accuracy"]) <= 1 and float(row["train/loss"]) > 0 for row in found)


def test_the_client_table_of_a_resumed_run_has_no_row_twice(tmp_path):
    fit(tmp_path, [ClientTable()], rounds=2)
    before = (tmp_path / "clients.csv").read_text()
    (tmp_path / "clients.csv").write_text(before + before.splitlines()[-1].replace("1,", "2,", 1) + "\n")
    fit(tmp_path, [ClientTable()], rounds=3, ckpt_path="last")
    found = list(csv.DictReader((tmp_path / "clients.csv").open()))
    assert [row["round"] for row in found] == ["0"] * 3 + ["1"] * 3 + ["2"] * 3
    assert (tmp_path / "clients.csv").read_text().startswith(before)


def test_a_row_that_was_written_in_part_is_dropped(tmp_path):
    fit(tmp_path, [ClientTable()], rounds=2)
    whole = (tmp_path / "clients.csv").read_text()
    damaged = "x" + "," * whole.splitlines()[0].count(",")  # as many cells as columns
    for part in ("1", "2,0", ",,,", "1,0,5,5,5,5,5,5,5,5,5", damaged):
        (tmp_path / "clients.csv").write_text(whole + part)
        event = SimpleNamespace(run_dir=tmp_path, state=SimpleNamespace(round=2))
        ClientTable().on_run_start(event)
        assert (tmp_path / "clients.csv").read_text() == whole


def test_a_run_that_ends_by_itself_was_not_stopped(tmp_path):
    _, summary = fit(tmp_path, [StopAfter(2)], rounds=2)
    assert (summary["rounds"], summary["stopped"]) == (2, None)


def test_a_new_term_is_a_new_column(tmp_path):
    table = ClientTable()
    for round, name in enumerate(("train/ce", "train/kd")):
        clients = {0: {"num_examples": 5, "num_steps": 1, "seconds": 0.1, name: 0.5}}
        table.on_round_end(SimpleNamespace(run_dir=tmp_path, row={"round": round}, clients=clients))
    first, second = csv.DictReader((tmp_path / "clients.csv").open())
    assert (first["train/ce"], first["train/kd"]) == ("0.5", "")
    assert (second["train/ce"], second["train/kd"]) == ("", "0.5")


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([EarlyStopping], r"got EarlyStopping; make it: EarlyStopping\(\)"),
        ([torch.nn.Identity()], "got Identity; callbacks of the clients' Trainers belong in trainer"),
        (3, "got int"),
    ],
)
def test_what_is_no_callback_is_refused(callbacks, message):
    with pytest.raises(fedkd.FedKDError, match=message):
        fedkd.Federation(callbacks=callbacks)


def test_a_monitor_must_be_a_column(tmp_path):
    with pytest.raises(fedkd.FedKDError, match=r"set data\.val_fraction"):
        fit(tmp_path / "a", [SaveBest()], data=datamodule())
    assert not (tmp_path / "a" / "metrics.csv").exists()
    wrong = {"balanced_acuracy": "'balanced_accuracy'", "val_acc": "'val_accuracy'", "cohort": "", "epsilon": ""}
    for name, meant in wrong.items():
        for callback in (EarlyStopping(name), SaveBest(name)):
            with pytest.raises(fedkd.FedKDError, match=f"Unknown monitor '{name}'.*{meant}"):
                fit(tmp_path / name, [callback])
            with pytest.raises(fedkd.FedKDError, match=f"Unknown monitor '{name}'"):
                fedkd.Federation(callbacks=[callback], trainer=CPU).check(module("cnn"), validated())
        assert not (tmp_path / name).exists()
    for wrong in ({"mode": "maximum"}, {"patience": 0}, {"min_delta": -1.0}):
        with pytest.raises(fedkd.FedKDError, match=f"{next(iter(wrong))}"):
            EarlyStopping(**wrong)


def test_a_name_of_a_student_is_a_plain_file_name(tmp_path):
    class Saves(RoundCallback):
        def on_round_end(self, event):
            for wrong in ("../other", "student", "last", ""):
                with pytest.raises(fedkd.FedKDError, match="plain file name"):
                    event.save_student(wrong)
            event.save_student("first", because="it is")

    fit(tmp_path, [Saves()], rounds=1)
    assert read_spec(tmp_path, "first")["note"] == {"because": "it is"}
    assert {path.name for path in Path(tmp_path).glob("*.safetensors")} == {"first.safetensors", "student.safetensors"}
    with pytest.raises(fedkd.MissingResourceError, match=r"'frist'.*Did you mean 'first'"):
        fedkd.load_student(tmp_path, which="frist")


def test_a_head_that_is_not_solved_is_named_when_a_run_stops(tmp_path):
    with pytest.warns(UserWarning, match=r"every=None.*has work to do in a run's last round"):
        fit(tmp_path, [StopAfter(1)], strategy=ClosedFormHead(every=None))
