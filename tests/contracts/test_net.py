"""The net: small runs of every part of fedkd learn what they learned before the rebuild, to the bit."""

from __future__ import annotations

import json

import net
import pytest

EXPECTED = json.loads(net.HASHES.read_text())

pytestmark = [
    pytest.mark.skipif(
        net.machine() != EXPECTED["machine"],
        reason="the hashes are of another machine or other packages: compare two checkouts by tests/contracts/net.py",
    ),
    pytest.mark.filterwarnings("ignore"),
]


def test_every_run_has_its_hash():
    assert set(EXPECTED) == {"machine", *net.RUNS}
    assert set(net.RUNS) >= IN_THE_SUITE
    for name, settings in net.RUNS.items():
        if "same_as" in settings:  # resumption is exact
            assert [EXPECTED[name][key] for key in ("student", "accuracy")] == [
                EXPECTED[settings["same_as"]][key] for key in ("student", "accuracy")
            ]


IN_THE_SUITE = {
    "bf16-accumulate-clip",
    "compose",
    "default-strategy",
    "fedadam",
    "fedavg",
    "fedavg-sampled",
    "fedbn",
    "fedmd",
    "head-ridge",
    "lora-dinov2",
    "loss-dkd",
    "loss-feature-mse",
    "loss-kd-auto",
    "moon",
    "scaffold-ii",
    "shared-public",
    "views-consistent-sampled",
    "zero-shot-ridge",
}
"""One run of each part; the others are slow tests: all together take as long as a third of the suite."""


# the quickstart takes as long as twenty others: tests/cli/test_quickstart.py runs it once and checks all of it
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in IN_THE_SUITE else pytest.mark.slow)
        for name in net.RUNS
        if name != "quickstart"
    ],
)
def test_a_run_has_the_bits_that_it_had(name, tmp_path):
    net.federate(net.RUNS[name], tmp_path / "run")
    found = net.outcome(tmp_path / "run")
    assert {key: found[key] for key in ("student", "accuracy")} == {
        key: EXPECTED[name][key] for key in ("student", "accuracy")
    }, f"{found['numbers']}, expected {EXPECTED[name]['numbers']}"
