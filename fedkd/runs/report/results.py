"""The part of a run's page that says how it went: by round, by class, by client, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedkd.core.units import format_bytes, format_seconds
from fedkd.runs.layout import MAX_CONFUSION_CLASSES
from fedkd.runs.record import RunRecord, finite
from fedkd.runs.report import page as html
from fedkd.runs.report.charts import NUM_COLORS, Series, bars, curves, legend
from fedkd.runs.report.heat_map import HeatMap
from fedkd.runs.report.page import Markup, percent

MAX_BARS = 30
"""With more classes the page has bars for the worst of them, and a table of all."""

MAX_CURVES = 8
"""With more clients their curves are thin lines of one color."""

MAX_THIN = 100
"""Thin lines in a chart."""

MAX_ROWS = 20
"""Rows of a table that is only a sample."""


def by_round(record: RunRecord) -> Markup:
    """Return the curves of accuracy and loss."""
    teacher = [finite(record.teacher.get("balanced_accuracy"))] * len(record.rows)
    shown = [
        Series("balanced accuracy", record.column("balanced_accuracy"), 0),
        Series("worst class", record.worst_class, 1),
        Series("validation, the clients of each round", record.column("val_accuracy"), 2),
        Series("teacher, balanced", teacher, "teacher"),
    ]
    losses = [Series("test loss", record.column("loss"), 0)]
    terms = [name for name in record.rows[-1] if name.startswith("train/")]
    total = record.column("train/loss")
    terms = ["train/loss", *(name for name in terms if name != "train/loss" and record.column(name) != total)]
    losses += [Series(f"training: {name[6:]}", record.column(name), i + 1) for i, name in enumerate(terms[:6])]
    return html.grid(_chart("Accuracy on the test set", shown), _chart("Loss", losses, is_share=False))


def by_class(record: RunRecord) -> Markup:
    """Return a bar for each class, with the teacher's, and a table of all."""
    student, of_teacher = record.per_class, record.teacher.get("per_class_accuracy") or {}
    if not student:
        return Markup("")
    names = sorted(student, key=lambda name: (student[name] is None, student[name]))
    title = "Test accuracy by class"
    if len(names) <= MAX_BARS:
        shown = list(student)
    else:
        shown = names[:MAX_ROWS]
        title = f"The {MAX_ROWS} worst of {len(names)} classes"
    beside = [finite(of_teacher.get(name)) for name in shown] if of_teacher else None
    key = [Series("student", (), 0), *([Series("teacher", (), "teacher")] if of_teacher else [])]
    drawn = html.figure(
        title, bars(title, shown, [student[name] for name in shown], beside), legend=legend(key, is_bars=True)
    )
    header = ["class", "student", *(["teacher"] if of_teacher else [])]
    rows = [
        [name, percent(student[name]), *([percent(finite(of_teacher.get(name)))] if of_teacher else [])]
        for name in names
    ]
    every = html.table(header, rows, numbers=range(1, len(header)), caption="the lowest first")
    return (
        html.grid(drawn, every)
        if len(names) <= MAX_BARS
        else html.joined([html.grid(drawn, _spread(record)), html.fold("All classes", every)])
    )


def _spread(record: RunRecord) -> Markup:
    """Return how many classes have which accuracy."""
    values = [value for value in record.per_class.values() if value is not None]
    rows = []
    for tenth in range(10):
        inside = sum(min(int(value * 10 + 1e-9), 9) == tenth for value in values)
        rows.append([f"{10 * tenth} to {10 * tenth + 10}%", f"{inside:,}"])
    return html.table(["accuracy", "classes"], rows, numbers=(1,), caption="How many classes have which test accuracy")


def confusion(record: RunRecord) -> Markup:
    """Return the confusion matrix of the final student, and its most frequent mistakes."""
    counts = record.summary.get("confusion")
    if not counts:
        if record.is_finished and len(record.classes) > MAX_CONFUSION_CLASSES:
            limit = f"It is kept for up to {MAX_CONFUSION_CLASSES} classes; this run has {len(record.classes)}."
            return html.tag("p", limit, class_="soft")
        return Markup("")
    names, sums = record.classes, [sum(row) for row in counts]
    shades = [[value / (total or 1) for value in row] for row, total in zip(counts, sums, strict=True)]
    chart = HeatMap(
        "Test images by true and by predicted class",
        rows=names,
        columns=names,
        row_title="true class",
        column_title="predicted class",
        shades=shades,
        texts=[[f"{value:,}" for value in row] for row in counts],
    )
    wrong = [
        (shades[i][j], value, names[i], names[j])
        for i, row in enumerate(counts)
        for j, value in enumerate(row)
        if i != j and value
    ]
    wrong.sort(key=lambda pair: (-pair[1], -pair[0]))
    rows = [[true, said, f"{value:,}", percent(part)] for part, value, true, said in wrong[:10]]
    table = html.table(
        ["true", "predicted", "images", "of the class"], rows, numbers=(2, 3), caption="The most frequent mistakes"
    )
    drawn = html.figure(
        "Test images by true and by predicted class",
        chart.draw(),
        "The final student on the test set. The shade is the share of a true class's images.",
    )
    return html.grid(drawn, table if rows else html.tag("p", "No mistake."))


