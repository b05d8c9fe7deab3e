"""Show rich's tables in a notebook."""

from __future__ import annotations

import inspect
import io

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

WIDTH = 120
STYLE = "white-space:pre;overflow-x:auto;line-height:normal;font-family:Menlo,'DejaVu Sans Mono',consolas,monospace"


def as_html(*parts: RenderableType) -> str:
    """Return what rich would print as HTML, for a ``_repr_html_``.

    Args:
        parts: Tables and the like, one below the other.
    """
    console = Console(record=True, file=io.StringIO(), width=WIDTH, force_jupyter=False)
    for part in parts:
        console.print(part)
    return console.export_html(inline_styles=True, code_format=f'<pre style="{STYLE}">{{code}}</pre>')


class Shown:
    """A mixin that shows an object's constructor's arguments: by ``repr``, and as a table in a notebook.

    The constructor keeps each argument that is to be shown under its own name, or under that with a ``_`` before it.
    """

    def settings(self) -> dict[str, str]:
        """Return the constructor's arguments by name, each in a line."""
        kept = vars(self)
        names = {name: name if name in kept else f"_{name}" for name in inspect.signature(type(self)).parameters}
        values = {name: kept[key] for name, key in names.items() if key in kept}
        return {name: repr(value) if isinstance(value, str) else str(value) for name, value in values.items()}

    def __repr__(self) -> str:
        """Show the constructor's arguments."""
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in self.settings().items())})"

    def __str__(self) -> str:
        """Show the constructor's arguments, also where another base class has a text of its own."""
        return repr(self)

    def _repr_html_(self) -> str:
        """Show the arguments in a notebook, and what else there is to see."""
        table = Table("argument", "value", title=type(self).__name__, title_justify="left")
        for name, value in self.settings().items():
            table.add_row(name, Text(value))
        return as_html(table, *self._tables())

    def _tables(self) -> list[RenderableType]:
        """Return what else a notebook shows; nothing by default."""
        return []
