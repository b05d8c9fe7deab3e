"""SuperNodes that are late, leave, are slow, answer wrongly or run something else."""

from __future__ import annotations

import functools
import json
import threading
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from flwr.app import Error, Message

import fedkd
from fedkd.core.errors import FedKDError
from fedkd.flower import apps
from fedkd.flower.backend import HELLO, WORK
from fedkd.flower.records import pack, unpack
from flower.app import app, fit, nodes, on_grid

PLAIN = "--model.teacher null --federation.strategy FedAvg --data.public_fraction 0"


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


def training(message: Message) -> bool:
    """Whether a message tells clients to train."""
    if message.metadata.message_type != WORK:
        return False
    return json.loads(unpack(message.content)[0])["work"] == "fedkd.client.works:train"


@pytest.mark.slow
def test_a_node_that_comes_late_is_waited_for(tmp_path: Path):
    run, grid = on_grid(app(tmp_path, PLAIN), nodes(1, of := 2), None, {"start-timeout": 30})
    timer = threading.Timer(0.5, lambda: grid.nodes.update(nodes(of)))
    timer.start()
    assert len(fit(run, tmp_path / "run")["per_class_accuracy"]) == 10


@pytest.mark.slow
def test_a_node_that_does_not_come_is_named(tmp_path: Path):
    run, _ = on_grid(app(tmp_path, PLAIN), nodes(1, 2), None, {"start-timeout": 0.3})
    with pytest.raises(FedKDError, match=r"1 SuperNode\(s\) are there, and none has client\(s\) 1, 3 of 4"):
        fit(run, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("comes_back", [slow(True), False])
def test_a_node_that_leaves(tmp_path: Path, comes_back: bool):
    def leaves(message: Message, answer: Message) -> Message | None:
        if training(message) and message.metadata.dst_node_id == 101 and message.metadata.group_id == "1":
            del grid.nodes[101]
            if comes_back:  # under another number, as a SuperNode without authentication does
                grid.nodes[201] = {"partition-id": 1, "num-partitions": 4}
            return None
        return answer

    arguments = f"{PLAIN} --federation.rounds 3 --federation.min_clients 2"
    run, grid = on_grid(app(tmp_path, arguments), nodes(4), leaves, {"client-timeout": 10 if comes_back else 2})
    if comes_back:
        fit(run, tmp_path / "run")
        assert not (tmp_path / "run" / "failures.csv").exists()
    else:
        with pytest.warns(UserWarning, match="Client 1, round 1 failed: its SuperNode was not there"):
            fit(run, tmp_path / "run")
        failed = (tmp_path / "run" / "failures.csv").read_text().splitlines()[1:]
        assert [row.split(",")[:2] for row in failed] == [["1", "1"], ["2", "1"]]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda answer: Message(Error(1, "its disk\nis full"), reply_to=answer), "its disk is full"),
        (lambda answer: Message(pack('[{"client": 9}]', []), reply_to=answer), "no answer to the task"),
        slow(lambda answer: Message(pack("[]", []), reply_to=answer), "sent no answer"),
        slow(lambda answer: Message(pack("no JSON", []), reply_to=answer), "no answer to the task"),
    ],
    ids=["an error", "another client", "nothing", "no JSON"],
)
def test_a_wrong_answer_is_a_client_that_failed(tmp_path: Path, wrong, reason: str):
    def at_node_101(message: Message, answer: Message) -> Message:
        if training(message) and message.metadata.dst_node_id == 101:
            changed = wrong(message)
            changed.metadata.__dict__["_reply_to_message_id"] = answer.metadata.reply_to_message_id
            return changed
        return answer

    arguments = f"{PLAIN} --federation.rounds 1 --federation.min_clients 2"
    run, _ = on_grid(app(tmp_path, arguments), nodes(4), at_node_101)
    with pytest.warns(UserWarning, match="Client 1, round 0 failed"):
        fit(run, tmp_path / "run")
    assert reason in (tmp_path / "run" / "failures.csv").read_text()


def test_an_update_of_other_shapes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import dataclasses

    pack_outcomes = apps.pack_outcomes

    def cut(outcomes):
        first = min(outcomes)
        delta = {name: value[..., :1] for name, value in outcomes[first].delta.items()}
        return pack_outcomes({**outcomes, first: dataclasses.replace(outcomes[first], delta=delta)})

    monkeypatch.setattr(apps, "pack_outcomes", cut)
    run, _ = on_grid(app(tmp_path, PLAIN), nodes(2))
    with pytest.raises(FedKDError, match=r"Client [01], round 0: the delta .* of its update is .* in what"):
        fit(run, tmp_path / "run")


@pytest.mark.slow
def test_a_node_that_was_started_again_takes_over(tmp_path: Path):
    working: list[int] = []

    def seen(message: Message, answer: Message) -> Message:
        working.extend([message.metadata.dst_node_id] * training(message))
        return answer

    again = {200: {"partition-id": 1, "num-partitions": 2}}  # node 101, which Flower still counts
    run, _ = on_grid(app(tmp_path, f"{PLAIN} --federation.rounds 1"), {**nodes(2), **again}, seen)
    fit(run, tmp_path / "run")
    assert working == [100, 200]


