"""The site: its reference of the command line is that of the parsers, and MkDocs builds it without a warning."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from documents import ROOT

from fedkd.cli.commands import parsers
from fedkd.cli.help import ABOUT, options_of
from fedkd.cli.subcommands import SUBCOMMANDS

HOOK = ROOT / "docs/hooks/command_line.py"


def hook():
    """Return the module that writes the reference."""
    spec = importlib.util.spec_from_file_location("command_line", HOOK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_subcommand_and_every_option() -> None:
    module = hook()
    page = (ROOT / "docs/cli.md").read_text()
    assert page.count(module.PLACE) == 1
    text = module.on_page_markdown(page)
    assert module.PLACE not in text
    assert re.findall(r"^## fedkd (\w+)$", text, re.MULTILINE) == list(SUBCOMMANDS)
    fit = parsers(["fit"])["fit"]
    for section in ABOUT:
        names = [name for name, _ in options_of(fit, section)]
        assert [name for name in names if f"| `--{name}` |" not in text] == []
    assert "`Dirichlet`" in text
    assert "| `--jobs` | `1` | runs at a time (default: 1) |" in text
    for line in text.splitlines():  # no cell breaks its table
        if line.startswith("| `--"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 4, line
    assert module.on_page_markdown("another page") == "another page"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_mkdocs_builds_it_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="needs pip install '.[docs]'")
    pytest.importorskip("mkdocstrings_handlers.python", reason="needs pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {page.relative_to(tmp_path / "site").as_posix() for page in (tmp_path / "site").rglob("*.html")}
    assert {"index.html", "getting_started/index.html", "faq/index.html", "api/strategies/index.html"} <= pages
    assert (tmp_path / "site/notebooks/tour.ipynb").is_file()
    assert not (tmp_path / "site/hooks").exists()
    assert "--federation.rounds" in (tmp_path / "site/cli/index.html").read_text()
    assert 'id="fedkd.strategies.SCAFFOLD"' in (tmp_path / "site/api/strategies/index.html").read_text()
    for page in (tmp_path / "site/api").rglob("index.html"):
        assert page.stat().st_size < 500_000, page  # one page of everything had 3 MB
