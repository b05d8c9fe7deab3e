"""What is installed is whole: wheel and source archive hold every file that fedkd reads."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
READ = (
    "fedkd/data/digits/digits.npz",
    "fedkd/data/digits/README.md",  # its source and license
    "fedkd/teachers/checkpoints/digits/model.safetensors",
    "fedkd/py.typed",
    *(f"fedkd/cli/templates/{name}.yaml" for name in ("cifar10", "digits", "folder", "medical")),
)


def test_wheel_and_source_archive_hold_the_files_that_fedkd_reads(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel").WheelBuilder(str(ROOT))
    sdist = pytest.importorskip("hatchling.builders.sdist").SdistBuilder(str(ROOT))
    (built,) = wheel.build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(built) as archive:
        assert set(READ) <= set(archive.namelist())
        assert archive.read(READ[0]) == (ROOT / READ[0]).read_bytes()
        (metadata,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        required = [line for line in archive.read(metadata).decode().splitlines() if line.startswith("Requires-Dist")]
        assert not [line for line in required if "scikit-learn" in line and "extra ==" not in line]
    (packed,) = sdist.build(directory=str(tmp_path))
    with tarfile.open(packed) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert set(READ) | {"docs/contributing.md", "tests/helpers.py", "examples/quickstart.yaml"} <= inside


def test_digits_need_no_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from fedkd.data import Digits

    monkeypatch.setitem(sys.modules, "sklearn", None)  # an import of it now fails
    assert [len(part) for part in Digits().load()] == [1438, 359]
