"""The pieces of a chart in SVG."""

from __future__ import annotations

from collections.abc import Sequence

from fedkd.runs.report.page import Markup, joined, tag

WIDTH = 560
"""A chart's width in its own units: it is shown at 400 to 550 pixels, where text of 12 units can be read."""


def drawing(label: str, height: float, parts: Sequence[Markup]) -> Markup:
    """Return a chart that fills the width it is given.

    Args:
        label: What the chart shows, for those who cannot see it.
        height: Its height, where its width is `WIDTH`.
        parts: What is in it.
    """
    return tag("svg", joined(parts), viewBox=f"0 0 {WIDTH} {decimals(height)}", role="img", aria_label=label)


def line(x1: float, y1: float, x2: float, y2: float) -> Markup:
    """Return a line of a chart's grid."""
    return tag("line", x1=decimals(x1), y1=decimals(y1), x2=decimals(x2), y2=decimals(y2), class_="rule")


def text(
    x: float,
    y: float,
    content: str,
    *,
    anchor: str | None = None,
    class_: str | None = None,
    transform: str | None = None,
    title: str | None = None,
) -> Markup:
    """Return a text; ``title`` is shown by the mouse where the text is short for it."""
    inner = joined([content, tag("title", title)]) if title not in (None, content) else content
    return tag("text", inner, x=decimals(x), y=decimals(y), text_anchor=anchor, class_=class_, transform=transform)


def short(name: str, length: int) -> str:
    """Cut a name to a number of characters."""
    return name if len(name) <= length else f"{name[: length - 1]}…"


def decimals(value: float) -> str:
    """Write a coordinate with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
