"""What a checkpoint's folder may not do, and what cannot be asked of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedkd.core.errors import FedKDError
from fedkd.teachers import FeatureTeacher
from fedkd.teachers.huggingface.hub import find_checkpoint

CODE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import PretrainedConfig, PreTrainedModel
class Config(PretrainedConfig):
    model_type = "own"
class Model(PreTrainedModel):
    config_class = Config
"""


def test_a_checkpoints_own_python_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "code.py").write_text(CODE.format(marker=str(marker)))
    config = {"model_type": "own", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(FedKDError, match="model"):
        FeatureTeacher(str(tmp_path / "model"))
    assert not marker.exists()


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FedKDError, match="revision 'main' is for a hub id"):
        find_checkpoint(str(tmp_path), "main")
