"""A round leaves nothing behind in memory but its row of metrics."""

from __future__ import annotations

import gc
import itertools
from collections import Counter

import pytest
from helpers import OWN_LOOPS, datamodule, module

import fedkd
from fedkd.runs.directory import RunDirectory

ROUNDS = (8, 18, 28)


@pytest.mark.parametrize("trainer", [{}, OWN_LOOPS], ids=["lean", "lightning"])
def test_rounds_leave_no_objects_behind(tmp_path, monkeypatch, trainer):
    counts, commit = {}, RunDirectory.commit

    def counting(self, state, *rest):
        committed = commit(self, state, *rest)
        if state.round in ROUNDS:
            gc.collect()
            counts[state.round] = Counter(type(thing).__qualname__ for thing in gc.get_objects())
        return committed

    monkeypatch.setattr(RunDirectory, "commit", counting)
    federation = fedkd.Federation(
        rounds=ROUNDS[-1],
        run_dir=tmp_path,
        strategy=fedkd.strategies.SCAFFOLD(),
        trainer={"accelerator": "cpu", **trainer},
    )
    federation.fit(module(), datamodule(count=30))
    grown = []
    for before, after in itertools.pairwise(counts[round] for round in ROUNDS):
        # rich keeps the last thousand of a progress bar, pytest the lines of the log
        for kept in ("ProgressSample", "LogRecord"):
            before[kept] = after[kept]
        grown.append(after - before)
    # less than one a round; what a library keeps once for all comes in one of both stretches
    assert min(each.total() for each in grown) < ROUNDS[1] - ROUNDS[0], grown
