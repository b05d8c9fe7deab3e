"""What docs/contributing.md shows does what the page says; that it runs at all is tested with all other pages."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

PAGE = Path(__file__).resolve().parents[1] / "docs" / "contributing.md"


def block(heading: str) -> str:
    """Return the first Python block under a heading."""
    section = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    (found,) = [each for each in section if each.startswith(heading)]
    return re.search(r"```python\n(.*?)```", found, re.DOTALL).group(1)


def test_one_client_is_run_by_hand(capsys):
    names: dict = {}
    exec(block("3. One client by hand"), names)
    update = names["update"]
    assert update.client == 3
    assert update.num_steps > 0
    assert set(update.delta) == set(names["task"].weights.parameters)
    assert capsys.readouterr().out.startswith(f"{update.num_examples} {update.num_steps} ")


def test_a_backend_of_ones_own_gives_the_same_bits(tmp_path):
    from helpers import datamodule, module, same, weights

    import fedkd

    names: dict = {}
    exec(block("4. A backend"), names)

    def fit(backend, name):
        trained = module()
        fedkd.Federation(rounds=1, backend=backend, run_dir=tmp_path / name).fit(trained, datamodule())
        return weights(trained)

    assert same(fit(fedkd.InProcess(), "here"), fit(names["Reversed"](), "reversed"))


def test_a_strategy_with_a_memory_for_each_client_and_a_loss_train(tmp_path, monkeypatch):
    import torch
    from helpers import BrightRowTeacher, datamodule, module

    import fedkd
    from fedkd.runs.directory import RunDirectory

    page = ModuleType("a_module")
    monkeypatch.setitem(sys.modules, "a_module", page)  # where dataclasses look for their names
    page.my_gap = lambda student, teacher: (student - teacher).square().mean()
    exec(block("1. A strategy"), vars(page))
    exec(block("5. A loss"), vars(page))
    trained = module(teacher=BrightRowTeacher(), loss=page.MyLoss())
    federation = fedkd.Federation(rounds=2, strategy=page.Mine(pull=0.5), run_dir=tmp_path / "run")
    summary = federation.fit(trained, datamodule())
    assert summary["strategy"] == "a_module.Mine(pull=0.5)"
    state, _ = RunDirectory(tmp_path / "run", resume=True).load("last", {})
    assert sorted(state.client_states) == [0, 1, 2]
    assert all(torch.isfinite(value).all() for each in state.client_states.values() for value in each.values())
