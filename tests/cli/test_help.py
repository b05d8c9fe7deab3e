"""The help of the subcommands: one screen, and each section's options."""

from __future__ import annotations

import re

import pytest
from test_cli import fedkd

from fedkd.cli.help import ABOUT
from fedkd.cli.subcommands import SECTIONS


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


@pytest.mark.parametrize("name", [name for name, sections in SECTIONS.items() if sections])
def test_the_help_is_one_screen(narrow, tmp_path, name):
    lines = fedkd(name, "--help", cwd=tmp_path).stdout.splitlines()
    assert lines[0].startswith(f"usage: fedkd {name} ")
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 120
    named = re.findall(r"^--(\w+)\.\*", "\n".join(lines), re.MULTILINE)
    assert named == [section for section in ABOUT if section in SECTIONS[name]]
    assert "SUPPRESS" not in "\n".join(lines)
    assert "data" not in SECTIONS[name] or "public_fraction (0.0)" in " ".join(" ".join(lines).split())


def test_a_section_is_explained(narrow, tmp_path):
    text = fedkd("fit", "--help", "federation", cwd=tmp_path).stdout
    assert "--federation.rounds (default: 10)\n        Number of rounds in all" in text
    listed = re.search(r"--federation\.backend \(default: InProcess\).*?One of (.*?)\.\n", text, re.DOTALL)
    assert {"InProcess", "ProcessPool", "Stacked"} <= set(re.split(r",\s+", listed[1]))  # other tests define some, too
    assert "--data" not in text
    assert fedkd("fit", "--federation.help", cwd=tmp_path).stdout == text
    options = re.findall(r"^  --(\S+)", text, re.MULTILINE)
    config = fedkd("fit", "--print_config", cwd=tmp_path).stdout
    assert all(re.search(rf"^  {option.partition('.')[2]}:", config, re.MULTILINE) for option in options)


def test_no_list_of_all_networks(narrow, tmp_path):
    text = fedkd("fit", "--help", "model", cwd=tmp_path).stdout
    assert "torch.nn" not in text
    assert len(text.splitlines()) < 60


def test_an_unknown_section_gets_the_nearest(tmp_path):
    done = fedkd("fit", "--help", "federaton", cwd=tmp_path, check=False)
    assert done.stderr == (
        "fedkd: error: Unknown section 'federaton'. Did you mean 'federation'? Choose one of: data, federation, model, "
        "trainer.\n"
    )
    done = fedkd("partition", "--help", "federation", cwd=tmp_path, check=False)
    assert "Unknown section 'federation'" in done.stderr
