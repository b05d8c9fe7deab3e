"""What is written down of any setting, and what any message becomes in bytes."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedkd.core.client_states import ClientStates
from fedkd.core.config import describe, one_line
from fedkd.core.messages import ClientTask, ClientUpdate, LocalRule, ServerState, Weights, from_bytes, to_bytes
from fedkd.core.sealed import is_whole, sealed, with_checksum
from fedkd.strategies.client_side.fedprox import FedProx

words = st.text(max_size=6)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | words
# few values, that look like one another and like what is written down of objects, so that some are equal
alike = st.recursive(
    st.sampled_from([None, "None", True, "True", 1, 1.0, "1", "", math.inf, "inf", "a', 'b", "a", "b"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.lists(inner, max_size=2).map(tuple)
        | st.fixed_dictionaries({"class_path": st.sampled_from(["a.B", "c.B"]), "init_args": inner})
        | st.dictionaries(
            st.sampled_from(["1", 1, "a", "class_path", "code", "function", "of", "values"]), inner, max_size=2
        )
    ),
    max_leaves=3,
)


def meaning(value: Any) -> Any:
    """Return a text that is the same for two settings exactly if they mean the same.

    A tuple means what a list does, a key what its text does, and a number that is not finite what its name does: a
    configuration in a file knows no more.
    """
    if isinstance(value, dict):
        return "{" + ",".join(sorted(f"{meaning(str(key))}:{meaning(item)}" for key, item in value.items())) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(meaning, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(str(value))
    return json.dumps(value)


@settings(max_examples=150)
@given(st.lists(alike | scalars, min_size=10, max_size=20))
def test_settings_are_described_alike_only_if_they_mean_the_same(values):
    found = [json.dumps(describe(value), allow_nan=False, sort_keys=True) for value in values]
    lines = [one_line(value, paths=True) for value in values]
    for i, j in itertools.combinations(range(len(values)), 2):
        same = meaning(values[i]) == meaning(values[j])
        assert (found[i] == found[j]) == same
        assert same or lines[i] != lines[j]
    assert not any("\n" in line for line in lines)


dtypes = st.sampled_from(
    [
        *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.bool),
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    ]
)


@st.composite
def tensors(draw: Any) -> Tensor:
    """Draw a tensor: any dtype, perhaps empty, perhaps a view into a larger one or without strides."""
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    dtype, size = draw(dtypes), math.prod(shape)
    content = torch.tensor(list(draw(st.binary(min_size=16 * size + 16, max_size=16 * size + 16))), dtype=torch.uint8)
    made = content.view(dtype) if dtype != torch.bool else content > 127
    tensor = made[1 : 1 + size].reshape(shape) if draw(st.booleans()) else made[:size].clone().reshape(shape)
    return tensor.transpose(0, -1) if shape and draw(st.booleans()) else tensor


@st.composite
def named(draw: Any) -> dict[str, Tensor]:
    """Draw tensors by name, some of which are the same tensor under two names."""
    found = draw(st.dictionaries(st.text(max_size=8) | st.just("__metadata__"), tensors(), max_size=3))
    if found and draw(st.booleans()):
        found["again"] = next(iter(found.values()))
    return found


plain = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=2).map(tuple)
        | st.dictionaries(words | st.integers(), inner, max_size=3)
    ),
    max_leaves=5,
)
models = st.builds(Weights, named(), named())
counts = st.integers(0, 2**70)
messages = st.one_of(
    models,
    st.builds(ServerState, counts, models, named(), st.dictionaries(counts, named(), max_size=2), counts, counts),
    st.builds(
        ClientTask,
        *(counts, counts, models, named(), named()),
        settings=st.dictionaries(words, plain, max_size=3),
        rule=st.sampled_from([LocalRule(), FedProx(0.1).local_rule(ServerState(0, Weights()), 0)]),
    ),
    st.builds(
        ClientUpdate,
        *(counts, counts, counts, named(), named()),
        metrics=st.dictionaries(words, st.floats(), max_size=2),
        extras=named(),
        client_state=st.none() | named(),
    ),
)


def bits(value: Any) -> Any:
    """Return a value in a form that is equal exactly where type and bits are."""
    if isinstance(value, Tensor):
        flat = value.contiguous().reshape(-1)
        return str(value.dtype), tuple(value.shape), flat.view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return [(bits(key), bits(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value).__name__, [bits(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return type(value), [bits(getattr(value, name)) for name in value.__dataclass_fields__]
    return type(value), repr(value)


@given(messages)
def test_a_message_comes_back_bit_for_bit(message):
    data = sealed(to_bytes(message, {"more": "text"}))
    assert bits(from_bytes(type(message), data)) == bits(message)
    assert sealed(data) == data


@given(st.dictionaries(counts, named(), max_size=4), st.lists(st.dictionaries(counts, named(), max_size=3), max_size=3))
def test_states_are_those_of_a_dictionary_that_is_updated(committed, changes):
    states, expected = ClientStates.of({client: state for client, state in committed.items() if state}), {}
    expected.update(states)
    for change in changes:
        states = states.changed(change)
        expected = {client: state for client, state in {**expected, **change}.items() if state}
    assert set(states) == set(expected)
    assert len(states) == len(expected)
    assert all(states[client] is expected[client] for client in expected)


@given(st.dictionaries(words, plain, max_size=4), st.dictionaries(words, plain, max_size=4))
def test_a_record_has_the_checksum_of_its_content_and_of_no_other(one, other):
    one, other = (json.loads(json.dumps(record)) for record in (one, other))
    written = json.loads(json.dumps(with_checksum(one)))
    assert is_whole(written)
    if json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True):
        assert not is_whole({**other, "sha256": written["sha256"]})
