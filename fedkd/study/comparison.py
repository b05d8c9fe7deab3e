"""The comparison page of several runs, and `report`, which writes the page of a run or of several."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from fedkd.core.errors import FedKDError
from fedkd.core.storage import make_parent, write_atomically
from fedkd.core.units import format_bytes, format_seconds
from fedkd.runs.record import RunRecord, finite, read_run
from fedkd.runs.report import page as html
from fedkd.runs.report import results, run_page, settings, write_report
from fedkd.runs.report.charts import Series, Values, curves, legend
from fedkd.runs.report.page import Markup
from fedkd.study.grid import REFERENCES, Run
from fedkd.study.report import known, mean_percent
from fedkd.study.results import partitions_of

NAME = "comparison.html"

MAX_NAMES = 8
"""Runs that are named beside a setting's value; the others are counted."""


@dataclass(frozen=True, eq=False)
class Entry:
    """What is compared: a run, or the runs of a method with different seeds.

    Args:
        name: Its name.
        records: Its runs, at least one.
    """

    name: str
    records: Sequence[RunRecord]

    def mean(self, curve: Callable[[RunRecord], Values]) -> list[float | None]:
        """Return the mean of a curve over the runs, for the rounds that all of them have."""
        rounds = zip(*(curve(record) for record in self.records), strict=False)
        return [None if any(v is None for v in values) else statistics.mean(values) for values in rounds]


