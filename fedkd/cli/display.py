"""Print results on the terminal: summaries, metrics and teachers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from fedkd.core.errors import MissingResourceError
from fedkd.core.units import format_bytes

if TYPE_CHECKING:
    from fedkd.runs.summary import Summary
    from fedkd.teachers import TeacherReport


def make_console() -> Console:
    """Return a console as wide as the terminal. For a file or a pipe it is 160 characters wide instead of 80."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def print_summary(summary: Summary) -> None:
    """Print a run's summary: the accuracies of student and teacher, overall and for each class."""
    console = make_console()
    console.print(summary.table())
    console.print(
        f"sent up {format_bytes(summary['bytes_up'])}, down {format_bytes(summary['bytes_down'])}; "
        f"run directory: {summary['run_dir']}",
        highlight=False,
    )


def print_clients(summary: Mapping[str, Any]) -> None:
    """Print the accuracy of each client's own student in a mutual federation, and that of their mean logits."""
    table = Table("client", "student", title="the clients' own students", title_justify="left")
    for name in ("parameters", "images", "balanced accuracy", "accuracy"):
        table.add_column(name, justify="right")
    for each in summary["clients"]:
        counts = (str(each["client"]), each["student"], f"{each['parameters']:,}", f"{each['num_examples']:,}")
        table.add_row(*counts, f"{each['balanced_accuracy']:.1%}", f"{each['accuracy']:.1%}")
    table.add_section()
    both = summary["ensemble"]
    table.add_row("all", "mean of logits", "", "", f"{both['balanced_accuracy']:.1%}", f"{both['accuracy']:.1%}")
    make_console().print(table)


def print_metrics(metrics: Mapping[str, float]) -> None:
    """Print test metrics as a table of two columns."""
    table = Table("metric", "value")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}")
    make_console().print(table)


def print_teachers() -> None:
    """Print the teachers that have a short name."""
    from fedkd.teachers.catalogue import teachers

    table = Table("name", "checkpoint", "family", "parameters", "pixels", "license")
    for name in teachers:
        try:
            entry = teachers[name]
        except MissingResourceError as error:  # show the other teachers although this package cannot be imported
            table.add_row(name, f"(not usable) {error}")
            continue
        place = "(in the package)" if Path(entry.checkpoint).is_absolute() else entry.checkpoint or f"({entry.source})"
        parameters = "" if entry.parameters is None else f"{entry.parameters:g} M"
        table.add_row(name, place, entry.family, parameters, str(entry.image_size or ""), entry.license)
    make_console().print(table)


def print_teacher_report(name: str, report: TeacherReport, bytes_up: int, bytes_down: int) -> None:
    """Print the measurements of a teacher."""
    table = Table(title=f"{name}, alone on {report.num_images} test images", title_justify="left")
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_row("balanced accuracy", f"{report.balanced_accuracy:.1%}")
    table.add_row("accuracy", f"{report.accuracy:.1%}")
    table.add_section()
    for label, value in report.per_class_accuracy.items():
        table.add_row(label, f"{value:.1%}")
    table.add_section()
    table.add_row("calibration error (15 bins)", f"{report.calibration_error:.4f}")
    for temperature, entropy in report.target_entropy.items():
        table.add_row(f"target entropy / log K at T = {temperature:g}", f"{entropy:.4f}")
    table.add_section()
    table.add_row(f"images/s on {report.device}", f"{report.images_per_second:.1f}")
    for name, value in report.chosen.items():
        table.add_row(f"head: {name} chosen", f"{value:.4g}")
    table.add_row("sent by all clients for the head", format_bytes(bytes_up))
    table.add_row("sent to all clients for it", format_bytes(bytes_down))
    table.caption = f"a client sends: {report.sends}" if report.sends else None
    make_console().print(table)
