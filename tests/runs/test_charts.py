"""Charts: where a value is drawn, and what has none."""

from __future__ import annotations

import re

import pytest

from fedkd.core.units import format_bytes, format_seconds
from fedkd.runs.report.charts import Series, bars, curves, nice_ticks
from fedkd.runs.report.heat_map import HeatMap


def test_ticks_are_round_numbers_around_the_values():
    assert nice_ticks(0, 1, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert nice_ticks(0.913, 0.957, 5) == pytest.approx([0.91, 0.92, 0.93, 0.94, 0.95, 0.96])
    assert nice_ticks(3, 3, 5)[0] < 3 < nice_ticks(3, 3, 5)[-1]
    assert nice_ticks(0, 0, 5)[0] < 0 < nice_ticks(0, 0, 5)[-1]


def paths(svg):
    return re.findall(r'<path d="([^"]*)"', svg)


def test_a_curve_goes_through_its_values_and_stops_at_a_gap():
    # from 0% at the bottom, 270 - 40, to 100% at the top, 10; left of it are 14 and 7 for each letter of "100%"
    assert paths(curves("", [Series("a", [0.0, 1.0])])) == ["M42 230L548 10"]
    assert paths(curves("", [Series("a", [0.0, None, 1.0, 1.0])])) == ["M42 230h0.1M379.33 10L548 10"]
    assert paths(curves("", [Series("a", [0.0, None, 1.0], bridges=True)])) == ["M42 230L548 10"]
    assert curves("", [Series("a", [None, None])]) == ""
    assert curves("", []) == ""


def test_rounds_are_named_from_one_on():
    named = re.findall(r'class="soft">(\d+)</text>', curves("", [Series("a", [i / 40 for i in range(41)])]))
    assert named == ["1", "5", "10", "15", "20", "25", "30", "35", "40"]


def test_a_bar_is_as_long_as_its_share():
    drawn = bars("", ["a", "b", "c"], [1.0, 0.25, None], [0.5, 0.5, 0.5])
    widths = [float(width) for width in re.findall(r'width="([\d.]+)"', drawn)]
    full = widths[0]
    assert widths == [full, full / 2, full / 4, full / 2, full / 2]
    assert "no test images" in drawn


def test_an_empty_cell_has_no_shade_and_every_other_has_one():
    chart = HeatMap("", ["a", "b"], ["c", "d"], "row", "column", [[0, 1.0], [0.001, 0.0]], [["x", "7"], ["8", "x"]])
    drawn = chart.draw()
    assert len(paths(drawn)) == 2
    assert sorted(re.findall(r'fill-opacity="([\d.]+)"', drawn)) == ["0.17", "1.00"]
    assert re.findall(r'class="small(?: on)?">(\w)</text>', drawn) == ["7", "8"]


def test_bytes_and_seconds_are_short():
    assert [format_bytes(n) for n in (0, 999, 1000, 1.25e6, 3e12)] == ["0 B", "999 B", "1.0 kB", "1.2 MB", "3.0 TB"]
    assert [format_seconds(s) for s in (0.04, 59.94, 59.96, 245, 11_520)] == [
        "0.0 s",
        "59.9 s",
        "1 min 0 s",
        "4 min 5 s",
        "3 h 12 min",
    ]