@pytest.mark.slow
def test_a_node_that_never_says_who_it_is_holds_nobody_up(tmp_path: Path):
    def silent(message: Message, answer: Message) -> Message | None:
        return None if message.metadata.dst_node_id == 300 else answer

    there = {**nodes(2), 300: {"partition-id": 0, "num-partitions": 2}}
    run, grid = on_grid(app(tmp_path, f"{PLAIN} --federation.rounds 1"), there, silent, {"client-timeout": 1000.0})
    fit(run, tmp_path / "run")
    assert 300 in grid.nodes


@pytest.mark.slow
def test_a_node_whose_hello_was_lost_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from fedkd.flower import backend

    monkeypatch.setattr(backend, "HELLO_SECONDS", 0.2)
    lost: list[Message] = []

    def forgets(message: Message, answer: Message) -> Message | None:
        if message.metadata.message_type == HELLO and message.metadata.dst_node_id == 101 and not lost:
            lost.append(answer)
            return None
        return answer

    run, _ = on_grid(app(tmp_path, f"{PLAIN} --federation.rounds 1"), nodes(2), forgets, {"start-timeout": 100})
    assert len(fit(run, tmp_path / "run")["per_class_accuracy"]) == 10
    assert lost


def test_an_update_that_counts_more_images_than_its_client_has_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import dataclasses

    pack_outcomes = apps.pack_outcomes

    def weighty(outcomes):
        first = min(outcomes)
        return pack_outcomes({**outcomes, first: dataclasses.replace(outcomes[first], num_examples=10**6)})

    monkeypatch.setattr(apps, "pack_outcomes", weighty)
    run, _ = on_grid(app(tmp_path, f"{PLAIN} --federation.rounds 1 --federation.min_clients 2"), nodes(2))
    with pytest.warns(UserWarning, match="Client 0, round 0 failed: its update counts 1000000 images, and it said"):
        fit(run, tmp_path / "run")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "partition-id must be a whole number >= 0, got None"),
        ({"partition-id": 2, "num-partitions": 2}, "partition-id 2 must be less than num-partitions, 2"),
        ({"partition-id": 0, "num-partitions": 1, "data-root": "x"}, "no data-root, since own-data is false"),
    ],
)
def test_a_node_that_is_configured_wrongly_says_so(tmp_path: Path, config: dict, expected: str):
    run, _ = on_grid(app(tmp_path, PLAIN), {100: config})
    with pytest.raises(FedKDError, match=expected):
        fit(run, tmp_path / "run")


@pytest.mark.slow
def test_a_node_with_another_version_or_another_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(apps, "__version__", "0.0.1")
    run, _ = on_grid(app(tmp_path, PLAIN), nodes(2))
    with pytest.raises(FedKDError, match=f"fedkd 0.0.1 is installed here, and {fedkd.__version__} at the server"):
        fit(run, tmp_path / "run")
    monkeypatch.undo()
    run, grid = on_grid(app(tmp_path, PLAIN), nodes(2))
    grid.config["arguments"] += " --model.optimizer.lr 0.5"
    with pytest.raises(FedKDError, match=r"cannot take part: optimizer is .*0\.5.* here, and .* at the server"):
        fit(run, tmp_path / "run")


@pytest.mark.slow
def test_a_node_that_comes_later_and_runs_something_else_is_left_out(tmp_path: Path):
    def other(message: Message, answer: Message) -> Message:
        if message.metadata.message_type == HELLO and message.metadata.dst_node_id == 300:
            told = Message(pack(json.dumps({"error": "no teacher"}), []), reply_to=message)
            told.metadata.__dict__["_reply_to_message_id"] = answer.metadata.reply_to_message_id
            told.metadata.__dict__["_src_node_id"] = 300
            return told
        if training(message) and message.metadata.dst_node_id == 100:
            grid.nodes[300] = {"partition-id": 0, "num-partitions": 2}
        return answer

    arguments = f"{PLAIN} --federation.rounds 2 --federation.min_clients 1"
    run, grid = on_grid(app(tmp_path, arguments), nodes(2), other, {"client-timeout": 2})
    with pytest.warns(UserWarning, match="SuperNode 300: it cannot take part: no teacher It is left out"):
        fit(run, tmp_path / "run")


@pytest.mark.slow
def test_a_server_that_was_stopped_goes_on_with_the_same_bits(tmp_path: Path):
    from helpers import same
    from safetensors.torch import load_file

    arguments = "--model.teacher null --federation.strategy SCAFFOLD --data.public_fraction 0 --federation.rounds 3"
    whole, _ = on_grid(app(tmp_path, arguments), nodes(2))
    fit(whole, tmp_path / "whole")

    def gone(message: Message, answer: Message) -> Message:
        if training(message) and message.metadata.group_id == "2":
            raise KeyboardInterrupt
        return answer

    stopped, _ = on_grid(app(tmp_path, arguments), nodes(2), gone)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, tmp_path / "stopped")
    again, _ = on_grid(app(tmp_path, arguments), nodes(2))
    fit(again, tmp_path / "stopped", ckpt_path="last")
    found, expected = (load_file(tmp_path / name / "student.safetensors") for name in ("stopped", "whole"))
    assert same(found, expected)
