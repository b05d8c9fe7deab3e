"""What a run shows a person when it is done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def print_summary(summary: Mapping[str, Any]) -> None:
    """Print a run's summary: student beside teacher, class by class."""
    teacher = summary["teacher"] or {}
    table = Table(title=f"{summary['rounds']} rounds, {summary['round_seconds']:.1f} s", title_justify="left")
    table.add_column("test accuracy")
    table.add_column("student", justify="right")
    table.add_column("best round", justify="right")
    if teacher:
        table.add_column("teacher", justify="right")

    def row(name: str, *values: float | None) -> None:
        table.add_row(name, *("" if value is None else f"{value:.1%}" for value in values[: len(table.columns) - 1]))

    for name in ("balanced_accuracy", "accuracy"):
        row(name.replace("_", " "), summary[name], summary["best"][name], teacher.get(name))
    table.add_section()
    for name, value in summary["per_class_accuracy"].items():
        row(name, value, None, teacher.get("per_class_accuracy", {}).get(name))
    console = Console()
    console.print(table)
    console.print(
        f"sent up {format_bytes(summary['bytes_up'])}, down {format_bytes(summary['bytes_down'])}; "
        f"run directory: {summary['run_dir']}",
        highlight=False,
    )


def print_metrics(metrics: Mapping[str, float]) -> None:
    """Print test metrics as a table of two columns."""
    table = Table("metric", "value")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}")
    Console().print(table)


def print_teachers() -> None:
    """Print the teachers that have a short name."""
    from fedkd.teachers import teachers

    table = Table("name", "checkpoint", "family", "parameters", "pixels", "licence")
    for name in teachers:
        entry = teachers[name]
        table.add_row(
            name, entry.checkpoint, entry.family, f"{entry.parameters:g} M", str(entry.image_size), entry.licence
        )
    Console().print(table)


def format_bytes(count: float) -> str:
    """Format a number of bytes with a decimal unit, such as ``12.3 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
