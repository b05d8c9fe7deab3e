"""`HeatMap`: numbers by row and column as shades."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedkd.runs.report import svg
from fedkd.runs.report.page import Markup, tag

LEVELS = 12
"""The shades of a heat map. Cells of a shade are one path, so that 100 x 100 cells stay small."""


@dataclass(frozen=True)
class HeatMap:
    """Numbers by row and column, each a shade.

    Args:
        label: What the chart shows.
        rows: The names of the rows.
        columns: The names of the columns.
        row_title: What a row is.
        column_title: What a column is.
        shades: Numbers in [0, 1]; 0 has no shade at all, and every other is visible.
        texts: What to write into the cells, if there is space.
        totals: A number for each column, drawn as bars above.
        row_height: A row's height; None makes the cells square.
    """

    label: str
    rows: Sequence[str]
    columns: Sequence[str]
    row_title: str
    column_title: str
    shades: Sequence[Sequence[float]]
    texts: Sequence[Sequence[str]] | None = None
    totals: Sequence[int] | None = None
    row_height: float | None = None

    def draw(self) -> Markup:
        """Draw it."""
        row_chars = min(max((len(name) for name in self.rows), default=1), 14)
        left, right = 30.0 + 7 * row_chars, svg.WIDTH - 8.0
        width = (right - left) / max(len(self.columns), 1)
        height = width if self.row_height is None else self.row_height
        if self.row_height is None and height > 60:
            width = height = 60.0
            right = left + width * len(self.columns)
        top = 8 if self.totals is None else 66
        bottom = top + height * len(self.rows)
        every_column = _every(width, 15)
        column_chars = min(max((len(name) for name in self.columns), default=1), 14)
        turned = 7 * column_chars + 4 > width * every_column
        below = 14 + (6.5 * column_chars if turned else 12)
        parts = [
            tag(
                "rect",
                x=svg.decimals(left),
                y=svg.decimals(top),
                width=svg.decimals(right - left),
                height=svg.decimals(bottom - top),
                class_="frame",
            )
        ]
        parts += self._cells(left, top, width, height)
        if self.totals is not None:
            parts += self._totals(left, top, width)
        for k in range(0, len(self.rows), _every(height, 13)):
            y = top + height * (k + 0.5) + 4
            parts.append(svg.text(left - 6, y, svg.short(self.rows[k], 14), anchor="end", title=self.rows[k]))
        for k in range(0, len(self.columns), every_column):
            x, name = left + width * (k + 0.5), self.columns[k]
            if turned:
                place = f"rotate(-90 {svg.decimals(x + 4)} {svg.decimals(bottom + 6)})"
                parts.append(
                    svg.text(x + 4, bottom + 6, svg.short(name, 14), anchor="end", transform=place, title=name)
                )
            else:
                parts.append(svg.text(x, bottom + 16, name, anchor="middle"))
        parts.append(
            svg.text((left + right) / 2, bottom + below + 14, self.column_title, anchor="middle", class_="soft")
        )
        middle = (top + bottom) / 2
        place = f"rotate(-90 12 {svg.decimals(middle)})"
        parts.append(svg.text(12, middle, self.row_title, anchor="middle", class_="soft", transform=place))
        return svg.drawing(self.label, bottom + below + 22, parts)

    def _cells(self, left: float, top: float, width: float, height: float) -> list[Markup]:
        gap = 1.0 if min(width, height) > 8 else 0.0
        paths: dict[int, list[str]] = {}
        texts = []
        for i, row in enumerate(self.shades):
            for j, shade in enumerate(row):
                if not shade > 0:
                    continue
                level = max(1, math.ceil(shade * LEVELS - 1e-9))
                x, y = left + width * j, top + height * i
                across = svg.decimals(width - gap)
                paths.setdefault(level, []).append(
                    f"M{svg.decimals(x)} {svg.decimals(y)}h{across}v{svg.decimals(height - gap)}h-{across}z"
                )
                if self.texts is not None and 6.5 * len(self.texts[i][j]) < width and height >= 13:
                    kind = "small on" if level / LEVELS > 0.6 else "small"
                    texts.append(
                        svg.text(x + width / 2, y + height / 2 + 4, self.texts[i][j], anchor="middle", class_=kind)
                    )
        shaded = [
            tag("path", d="".join(path), class_="cell", fill_opacity=f"{0.1 + 0.9 * level / LEVELS:.2f}")
            for level, path in sorted(paths.items())
        ]
        return shaded + texts

    def _totals(self, left: float, top: float, width: float) -> list[Markup]:
        """Draw a bar for each column, above it."""
        totals = self.totals or ()
        most, room = max([1, *totals]), top - 26
        bottom, parts = top - 6, []
        for j, total in enumerate(totals):
            x, tall = left + width * j, room * total / most
            shown = tag("title", f"{self.column_title} {self.columns[j]}: {total:,}")
            bar = {
                "x": svg.decimals(x),
                "y": svg.decimals(bottom - tall),
                "width": svg.decimals(max(width - 1, 0.6)),
                "height": svg.decimals(tall),
            }
            parts.append(tag("rect", shown, class_="bar s5", **bar))
            if 6.5 * len(f"{total:,}") < width:
                parts.append(
                    svg.text(x + width / 2, bottom - tall - 4, f"{total:,}", anchor="middle", class_="small soft")
                )
        return parts


def _every(space: float, needed: float) -> int:
    """Return how many rows to go on to the next name, so that names do not touch: 1, 2 or 5 times a power of ten."""
    return next(f * 10**power for power in range(9) for f in (1, 2, 5) if space * f * 10**power >= needed)
