"""The pages of the documentation, and the code blocks in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
"""Every page of Markdown that a reader of the library meets."""

BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*?) -->\n)?(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Snippet:
    """A code block of a page.

    Attributes:
        page: The page's name, such as ``docs/data.md``.
        line: The line of the page on which its text begins, from 1.
        language: What stands behind the backticks; "" if nothing does.
        text: What is in the block.
        reason: Why no test runs it, from the comment before it: ``<!-- not run: REASON -->``; "" if a test does.
    """

    page: str
    line: int
    language: str
    text: str
    reason: str

    @property
    def place(self) -> str:
        """Where it stands."""
        return f"{self.page}:{self.line}"

    def commands(self) -> Iterator[str]:
        """Yield the commands of a block of bash: without comments, and with continued lines joined."""
        for line in self.text.replace("\\\n", "").splitlines():
            if (command := line.partition(" #")[0].strip()) and not command.startswith("#"):
                yield command


def name_of(page: Path) -> str:
    """Return a page's path from the root of the repository."""
    return page.relative_to(ROOT).as_posix()


def snippets(page: Path) -> list[Snippet]:
    """Return the code blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for block in BLOCK.finditer(text):
        mark = block["mark"] or ""
        if mark.startswith("ci: "):
            mark = "not run: .ci/run does"
        line = text.count("\n", 0, block.start("text")) + 1
        reason = mark.removeprefix("not run: ") if mark.startswith("not run: ") else ""
        found.append(Snippet(name_of(page), line, block["language"], block["text"], reason))
    return found


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MkDocs both make them."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each).strip().lower().replace(" ", "-") for each in headings}


def links(page: Path) -> list[str]:
    """Return the targets of a page's links and pictures that lead to files."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text))
    return [each for each in found if "://" not in each and not each.startswith("mailto:")]
