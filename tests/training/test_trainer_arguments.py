"""What a Trainer's arguments become where nothing is given."""

from __future__ import annotations

import pytest
import torch
from helpers import datamodule, module

import fedkd
from fedkd.server.setup import plan_run, run_settings
from fedkd.training.trainer_arguments import with_precision


@pytest.mark.parametrize(
    ("capability", "given", "found"),
    [
        ((9, 0), {}, "bf16-mixed"),
        ((10, 0), {"precision": None}, "bf16-mixed"),
        ((8, 6), {}, None),
        ((9, 0), {"precision": "32-true"}, "32-true"),
        ((9, 0), {"plugins": [object()]}, None),
    ],
)
def test_bfloat16_is_the_default_from_hopper_on(monkeypatch, capability, given, found):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert with_precision(given, torch.device("cuda", 0)).get("precision") == found
    assert with_precision(given, torch.device("cpu")).get("precision") == given.get("precision")


def test_a_run_trains_with_it_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("fedkd.server.setup.with_precision", lambda given, device: {**given, "precision": "bf16-mixed"})
    federation = fedkd.Federation(1, trainer={"accelerator": "cpu"}, run_dir=tmp_path)
    plan = plan_run(federation, module(), datamodule())
    assert "bf16-mixed" in str(run_settings(federation, plan)["trainer"])
    monkeypatch.undo()
    assert "32-true" in str(run_settings(federation, plan_run(federation, module(), datamodule()))["trainer"])