def report(run_dir: str | Path, *further: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a run, or one that compares several runs. A page is one HTML file that loads nothing.

    A finished run has its page already, ``report.html`` in its run directory. A run that was stopped, or is still
    running, gets one of the rounds that it has.

    Args:
        run_dir: A run directory.
        further: More of them. Then the page has their results in a table, their curves, and the settings that differ.
        out: The file, with the suffix .html. None is ``report.html`` in the run directory for one run, and
            ``comparison.html`` in the current folder for several. Its folder is made; a file there is written over.

    Returns:
        The file.

    Raises:
        MissingResourceError: If there is no run.
        FedKDError: If a run has no finished round, a file of it is damaged, a run is given twice, or ``out`` is no
            HTML file.
    """
    path = None if out is None else Path(out).expanduser()
    if path is not None and path.suffix.lower() not in (".html", ".htm"):
        raise FedKDError(f"The report is an HTML file, so its name must end with .html, got {str(path)!r}.")
    if path is not None:
        make_parent(path)
    if not further:
        return write_report(run_dir, path)
    records = [read_run(each) for each in (run_dir, *further)]
    entries = [Entry(name, [record]) for name, record in zip(run_names(records), records, strict=True)]
    return write_comparison({"": entries}, path or Path(NAME), "Comparison")


def compare_grid(done: Sequence[Run], path: Path) -> Path:
    """Write the page that compares the finished runs of a grid: for each partition its methods, means over the seeds.

    Args:
        done: The runs, at least one.
        path: The file.
    """
    records = {run.folder: read_run(run.folder) for run in done}
    panels = {}
    for partition in partitions_of(run.partition for run in done):
        here = [run for run in done if run.partition in (partition, REFERENCES)]
        methods = dict.fromkeys(run.method for run in here)
        panels[partition] = [
            Entry(method, [records[run.folder] for run in here if run.method == method]) for method in methods
        ]
    return write_comparison(panels, path, path.resolve().parent.name)


def write_comparison(panels: Mapping[str, Sequence[Entry]], path: Path, title: str) -> Path:
    """Write a page that compares runs.

    Args:
        panels: What is compared, by heading. What is in several panels has the same color in each.
        path: The file.
        title: The page's title.

    Returns:
        The file.
    """
    folder = path.resolve().parent
    names = dict.fromkeys(entry.name for entries in panels.values() for entry in entries)
    styles = {name: i for i, name in enumerate(names)}
    parts = [_panel(heading, entries, styles, folder) for heading, entries in panels.items()]
    runs = {record.folder: record for entries in panels.values() for entry in entries for record in entry.records}
    records = list(runs.values())
    notes = [f"{n}: {note}" for n, r in zip(run_names(records), records, strict=True) for note in r.notes]
    head = html.joined(
        [
            html.tag("h1", title),
            html.tag("p", f"{len(records)} runs", class_="soft"),
            *(html.tag("p", note, class_="note") for note in notes),
        ]
    )
    differing = html.section("Settings that differ", differing_settings(records))
    write_atomically(path, html.page(f"{title} - fedkd", head, *parts, differing))
    return path


def run_names(records: Sequence[RunRecord]) -> list[str]:
    """Return a short name for each run: its folder below the one that all have in common.

    Raises:
        FedKDError: If a run is there twice.
    """
    folders = [record.folder.resolve() for record in records]
    for i, folder in enumerate(folders):
        if folder in folders[:i]:
            raise FedKDError(f"The run {str(records[i].folder)!r} is given twice.")
    above = os.path.commonpath([folder.parent for folder in folders])
    return [os.path.relpath(folder, above) for folder in folders]


def differing_settings(records: Sequence[RunRecord]) -> Markup:
    """Return a table of the settings that are not the same in all runs: each value, and the runs that have it."""
    names = dict(zip(run_names(records), records, strict=True))
    rows, same = [], 0
    for setting in dict.fromkeys(name for record in records for name in record.settings):
        owners: dict[str, list[str]] = {}
        for name, record in names.items():
            known = setting in record.settings
            text = settings.shortened(record.settings[setting]) if known else "not known"
            owners.setdefault(text, []).append(name)
        if len(owners) == 1:
            same += 1
            continue
        for i, (text, runs) in enumerate(owners.items()):
            shown = ", ".join(runs[:MAX_NAMES]) + (
                f" and {len(runs) - MAX_NAMES} more" if len(runs) > MAX_NAMES else ""
            )
            rows.append([settings.setting_name(setting) if i == 0 else "", text, shown])
    if not rows:
        return html.tag("p", f"None: all {same} settings are the same.") if len(records) > 1 else Markup("")
    caption = f"{same} further settings are the same in all runs" if same else ""
    return html.table(["setting", "value", "runs"], rows, caption=caption)


def _panel(heading: str, entries: Sequence[Entry], styles: Mapping[str, int], folder: Path) -> Markup:
    """Return a table of what is compared, and its curves."""
    charts = [
        _chart("Balanced accuracy", entries, styles, lambda record: record.column("balanced_accuracy")),
        _chart("Worst class", entries, styles, lambda record: record.worst_class),
        _chart("Test loss", entries, styles, lambda record: record.column("loss"), is_share=False),
        _chart(
            "Validation accuracy, the clients of each round",
            entries,
            styles,
            lambda record: record.column("val_accuracy"),
        ),
    ]
    drawn = [chart for chart in charts if chart]
    key = legend([Series(entry.name, (), styles[entry.name]) for entry in entries])
    return html.section(heading or "Results", _table(entries, folder), html.grid(*drawn), key if drawn else Markup(""))


def _chart(
    title: str,
    entries: Sequence[Entry],
    styles: Mapping[str, int],
    curve: Callable[[RunRecord], Values],
    is_share: bool = True,
) -> Markup:
    series = [Series(entry.name, entry.mean(curve), styles[entry.name]) for entry in entries]
    drawn = curves(title, series, is_share=is_share)
    return html.figure(title, drawn) if drawn else Markup("")


def _table(entries: Sequence[Entry], folder: Path) -> Markup:
    """Return the results as a table: the last round's, the best round's, and what they cost."""
    has_seeds = any(len(entry.records) > 1 for entry in entries)
    has_validation = any(record.validation is not None for entry in entries for record in entry.records)
    header = [
        "run",
        "rounds",
        *(["validation"] if has_validation else []),
        "balanced accuracy",
        "worst class",
        "best round",
        "accuracy",
        "teacher",
        "sent up",
        "time",
    ]
    rows = []
    for entry in entries:
        records = entry.records
        last = {
            name: known(record.column(name)[-1] for record in records) for name in ("balanced_accuracy", "accuracy")
        }
        best = known(max(known(record.column("balanced_accuracy")), default=None) for record in records)
        worst = known((record.worst_class or [None])[-1] for record in records)
        teacher = known(finite(record.teacher.get("balanced_accuracy")) for record in records)
        traffic = [results.traffic(record) for record in records]
        rounds = sorted({len(record.rows) for record in records})
        rows.append(
            [
                _linked(entry, folder),
                f"{rounds[0]}" if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}",
                *([mean_percent(known(record.validation for record in records))] if has_validation else []),
                mean_percent(last["balanced_accuracy"]),
                mean_percent(worst),
                mean_percent(best),
                mean_percent(last["accuracy"]),
                mean_percent(teacher),
                format_bytes(statistics.mean(up for up, _, _ in traffic)),
                format_seconds(statistics.mean(seconds for _, _, seconds in traffic)),
            ]
        )
    caption = "Accuracies in percent, after the last round" + (
        ", mean ± standard deviation over the seeds" if has_seeds else ""
    )
    return html.table(header, rows, numbers=range(1, len(header)), caption=caption)


def _linked(entry: Entry, folder: Path) -> str:
    """Return the name of what is compared, with links to the pages of its runs."""

    def link(text: str, record: RunRecord) -> str:
        page = record.folder.resolve() / run_page.NAME
        address = quote(Path(os.path.relpath(page, folder)).as_posix())
        return html.tag("a", text, href=address) if page.is_file() else text

    if len(entry.records) == 1:
        return link(entry.name, entry.records[0])
    return html.joined([f"{entry.name}:", *(link(record.folder.name, record) for record in entry.records)])
