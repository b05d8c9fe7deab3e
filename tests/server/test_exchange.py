"""What an exchange asks of the updates that it hands on."""

from __future__ import annotations

import pytest
import torch

from fedkd.core.errors import FedKDError
from fedkd.core.messages import ClientTask, ClientUpdate, Weights
from fedkd.server.backends import ClientError
from fedkd.server.backends.base import Workers
from fedkd.server.exchange import Exchange

SENT = Weights({"w": torch.zeros(2), "u": torch.zeros(1)}, {"b": torch.tensor(0)})
RIGHT = {"delta": {"w": torch.zeros(2), "u": torch.zeros(1)}, "buffers": {"b": torch.tensor(1)}}
SUMS = {"extras": {"sums": torch.zeros(3)}}


class Answers(Workers):
    """Answer with given updates."""

    def __init__(self, updates: list[ClientUpdate]) -> None:
        self.updates = updates

    def map(self, work, tasks):
        return iter(self.updates)


def work(site, task):
    raise AssertionError("it is not called")


def exchange(*fields: dict, min_updates: int | None = None, weights: Weights = SENT):
    updates = [ClientUpdate(client, num_examples=3, **each) for client, each in enumerate(fields)]
    made = Exchange(Answers(updates))
    return made, made(work, [ClientTask(0, client, weights) for client in range(len(fields))], min_updates)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"delta": {**RIGHT["delta"], "w": torch.zeros(3)}}, r"delta 'w' of its update is \(3,\), and \(2,\) in what"),
        ({"delta": {**RIGHT["delta"], "v": torch.zeros(3)}}, r"delta 'v' of its update is \(3,\), and missing in what"),
        ({"delta": {"u": torch.zeros(1)}}, r"delta 'w' of its update is missing, and \(2,\) in what it was sent"),
        ({"delta": {"w": torch.ones(2, dtype=torch.bool)}}, "delta of its update must be floating point"),
        ({"buffers": {"c": torch.tensor(1)}}, r"buffers 'b' of its update is missing, and \(\) in what it was sent"),
        (
            {"extras": {"sums": torch.zeros(2)}},
            r"extras 'sums' of its update is \(2,\), and \(3,\) in that of client 0",
        ),
        ({"extras": {}}, r"extras 'sums' of its update is missing, and \(3,\) in that of client 0"),
    ],
)
def test_an_update_that_does_not_answer_its_task_is_a_client_that_failed(change: dict, expected: str):
    right = {**RIGHT, **SUMS}
    with pytest.raises(ClientError, match=f"Client 1, round 0: the {expected}"):
        exchange(right, {**right, **change})
    made, updates = exchange(right, {**right, **change}, min_updates=1)
    assert [update.client for update in updates] == [0]
    assert [failure.client for failure in made.failures] == [1]


def test_a_client_that_failed_is_no_measure_for_the_others():
    odd = {"delta": {"u": torch.zeros(1)}, "buffers": RIGHT["buffers"], "extras": {"others": torch.zeros(1)}}
    made, updates = exchange(odd, {**RIGHT, **SUMS}, {**RIGHT, **SUMS}, min_updates=1)
    assert [update.client for update in updates] == [1, 2]
    assert [failure.client for failure in made.failures] == [0]


def test_a_work_that_changes_no_weights_and_a_client_with_its_own_student_are_right():
    assert len(exchange(SUMS, SUMS)[1]) == 2
    assert len(exchange(RIGHT, RIGHT, weights=Weights({}))[1]) == 2


def test_what_is_to_be_remembered_must_be_finite():
    damaged = {**RIGHT, "client_state": {"c": torch.tensor(float("nan"))}}
    with pytest.raises(FedKDError, match=r"client\(s\) \[1\] sent from 'work' is infinite or NaN"):
        exchange(RIGHT, damaged)
    made, _ = exchange(RIGHT, damaged, min_updates=1)
    assert [failure.reason for failure in made.failures] == ["what it sent is infinite or NaN"]
