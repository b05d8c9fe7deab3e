"""Curves and bars as SVG. Colors and fonts are the page's, see `fedkd.runs.report.page.CSS`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedkd.runs.report import svg
from fedkd.runs.report.page import Markup, joined, tag

NUM_COLORS = 8

DASHES = (None, "6 4", "2 4")


Values = Sequence[float | None]


@dataclass(frozen=True)
class Series:
    """A curve.

    Args:
        name: What it shows.
        values: A number for each round; None leaves a gap.
        style: The number of its color and dashes, or "teacher".
        is_thin: Whether it is one of many.
        bridges: Whether the line goes on over a gap, as for a client that is not in every round.
    """

    name: str
    values: Values
    style: int | str = 0
    is_thin: bool = False
    bridges: bool = False

    @property
    def color(self) -> str:
        """The class of its color."""
        return self.style if isinstance(self.style, str) else f"s{self.style % NUM_COLORS}"

    @property
    def dashes(self) -> str | None:
        """Its dashes; None is a line without."""
        return "4 4" if isinstance(self.style, str) else DASHES[self.style // NUM_COLORS % len(DASHES)]


def curves(label: str, series: Sequence[Series], *, is_share: bool = True, height: int = 270) -> Markup:
    """Draw curves by round.

    Args:
        label: What the chart shows, for those who cannot see it.
        series: The curves, of any lengths.
        is_share: Whether the values are shares, to write in percent.
        height: The chart's height.
    """
    found = [value for each in series for value in each.values if value is not None]
    rounds = max((len(each.values) for each in series), default=0)
    if not found:
        return Markup("")
    ticks = nice_ticks(min(found), max(found), 5)
    ticks = [tick for tick in ticks if not is_share or -1e-9 <= tick <= 1 + 1e-9]
    low, high = min(ticks[0], *found), max(ticks[-1], *found)
    high = high if high > low else low + 1
    texts = [_share(tick, ticks) if is_share else f"{tick:.6g}" for tick in ticks]
    left = 14 + 7 * max(map(len, texts))
    right, top, bottom = svg.WIDTH - 12, 10, height - 40

    def x(index: float) -> float:
        return (left + right) / 2 if rounds == 1 else left + (right - left) * index / (rounds - 1)

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / (high - low)

    parts = []
    for tick, said in zip(ticks, texts, strict=True):
        parts.append(svg.line(left, y(tick), right, y(tick)))
        parts.append(svg.text(left - 8, y(tick) + 4, said, anchor="end", class_="soft"))
    for tick in _whole_ticks(rounds):
        parts.append(svg.text(x(tick - 1), bottom + 17, str(tick), anchor="middle", class_="soft"))
    parts.append(svg.text((left + right) / 2, height - 6, "finished rounds", anchor="middle", class_="soft"))
    for each in series:
        kind = f"curve {each.color}{' thin' if each.is_thin else ''}"
        points = [None if value is None else (x(i), y(value)) for i, value in enumerate(each.values)]
        path = _path([point for point in points if point] if each.bridges else points)
        parts.append(tag("path", d=path, class_=kind, stroke_dasharray=each.dashes))
        if rounds <= 50 and each.style != "teacher" and not each.is_thin:
            for i, value in enumerate(each.values):
                if value is not None:
                    shown = f"{value:.1%}" if is_share else f"{value:.4g}"
                    dot = tag("title", f"{each.name}, round {i + 1}: {shown}")
                    parts.append(
                        tag(
                            "circle",
                            dot,
                            cx=svg.decimals(x(i)),
                            cy=svg.decimals(y(value)),
                            r="2.6",
                            class_=f"dot {each.color}",
                        )
                    )
    return svg.drawing(label, height, parts)


def legend(series: Sequence[Series], *, is_bars: bool = False) -> Markup:
    """Name the curves of a chart, or its bars."""
    items = []
    for each in series:
        dashes, thick = (None, 8) if is_bars else (each.dashes, 2.5)
        line = tag("line", x1=1, y1=5, x2=21, y2=5, class_=each.color, stroke_width=thick, stroke_dasharray=dashes)
        sample = tag("svg", line, viewBox="0 0 22 10", aria_hidden="true")
        items.append(tag("li", joined([sample, each.name])))
    return tag("ul", joined(items), class_="legend")


def bars(label: str, names: Sequence[str], values: Values, beside: Values | None = None) -> Markup:
    """Draw a bar for each name, of shares, and below it a thinner one of what it is to be seen beside.

    Args:
        label: What the chart shows.
        names: The names.
        values: Their shares; None has no bar.
        beside: Further shares.
    """
    step = 22 if beside is None else 30
    left = 16 + min(7 * max(map(len, map(str, names)), default=0), 130)
    right, height = svg.WIDTH - 52, step * len(names) + 26
    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        position = left + (right - left) * tick
        parts.append(svg.line(position, 4, position, height - 22))
        parts.append(svg.text(position, height - 6, f"{tick:.0%}", anchor="middle", class_="soft"))
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        top = 6 + step * i
        parts.append(
            svg.text(left - 8, top + (13 if beside is None else 16), svg.short(name, 19), anchor="end", title=name)
        )
        rows = [(value, "s0", top, 15)]
        if beside is not None:
            rows = [(value, "s0", top, 14), (beside[i], "teacher", top + 15, 7)]
        for share, color, y, thick in rows:
            if share is not None:
                width = max((right - left) * share, 0.5)
                shown = tag("title", f"{name}: {share:.1%}")
                parts.append(
                    tag(
                        "rect",
                        shown,
                        x=svg.decimals(left),
                        y=svg.decimals(y),
                        width=svg.decimals(width),
                        height=thick,
                        rx=1.5,
                        class_=f"bar {color}",
                    )
                )
        text = "no test images" if value is None else f"{value:.1%}"
        end = left + 6 if value is None else left + (right - left) * value + 6
        parts.append(svg.text(end, top + 12, text, class_="soft" if value is None else None))
    return svg.drawing(label, height, parts)


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Return about ``count`` numbers at equal steps of 1, 2 or 5 times a power of ten, around ``low`` to ``high``."""
    if high <= low:
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, last + 1)]


def _share(tick: float, ticks: Sequence[float]) -> str:
    """Write a tick in percent, with the digits that keep neighbors apart."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1
    return f"{tick * 100:.{max(0, math.ceil(-math.log10(step * 100) - 1e-9))}f}%"


def _whole_ticks(rounds: int) -> list[int]:
    """Return the rounds to name: the first, and multiples of a round number."""
    step = next(factor * 10**power for power in range(9) for factor in (1, 2, 5) if rounds <= 10 * factor * 10**power)
    found = [1, *range(step, rounds + 1, step)]
    return sorted({tick for tick in found if tick == 1 or tick >= 1 + step / 2})


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """Return a path through points, with a gap where there is none. A point between two gaps is a dot."""
    parts, pen = [], "M"
    for i, point in enumerate(points):
        if point is None:
            pen = "M"
            continue
        parts.append(f"{pen}{svg.decimals(point[0])} {svg.decimals(point[1])}")
        if pen == "M" and (i + 1 == len(points) or points[i + 1] is None):
            parts.append("h0.1")
        pen = "L"
    return "".join(parts)
