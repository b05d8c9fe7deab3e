"""What is shown of a run's rounds."""

from __future__ import annotations

import math
import re
from pathlib import Path

from helpers import datamodule, module
from rich.console import Console

import fedkd
from fedkd.server.display import ROWS, RoundsDisplay, round_line, sparkline, worst_class


def row(round: int, accuracy: float = 0.5, **more):
    return {
        "round": round,
        "balanced_accuracy": accuracy,
        "loss": 1.23456,
        "accuracy/cat": 0.25,
        "accuracy/dog": 0.75,
        "accuracy/none": math.nan,
        "cohort": "0 3 7",
        "bytes_up": 3_000_000,
        "bytes_down": 1_500,
        "seconds": 2.0,
        **more,
    }


def test_a_round_is_a_line():
    assert round_line(row(2), 10, Path("runs/version_3")) == (
        "round 3 of 10: balanced accuracy 50.0%, worst class 25.0% (cat), loss 1.235, 3 clients, 3.0 MB up, "
        "1.5 kB down, 2.0 s, runs/version_3"
    )
    assert "validation 40.0%, loss" in round_line(row(2, val_accuracy=0.4), 10, Path("runs/version_3"))


def test_a_class_without_test_images_is_not_the_worst():
    assert worst_class(row(0)) == ("cat", 0.25)
    assert worst_class({"accuracy/none": math.nan})[0] == ""


def test_the_curve_goes_from_the_lowest_value_to_the_highest():
    assert sparkline([0.1, 0.8, math.nan, 0.5]) == "▁█ ▅"
    assert sparkline([0.3, 0.3]) == "▄▄"
    assert sparkline([math.nan]) == " "


def shown(display: RoundsDisplay, width: int = 120) -> str:
    console = Console(force_terminal=True, width=width, color_system=None)
    with console.capture() as capture:
        console.print(display)
    return capture.get()


def test_a_terminal_shows_the_last_rounds_above_the_bar():
    console = Console(force_terminal=True, width=120)
    display = RoundsDisplay(20, [row(i, i / 20) for i in range(10)], Path("runs/version_0"), console)
    display.add(row(10, 0.9))
    lines = shown(display).splitlines()
    rounds = [int(found[1]) for line in lines if (found := re.match(r"\s*(\d+) +\d", line))]
    assert rounds == list(range(11 - ROWS + 1, 12))
    assert "90.0%" in lines[ROWS]
    assert "11/20" in lines[-1]
    assert re.search("balanced accuracy ▁.*█", lines[-2])


def test_a_row_without_validation_among_others_is_shown():
    console = Console(force_terminal=True, width=120)
    display = RoundsDisplay(3, [row(0), row(1, val_accuracy=0.4)], Path("runs/version_0"), console)
    assert "40.0%" in shown(display)


def test_a_notebook_shows_the_last_round_or_a_line_each(tmp_path, monkeypatch, caplog):
    import rich.console

    from fedkd.core import progress
    from fedkd.server import display

    drawn = []

    class Watched(display.Live):
        def refresh(self):
            drawn.append(len(self.get_renderable().history))

    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    monkeypatch.setattr(display, "Live", Watched)
    for found in (object(), None):
        monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name, found=found: found)
        with (
            caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"),
            display.show_rounds(2, [], tmp_path) as rounds,
        ):
            rounds.add(row(0))
            rounds.add(row(1))
        if found:
            assert drawn[-1] == 2
            assert not caplog.records
            drawn.clear()
    assert not drawn
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["round 1 of 2", "round 2 of 2"]


def test_without_a_terminal_each_round_is_logged_once(tmp_path, caplog):
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        fedkd.Federation(2, run_dir=tmp_path, trainer={"accelerator": "cpu"}).fit(module("cnn"), datamodule())
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("round ")]
    assert [line.split(":")[0] for line in lines] == ["round 1 of 2", "round 2 of 2"]
    assert all(str(tmp_path) in line for line in lines)
