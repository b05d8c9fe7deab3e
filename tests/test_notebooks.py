"""The notebooks run as they stand there, and what they show in the end is worth showing.

The cells are executed in this process. A kernel would bring a second process, which imports torch again, and
twenty more packages; the notebooks use nothing of IPython but that it shows a cell's last expression, which the test
does too.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from documents import ROOT

NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


def cells(path: Path) -> list[dict[str, Any]]:
    """Return the cells of a notebook."""
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def run(path: Path, names: dict[str, Any]) -> list[str]:
    """Execute the code cells of a notebook in a namespace; return what each last expression is shown as."""
    shown = []
    for cell in cells(path):
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]), f"{path.name}:{cell['id']}")
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"{path.name}:{cell['id']}", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), f"{path.name}:{cell['id']}", "eval"), names)
            html = getattr(value, "_repr_html_", lambda: None)()
            shown.append(html or repr(value))
    return shown


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return a module to execute cells in, in a folder of its own."""
    module = ModuleType("a_notebook")
    monkeypatch.setitem(sys.modules, "a_notebook", module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    return module


def test_the_tour(page: ModuleType) -> None:
    import matplotlib.pyplot as plt

    shown = run(ROOT / "docs/notebooks/tour.ipynb", vars(page))
    plt.close("all")
    assert any("balanced accuracy" in each for each in shown)
    assert page.summary["balanced_accuracy"] > 0.9
    assert sum(page.predicted == page.data.test.targets[:8]) >= 6
    assert Path(page.summary["run_dir"], "report.html").is_file()
    assert Path("runs/comparison.html").is_file()


@pytest.mark.slow
def test_a_teacher_of_ones_own(page: ModuleType) -> None:
    run(ROOT / "docs/notebooks/your_teacher.ipynb", vars(page))
    assert page.summary["teacher"]["balanced_accuracy"] > 0.95
    assert page.summary["balanced_accuracy"] > 0.8
    assert page.report.balanced_accuracy < page.summary["teacher"]["balanced_accuracy"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_outputs_are_stripped(path: Path) -> None:
    for cell in cells(path):
        assert cell["id"]
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