def clients(record: RunRecord) -> Markup:
    """Return each client's curve, the final figures, and the clients that failed."""
    held_out = _of_clients("Accuracy on what each client holds out", record.clients)
    own = {
        int(name.split("/")[0].removeprefix("client_")): record.column(name)
        for name in record.rows[-1]
        if name.startswith("client_") and name.endswith("/balanced_accuracy")
    }
    students = _of_clients("Balanced test accuracy of each client's student", own)
    parts = [part for part in (held_out, students) if part]
    final = record.summary.get("client_val_accuracy")
    if final:
        known = sorted((value, client) for client, value in enumerate(final) if value is not None)
        if known:
            rows = [[client, percent(value)] for value, client in known[:MAX_ROWS]]
            some = (
                f"{len(rows)} of {len(known)} clients, the lowest first"
                if len(known) > len(rows)
                else "the lowest first"
            )
            parts.append(
                html.table(["client", "final accuracy on what it holds out"], rows, numbers=(1,), caption=some)
            )
    if members := record.summary.get("clients"):
        rows = [
            [
                m["client"],
                m["student"],
                f"{m['parameters']:,}",
                f"{m['num_examples']:,}",
                percent(m["balanced_accuracy"]),
            ]
            for m in members
        ]
        header = ["client", "student", "parameters", "images", "balanced accuracy"]
        parts.append(html.table(header, rows, numbers=(2, 3, 4)))
    failures = record.failures()
    if failures:
        rows = [
            [int(row["round"]) + 1 if row.get("round", "").isdigit() else "", row.get("client"), row.get("reason")]
            for row in failures
        ]
        title = f"{len(rows)} failures of clients" + (f", the last {MAX_ROWS}" if len(rows) > MAX_ROWS else "")
        parts.append(html.table(["round", "client", "reason"], rows[-MAX_ROWS:], caption=title))
    return html.grid(*parts) if parts else Markup("")


def _of_clients(title: str, clients: Mapping[int, Sequence[float | None]]) -> Markup:
    if len(clients) <= MAX_CURVES:
        return _chart(
            title,
            [Series(f"client {client}", values, i, bridges=True) for i, (client, values) in enumerate(clients.items())],
        )
    by_round = [[v for v in values if v is not None] for values in zip(*clients.values(), strict=True)]
    mean = [sum(values) / len(values) if values else None for values in by_round]
    thin = [
        Series(f"client {client}", values, 5, is_thin=True, bridges=True)
        for client, values in list(clients.items())[:MAX_THIN]
    ]
    caption = "A thin line is a client" + (f", for {MAX_THIN} of {len(clients):,}." if len(clients) > MAX_THIN else ".")
    return _chart(title, [*thin, Series("mean over clients", mean, 0)], caption)


def costs(record: RunRecord) -> Markup:
    """Return the bytes and seconds in all and by round, and what else the last round has."""
    up, down, seconds = traffic(record)
    rounds, last = len(record.rows), record.rows[-1]
    cohorts = [len(str(row["cohort"]).split()) for row in record.rows if "cohort" in row]
    told = {
        "sent up": f"{format_bytes(up)} ({up:,} bytes)",
        "sent down": f"{format_bytes(down)} ({down:,} bytes)",
        "seconds of all rounds": format_seconds(seconds),
        "seconds of a round": f"{seconds / rounds:.3g}",
    }
    if cohorts:
        least, most = min(cohorts), max(cohorts)
        told["clients in a round"] = str(most) if least == most else f"{least} to {most}"
    if record.teacher:
        sent = [format_bytes(record.teacher.get(f"head_bytes_{way}", 0)) for way in ("up", "down")]
        told["for the teacher's head"] = f"{sent[0]} up, {sent[1]} down"
    known = ("round", "cohort", "client_val_accuracy", "bytes_up", "bytes_down", "seconds")
    further = {
        name: html.number(value)
        for name, value in last.items()
        if name not in known and not name.startswith(("accuracy/", "client_")) and not isinstance(value, str)
    }
    megabytes = [
        Series("MB up", [None if v is None else v / 1e6 for v in record.column("bytes_up")], 0),
        Series("MB down", [None if v is None else v / 1e6 for v in record.column("bytes_down")], NUM_COLORS + 1),
    ]
    chart = _chart("Seconds of a round", [Series("seconds", record.column("seconds"), 0)], is_share=False)
    traffic_chart = _chart("Megabytes of a round", megabytes, is_share=False)
    parts = [html.facts("In all", told), html.facts("The last round", further)]
    return html.grid(*parts, *((chart, traffic_chart) if rounds > 1 else ()))


def traffic(record: RunRecord) -> tuple[int, int, float]:
    """Return the bytes up and down, and the seconds of all rounds."""
    up, down, seconds = (
        sum(finite(row.get(name)) or 0 for row in record.rows) for name in ("bytes_up", "bytes_down", "seconds")
    )
    return int(record.summary.get("bytes_up", up)), int(record.summary.get("bytes_down", down)), seconds


def _chart(title: str, series: Sequence[Series], caption: str = "", is_share: bool = True) -> Markup:
    """Return a chart of the series that have values, with its legend; nothing without any."""
    shown = [each for each in series if any(value is not None for value in each.values)]
    if not shown:
        return Markup("")
    named = [each for each in shown if not each.is_thin]
    return html.figure(title, curves(title, shown, is_share=is_share), caption, legend(named) if named else Markup(""))
