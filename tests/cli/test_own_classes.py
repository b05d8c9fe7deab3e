"""A class of the user's own that cannot be had: one line says why."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from test_cli import QUICK, fedkd

from fedkd.cli.main import main
from fedkd.core.errors import FedKDError

MODULES = {
    "own_broken": "import no_such_library",
    "own_typo": "class HalfWay(",
    "own_zero": "1 / 0",
    "own_fine": """
import fedkd
from lightning.pytorch import Callback
class HalfWay(fedkd.FedAvg): pass
class Strict(fedkd.FedAvg):
    def __init__(self) -> None: raise KeyError("x")
class Half(fedkd.losses.KD): pass
class Watch(Callback): pass
class Files(fedkd.data.ImageSource): pass
""",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a folder with the modules; they are gone after the test."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name, code in MODULES.items():
        (tmp_path / f"{name}.py").write_text(code)
    importlib.invalidate_caches()
    yield tmp_path
    for name in MODULES:
        sys.modules.pop(name, None)


def test_the_reason_is_in_the_line(folder: Path) -> None:
    for option, value, message in [
        ("federation.strategy", "own_broken.HalfWay", "cannot be imported: No module named 'no_such_library'."),
        ("federation.strategy", "own_typo.HalfWay", "SyntaxError: '(' was never closed (own_typo.py, line 1)"),
        ("federation.strategy", "own_zero.HalfWay", "ZeroDivisionError: division by zero"),
        ("federation.strategy", "own_fine.Strict", "KeyError: 'x'"),
        (
            "federation.strategy",
            "own_fine.HalfWy",
            "own_fine: Unknown class 'HalfWy'. Did you mean 'HalfWay'? Choose one of: HalfWay, Strict.",
        ),
        ("model.loss", "own_fine.Hal", "own_fine: Unknown class 'Hal'. Did you mean 'Half'? Choose one of: Half."),
        ("trainer.callbacks", "[own_fine.Wach]", "own_fine: Unknown class 'Wach'. Did you mean 'Watch'?"),
        ("model.teacher", "own_fine.Teach", "own_fine: Unknown class 'Teach'."),
        ("model.teacher", "own_zero.Teach", "cannot be imported: ZeroDivisionError: division by zero."),
        ("model.teacher", "own_fine.HalfWay", "own_fine.HalfWay is no Teacher."),
        ("model.student", "own_fine.Net", "own_fine: Unknown class 'Net'."),
        ("data.dataset", "own_fine.Files", "own_fine.Files is abstract: it needs load."),
    ]:
        done = fedkd("fit", *QUICK, "--run_dir", "run", f"--{option}", value, cwd=folder, check=False)
        assert done.returncode == 2, done
        assert done.stderr.startswith(f"fedkd: error: {option}: "), done.stderr
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


def test_debug_shows_the_cause(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(FedKDError) as raised:
        main(["fit", *QUICK, "--federation.strategy", "own_broken.HalfWay", "--debug"])
    error: BaseException | None = raised.value
    while error is not None and not isinstance(error, ModuleNotFoundError):
        error = error.__cause__
    assert error is not None
