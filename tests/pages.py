"""Reports as tests see them: whole HTML that loads nothing, and run directories that are written by hand."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

VOID = ("meta", "br", "hr", "img", "link", "input")


class Page(HTMLParser):
    """Reads a page: its text, its tags, its links. A tag that is not closed in its place is an error."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open, self.tags, self.links, self.texts, self.attributes = [], [], [], [], []
        content = path.read_text(encoding="utf-8")
        assert content.startswith("<!DOCTYPE html>")
        self.feed(content)
        self.close()
        assert self.open == []

    @property
    def text(self) -> str:
        """Return what a reader sees, with single spaces."""
        return " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        self.links += [value for name, value in attributes if name in ("href", "src", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            assert "url(" not in data
            assert "@import" not in data
        else:
            self.texts.append(data)

    def check_it_loads_nothing(self) -> None:
        """Raise if a browser would fetch something, or run a script."""
        assert not {"script", "link", "img", "iframe", "object", "use", "base", "form"} & set(self.tags)
        assert [name for _, name, _ in self.attributes if name.startswith("on") or "xlink" in name] == []
        assert [value for value in self.links if "://" in value or value.startswith("//")] == []


def write_run(folder: Path, rows: list[dict], **summary) -> Path:
    """Write a run directory: ``metrics.csv`` of the given rows, and ``summary.json`` unless it is None."""
    folder.mkdir(parents=True)
    rows = [{"round": i, **row} for i, row in enumerate(rows)]
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    if summary.get("rounds", 0) is not None:
        (folder / "summary.json").write_text(json.dumps({"rounds": len(rows), **summary}))
    return folder
