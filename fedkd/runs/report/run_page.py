"""The page of one run: what was run, how it went, what it ended with, and how to use it."""

from __future__ import annotations

import shlex
from pathlib import Path

from fedkd.core.storage import write_atomically
from fedkd.core.units import format_bytes, format_seconds
from fedkd.runs.record import RunRecord, read_run
from fedkd.runs.report import page as html
from fedkd.runs.report import results
from fedkd.runs.report.page import Markup, percent
from fedkd.runs.report.settings import partition, settings

NAME = "report.html"


def write_report(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a run.

    Args:
        run_dir: The run directory. The run may be finished, stopped, or still running.
        out: The file; None is ``report.html`` in the run directory.

    Returns:
        The file.

    Raises:
        MissingResourceError: If there is no run.
        FedKDError: If no round is finished, or a file is damaged.
    """
    record = read_run(run_dir)
    path = record.folder / NAME if out is None else Path(out).expanduser()
    write_atomically(path, run_page(record))
    return path


def run_page(record: RunRecord) -> str:
    """Return the page of a run as HTML."""
    return html.page(
        f"{record.folder.resolve().name} - fedkd",
        _head(record),
        html.section("What was run", settings(record)),
        html.section("The partition", partition(record)),
        html.section("By round", results.by_round(record)),
        html.section("By class", results.by_class(record)),
        html.section("Confusion matrix", results.confusion(record)),
        html.section("Clients", results.clients(record)),
        html.section("Bytes and seconds", results.costs(record)),
        html.section("How to load it and go on", _usage(record)),
        html.section("Versions and files", _files(record)),
    )


def _head(record: RunRecord) -> Markup:
    """Return the title and the figures that count most."""
    rounds, balanced = len(record.rows), record.column("balanced_accuracy")
    strategy = str(record.settings.get("strategy", "")).partition("(")[0]
    state = "finished" if record.is_finished else "not finished"
    data = str(record.settings.get("data", "")).partition("(")[0]
    said = [f"{rounds} round{'s' if rounds > 1 else ''}, {state}", strategy, data]
    found = [(percent(balanced[-1]) or "-", "balanced accuracy after the last round")]
    if (accuracy := record.column("accuracy")[-1]) is not None:
        found.append((percent(accuracy), "accuracy"))
    if worst := [(value, name) for name, value in record.per_class.items() if value is not None]:
        found.append((percent(min(worst)[0]), f"worst class: {min(worst, key=lambda pair: pair[0])[1]}"))
    if record.teacher:
        found.append((percent(record.teacher.get("balanced_accuracy")), "balanced accuracy of the teacher"))
    best = max(((value, i) for i, value in enumerate(balanced) if value is not None), default=None)
    if best is not None and rounds > 1:
        found.append((percent(best[0]), f"best round: {best[1] + 1}, chosen on the test set, so optimistic"))
    up, down, seconds = results.traffic(record)
    found.append((format_bytes(up), f"sent up; {format_bytes(down)} down"))
    found.append((format_seconds(seconds), "in all rounds"))
    title = html.joined(
        [html.tag("h1", record.folder.resolve().name), html.tag("p", " · ".join(filter(None, said)), class_="soft")]
    )
    return html.joined([title, *(html.tag("p", note, class_="note") for note in record.notes), html.tiles(found)])


def _usage(record: RunRecord) -> Markup:
    """Return the commands and the lines of Python that use what the run left."""
    folder, spec = str(record.folder), record.student()
    quoted, parts = shlex.quote(folder), []
    has_config = (record.folder / "config.yaml").is_file()
    clients = sorted((record.folder / "clients").glob("*/student.safetensors"))
    if spec or clients:
        where = folder if spec else str(clients[0].parent)
        own = ", student=MyStudent()" if spec and spec.get("student") is None else ""
        shape = ", ".join(map(str, spec.get("image_shape", ("C", "H", "W"))))
        lines = [
            "import fedkd",
            f"student = fedkd.load_student({where!r}{own})",
            f"logits = student(images)  # images (B, {shape}) in [0, 1] -> logits (B, {len(record.classes) or 'K'})",
        ]
        parts += [html.tag("h3", "Load the student in Python"), html.code("\n".join(lines))]
        if own:
            parts.append(
                html.tag("p", "The student is a module of the user's: give one of the same kind.", class_="soft")
            )
        if has_config:
            commands = [f"fedkd test {shlex.quote(where)}", f"fedkd predict {shlex.quote(where)} --images FOLDER"]
            parts += [html.tag("h3", "Test it, and predict"), html.code("\n".join(commands))]
    more = f" --federation.rounds {2 * len(record.rows)}" if record.is_finished else ""
    if has_config:
        config = shlex.quote(str(record.folder / "config.yaml"))
        go_on = f"fedkd fit --config {config} --run_dir {quoted} --ckpt_path last{more}"
    else:
        rounds = 2 * len(record.rows) if record.is_finished else "..."
        go_on = (
            f"federation = fedkd.Federation(rounds={rounds}, run_dir={folder!r})  # and the arguments that it had\n"
            'federation.fit(module, data, ckpt_path="last")'
        )
    parts += [html.tag("h3", "Go on for more rounds" if record.is_finished else "Go on"), html.code(go_on)]
    parts += [
        html.tag("h3", "Make this page again, or compare runs"),
        html.code(f"fedkd report {quoted}\nfedkd report {quoted} OTHER_RUN"),
    ]
    return html.joined(parts)


def _files(record: RunRecord) -> Markup:
    versions = {name: value or "not installed" for name, value in (record.summary.get("versions") or {}).items()}
    files = {
        "metrics.csv": "a row a round",
        "summary.json": "the results and all settings",
        "partition.json": "which client has which images",
        "student.safetensors": "the student's weights",
        "best.safetensors": "the best student's weights, by the callback SaveBest",
        "clients.csv": "a row a round and client, by the callback ClientTable",
        "clients": "each client's own student",
        "tensorboard": "the logger's events",
        "config.yaml": "the command line's configuration; a run with it gives the same weights",
        "failures.csv": "clients that a round went on without",
        "checkpoints": "the last two rounds, to go on from",
    }
    there = {name: text for name, text in files.items() if (record.folder / name).exists()}
    parts = [html.grid(html.facts("Versions", versions), html.facts("In the run directory", there))]
    config = record.folder / "config.yaml"
    if config.is_file():
        parts.append(html.fold("config.yaml", html.code(config.read_text(encoding="utf-8", errors="replace"))))
    return html.joined(parts)
