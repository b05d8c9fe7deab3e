"""The parts of a report's page. All text that comes in is escaped; what is HTML already is `Markup`."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""A browser that opens the page loads nothing, whatever the page holds."""

CSS = (
    """
:root { --paper: #fff; --ink: #1c2733; --soft: #5d6b78; --line: #dfe4e9; --fill: #f4f6f8; --accent: #2c7fb8;
  --on-accent: #fff; --s0: #2c7fb8; --s1: #d1495b; --s2: #3a9d6e; --s3: #e08e2b; --s4: #7b5ea7; --s5: #4c5a67;
  --s6: #b5651d; --s7: #159a9c; --teacher: #9aa6b2; }
@media (prefers-color-scheme: dark) { :root { --paper: #14191f; --ink: #e6ebf0; --soft: #9fadba; --line: #323c47;
  --fill: #1d242c; --accent: #56a9de; --on-accent: #0d1319; --s0: #56a9de; --s1: #f07a8a; --s2: #62c796; --s3: #f0ac58;
  --s4: #ae92da; --s5: #b3bfca; --s6: #dd9a5c; --s7: #4fc7c9; --teacher: #738190; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 48px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 36px 0 12px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 15px; margin: 18px 0 6px; }
p { margin: 6px 0; overflow-wrap: anywhere; }
.soft, figcaption, caption { color: var(--soft); }
.note { border-left: 4px solid var(--s3); background: var(--fill); padding: 6px 12px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 10px; margin: 18px 0; }
.tile { background: var(--fill); border-radius: 6px; padding: 10px 12px; }
.tile b { display: block; font-size: 21px; line-height: 1.3; }
.tile span { display: block; color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 20px 28px;
  align-items: start; }
.grid > * { min-width: 0; }
figure { margin: 0; }
figcaption { font-size: 13px; margin-top: 4px; }
.title { font-weight: 600; margin: 0 0 4px; color: var(--ink); }
.scroll { overflow-x: auto; }
section > * + *, .stack > * + * { margin-top: 16px; }
section > h2 + *, section > h3 + * { margin-top: 0; }
table { border-collapse: collapse; font-size: 14px; width: 100%; }
caption { text-align: left; font-size: 13px; padding-bottom: 4px; }
th, td { text-align: left; vertical-align: top; padding: 4px 10px 4px 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
td:first-child, tbody th { overflow-wrap: break-word; }
th { font-weight: 600; }
thead th, .number { white-space: nowrap; }
tbody th { font-weight: 400; color: var(--soft); min-width: 8em; }
.number { text-align: right; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
pre { background: var(--fill); border-radius: 6px; padding: 10px 12px; white-space: pre-wrap; overflow-wrap: anywhere;
  font-size: 13px; margin: 6px 0; }
code { font-family: ui-monospace, monospace; font-size: 0.93em; }
details { margin: 10px 0; }
summary { cursor: pointer; color: var(--soft); }
a { color: var(--accent); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 4px 0 0; padding: 0;
  font-size: 13px; }
.legend li { overflow-wrap: anywhere; }
.legend svg { width: 22px; height: 10px; margin-right: 6px; vertical-align: 0; display: inline-block; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg text.soft { fill: var(--soft); }
svg text.small { font-size: 10.5px; }
svg text.on { fill: var(--on-accent); }
svg .rule { stroke: var(--line); stroke-width: 1; }
svg .curve { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg .thin { stroke-width: 1; opacity: 0.45; }
svg .cell { fill: var(--accent); }
svg .frame { fill: var(--fill); }
"""
    + "".join(
        f".s{i}.curve, .legend .s{i} {{ stroke: var(--s{i}); }} .s{i}.bar, .s{i}.dot {{ fill: var(--s{i}); }}\n"
        for i in range(8)
    )
    + ".teacher.curve, .legend .teacher { stroke: var(--teacher); } .teacher.bar { fill: var(--teacher); }\n"
)


class Markup(str):
    """Text that is HTML already."""


def escaped(value: Any) -> str:
    """Return a value as HTML text, which may also stand in an attribute."""
    return value if isinstance(value, Markup) else html.escape(str(value), quote=True)


def joined(parts: Iterable[str]) -> Markup:
    """Join parts; those that are plain text are escaped."""
    return Markup("\n".join(escaped(part) for part in parts))


def tag(name: str, content: Any = "", /, **attributes: Any) -> Markup:
    """Return an element. ``class_`` is the attribute ``class``, and ``_`` stands for ``-``; None is left out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{given}>{escaped(content)}</{name}>")


def page(title: str, *parts: str) -> str:
    """Return a whole page."""
    head = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escaped(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escaped(title)}</title>\n<style>{CSS}</style>\n</head>\n"
    )
    return f"{head}<body>\n<main>\n{joined(parts)}\n</main>\n</body>\n</html>\n"


def section(title: str, *parts: str) -> Markup:
    """Return a part of the page under a heading; nothing if it has no content."""
    content = [part for part in parts if part]
    return tag("section", joined([tag("h2", title), *content])) if content else Markup("")


def grid(*parts: str) -> Markup:
    """Return parts side by side where the page is wide enough, else one above the other."""
    return tag("div", joined(part for part in parts if part), class_="grid")


def stack(*parts: str) -> Markup:
    """Return parts one below the other, as one part of a `grid`."""
    return tag("div", joined(part for part in parts if part), class_="stack")


def tiles(values: Sequence[tuple[str, str]]) -> Markup:
    """Return large figures, each with what it is below."""
    return tag(
        "div",
        joined(tag("div", joined([tag("b", v), tag("span", t)]), class_="tile") for v, t in values),
        class_="tiles",
    )


def figure(title: str, svg: Markup, caption: str = "", legend: str = "") -> Markup:
    """Return a chart with its title, legend and caption."""
    parts = [tag("p", title, class_="title"), svg, legend, tag("figcaption", caption) if caption else Markup("")]
    return tag("figure", joined(part for part in parts if part))


def table(
    header: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: Iterable[int] = (), caption: str = ""
) -> Markup:
    """Return a table that scrolls where it is too wide.

    Args:
        header: The names of the columns.
        rows: Their cells; None is an empty one.
        numbers: The columns that hold numbers, which are aligned to the right.
        caption: What stands above it.
    """
    kinds = ["number" if column in set(numbers) else None for column in range(len(header))]
    head = tag("thead", tag("tr", joined(tag("th", n, class_=k) for n, k in zip(header, kinds, strict=True))))
    lines = [
        tag("tr", joined(tag("td", "" if c is None else c, class_=k) for c, k in zip(row, kinds, strict=True)))
        for row in rows
    ]
    above = [tag("caption", caption)] if caption else []
    return tag("div", tag("table", joined([*above, head, tag("tbody", joined(lines))])), class_="scroll")


def facts(title: str, values: Mapping[str, Any]) -> Markup:
    """Return a table of names and values; nothing without any."""
    if not values:
        return Markup("")
    lines = [tag("tr", joined([tag("th", name, scope="row"), tag("td", value)])) for name, value in values.items()]
    return tag("div", joined([tag("h3", title), tag("table", tag("tbody", joined(lines)))]))


def code(text: str) -> Markup:
    """Return lines of code."""
    return tag("pre", tag("code", text))


def fold(title: str, content: str) -> Markup:
    """Return what is shown on a click."""
    return tag("details", joined([tag("summary", title), content]))


def percent(value: float | None) -> str:
    """Write an accuracy, as the command line does; nothing for None."""
    return "" if value is None else f"{value:.1%}"


def number(value: Any) -> str:
    """Write a number shortly."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
