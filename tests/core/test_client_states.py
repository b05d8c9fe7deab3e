"""What is remembered for each client: committed states, and changes over them."""

from __future__ import annotations

import pytest
import torch

from fedkd.core.client_states import ClientStates, ViewedStates


def state(value: float) -> dict[str, torch.Tensor]:
    return {"x": torch.tensor(value)}


def values(states) -> dict[int, float]:
    return {client: float(own["x"]) for client, own in states.items()}


def test_changes_stand_over_what_was_committed_and_an_empty_state_clears():
    before = ClientStates({1: state(1), 2: state(2)})
    after = before.changed({2: {}, 3: state(3)}).changed({3: state(4)})
    assert values(after) == {1: 1, 3: 4}
    assert len(after) == 2
    assert (1 in after, 2 in after, 3 in after, 4 in after) == (True, False, True, False)
    assert after.get(2, "nothing") == "nothing"
    assert values(before) == {1: 1, 2: 2}  # it is never changed itself
    assert before.changed({}) is before


def test_a_change_reads_nothing_that_was_committed():
    class Unreadable(dict):
        def __getitem__(self, key):
            raise AssertionError("read")

        __iter__ = __getitem__

    states = ClientStates(Unreadable()).changed({5: state(5)})
    assert float(states[5]["x"]) == 5
    with pytest.raises(AssertionError, match="read"):
        states[6]


def test_a_view_is_made_of_what_is_read_alone():
    seen = []

    def view(own):
        seen.append(float(own["x"]))
        return {"y": own["x"] + 1}

    viewed = ViewedStates({1: state(1), 2: state(2)}, view)
    assert (list(viewed), len(viewed), 2 in viewed, seen) == ([1, 2], 2, True, [])
    assert float(viewed[2]["y"]) == 3
    assert seen == [2]
