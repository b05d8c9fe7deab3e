"""Messages as Flower's records: the same bits, no pickle, and sizes that are compared before memory is taken."""

from __future__ import annotations

import pickle

import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import Array, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given
from hypothesis import strategies as st

from fedkd.core.errors import FedKDError
from fedkd.core.messages import ClientTask, ClientUpdate, ServerState, Weights, from_parts, to_bytes, to_parts
from fedkd.core.plain_modules import put_together, take_apart
from fedkd.flower.records import (
    DTYPES,
    pack_outcomes,
    pack_work,
    to_array,
    to_tensor,
    unpack_outcomes,
    unpack_work,
)
from fedkd.strategies.client_side.fedprox import FedProx
from fedkd.teachers.heads.ensemble import EnsembleHead
from fedkd.teachers.heads.modules import ClipNorm, LinearClassifier, UnitNorm, ZeroShotHead

STAGE = {"stage": "rounds", "tensors": {"head.weight": torch.arange(6.0).reshape(2, 3)}}


@given(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=4), st.integers(0, 2**31))
def test_a_tensor_keeps_its_bits(name: str, shape: list[int], seed: int):
    generator = torch.Generator().manual_seed(seed)
    size = DTYPES[name].itemsize
    raw = torch.randint(0, 256, (*shape, size), generator=generator, dtype=torch.uint8)
    if name == "bool":
        raw %= 2
    tensor = raw.reshape(-1).view(DTYPES[name]).reshape(shape)
    found = to_tensor(to_array(tensor))
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(found.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_a_tensor_of_another_memory_format_keeps_its_values():
    tensor = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)[:, :, ::2]
    assert torch.equal(to_tensor(to_array(tensor)), tensor)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (Array("float32", (10**12,), "fedkd.raw", b"abcd"), r"has 4000000000000 bytes, got 4"),
        (Array("float32", (-1,), "fedkd.raw", b"abcd"), r"each >= 0"),
        (Array("float32", (1,) * 9, "fedkd.raw", b"abcd"), r"at most 8 sizes"),
        (Array("complex64", (1,), "fedkd.raw", b"a" * 8), r"'complex64'"),
        (Array("float32", (1,), "numpy.ndarray", b"abcd"), r"must be of the type 'fedkd.raw'"),
    ],
)
def test_an_array_that_is_none_is_refused(array: Array, expected: str):
    with pytest.raises(FedKDError, match=expected):
        to_tensor(array)


def through_bytes(record: RecordDict) -> RecordDict:
    return recorddict_from_proto(recorddict_to_proto(record))


def test_tasks_with_the_same_weights_send_them_once():
    weights = Weights({"w": torch.randn(1000)}, {"b": torch.tensor(3)})
    rule = FedProx(proximal_mu=0.5).local_rule(ServerState(0, weights), 0)
    tasks = [ClientTask(3, k, weights, client_state={"c": torch.full((2,), k)}, rule=rule) for k in range(5)]
    record = through_bytes(pack_work(tasks, "a:b", STAGE))
    assert sum(len(array.data) for array in record["tensors"].values()) == 4000 + 8 + 5 * 16 + 24
    found, work, stage = unpack_work(record)
    assert work == "a:b"
    assert [to_bytes(task) for task in found] == [to_bytes(task) for task in tasks]
    assert torch.equal(stage["tensors"]["head.weight"], STAGE["tensors"]["head.weight"])


def test_outcomes_are_updates_or_reasons():
    tasks = [ClientTask(0, k, Weights({"w": torch.zeros(2)})) for k in range(3)]
    update = ClientUpdate(0, 5, 2, {"w": torch.tensor([1.0, 2.0])}, metrics={"loss": 0.5})
    found = unpack_outcomes(through_bytes(pack_outcomes({0: update, 1: "its disk is full"})), tasks)
    assert isinstance(found[0], ClientUpdate)
    assert to_bytes(found[0]) == to_bytes(update)
    assert found[1] == "its disk is full"
    assert found[2] == "its node sent no answer for it"


def test_nothing_is_unpickled(monkeypatch: pytest.MonkeyPatch):
    def no(*_: object) -> None:
        raise AssertionError("pickle")

    for name in ("loads", "load", "dumps", "dump"):
        monkeypatch.setattr(pickle, name, no)
    task = ClientTask(0, 0, Weights({"w": torch.zeros(2)}))
    unpack_work(through_bytes(pack_work([task], "a:b", STAGE)))


class Scaled(torch.nn.Module):
    """Keeps its scale to itself."""

    def __init__(self) -> None:
        super().__init__()
        self._scale = 2.0

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self._scale * features


@pytest.mark.parametrize(
    "head",
    [
        LinearClassifier(torch.randn(4, 3), torch.randn(3), 2.5),
        torch.nn.Sequential(UnitNorm(), ClipNorm(0.5), LinearClassifier(torch.randn(4, 3), torch.randn(3))),
        ZeroShotHead(torch.randn(3, 4), 10.0, -1.0),
        EnsembleHead(
            [LinearClassifier(torch.randn(2, 3), torch.randn(3)), ZeroShotHead(torch.randn(3, 2), 1.0)],
            [2, 2],
            torch.tensor([0.3, 0.7]),
        ),
        torch.nn.Sequential(torch.nn.Linear(4, 3, bias=False), torch.nn.BatchNorm1d(3, affine=False).eval()),
        Scaled(),
        torch.nn.Identity(),
    ],
    ids=lambda head: type(head).__name__,
)
def test_a_head_is_the_same_after_it_was_taken_apart(head: torch.nn.Module):
    import json

    plain, tensors = take_apart(head)
    again = put_together(json.loads(json.dumps(plain)), tensors)
    features = torch.randn(5, 4)
    assert type(again) is type(head)
    assert torch.equal(again(features), head(features))
    assert not list(again.parameters())


def test_a_head_with_something_else_in_it_is_refused_by_name():
    head = torch.nn.Identity()
    vars(head)["table"] = {"a": 1}
    with pytest.raises(FedKDError, match=r"Identity cannot be sent .* 'table' is dict"):
        take_apart(head)


def test_a_module_that_this_machine_does_not_know_is_refused():
    with pytest.raises(FedKDError, match="knows no module of class 'os:system'"):
        put_together({"class": "os:system", "values": {}, "parts": {}}, {})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"num_examples": -1}, "num_examples must be a whole number >= 0, got -1"),
        ({"num_steps": "many"}, "num_steps must be a whole number >= 0, got 'many'"),
        ({"extras": {"e": "no"}}, "extras must be tensors by name"),
        ({"client_state": {"c": 3}}, "client_state must be tensors by name"),
        ({"metrics": {"loss": "a"}}, "metrics must be numbers by name"),
    ],
)
def test_a_field_that_is_not_of_its_kind_is_refused(fields: dict, expected: str):
    header, tensors = to_parts(ClientUpdate(**{"client": 0, **fields}))
    with pytest.raises(FedKDError, match=expected):
        from_parts(ClientUpdate, header, tensors)
