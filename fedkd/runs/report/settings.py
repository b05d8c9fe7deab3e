"""The part of a run's page that says what was run: its settings, teacher and partition."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fedkd.runs.record import RunRecord, finite
from fedkd.runs.report import page as html
from fedkd.runs.report.heat_map import HeatMap
from fedkd.runs.report.page import Markup, percent

GROUPS = {
    "Data": (
        *("data", "num_clients", "partitioner", "val_fraction", "public_fraction", "shared images", "batches"),
        *("data set", "partition"),
    ),
    "Model": ("architecture", "student", "teacher", "loss", "label loss", "optimizer"),
    "Federation": (
        *("strategy", "rounds", "clients_per_round", "min_clients", "teaching", "lr_schedule", "trainer", "seed"),
        *("backend", "device"),
    ),
}
"""The settings in the order of the page. Others follow the last of them."""

HASHES = ("data set", "partition", "student")
"""Settings that are the hash of something."""

MAX_SETTING = 400
"""Characters of a setting; a whole architecture would fill the page."""

MAX_CELLS = 40_000
"""Cells in the plot of the partition. With more clients by classes it has the first clients alone."""


def settings(record: RunRecord) -> Markup:
    """Return the settings in tables, and the teacher."""
    left = dict(record.settings)
    tables = {}
    for group, names in GROUPS.items():
        tables[group] = {setting_name(name): shortened(left.pop(name)) for name in names if name in left}
    tables["Federation"] |= {name: shortened(value) for name, value in left.items()}
    teacher = {
        name.replace("_", " "): shortened(record.teacher[name])
        for name in ("name", "head", "loss", "clients_send", "shared_images")
        if record.teacher.get(name)
    }
    teacher |= {
        name.replace("_", " "): percent(finite(record.teacher[name]))
        for name in ("balanced_accuracy", "accuracy")
        if name in record.teacher
    }
    if not any([*tables.values(), teacher]):
        return Markup("")
    data, model, federation = (html.facts(title, values) for title, values in tables.items())
    return html.grid(html.stack(data, model), html.stack(federation, html.facts("Teacher", teacher)))


def partition(record: RunRecord) -> Markup:
    """Return the plot of the partition, and its numbers."""
    found = record.json("partition.json")
    counts, classes = found.get("counts"), [str(name) for name in found.get("classes", ())]
    if not counts or not classes:
        return Markup("")
    most = max(max(row) for row in counts) or 1
    drawn = counts[: max(1, MAX_CELLS // len(classes))]
    chart = HeatMap(
        "Training images by class and client",
        rows=classes,
        columns=[str(client) for client in range(len(drawn))],
        row_title="class",
        column_title="client",
        shades=[[(row[k] / most) ** 0.5 for row in drawn] for k in range(len(classes))],  # small shards are visible
        texts=[[f"{row[k]:,}" for row in drawn] for k in range(len(classes))],
        totals=[sum(row) for row in drawn],
        row_height=min(24.0, max(2.0, 420 / len(classes))),
    )
    sizes = [sum(row) for row in counts]
    told = {
        "clients": f"{len(counts):,}",
        "training images": f"{sum(sizes):,}",
        "classes": f"{len(classes):,}",
        "clients without images": len(found.get("empty_clients", ())),
        "held out for validation": f"{found.get('validation', 0):,}",
        "public images": f"{found.get('public', 0):,}",
        "shared images": f"{found.get('shared_images', 0):,}",
    }
    told = {name: value for name, value in told.items() if str(value) != "0"}
    skew = found.get("skew", {})
    names = {"sizes": "images", "effective_classes": "effective classes", "js_distance": "JS distance to all together"}
    rows = [
        [
            text,
            *(
                html.number(skew[name].get(key)) if skew[name].get(key) is not None else ""
                for key in ("min", "median", "max")
            ),
        ]
        for name, text in names.items()
        if name in skew
    ]
    table = html.table(["of a client", "min", "median", "max"], rows, numbers=(1, 2, 3)) if rows else Markup("")
    caption = "Above: all images of a client. The stronger the color, the more images; an empty cell has none."
    if len(drawn) < len(counts):
        caption += f" These are the first {len(drawn):,} of {len(counts):,} clients."
    plot = html.figure("Training images by class and client", chart.draw(), caption)
    return html.grid(plot, html.stack(html.facts("In numbers", told), table))


def setting_name(name: str) -> str:
    """Return what a page calls a setting."""
    return f"{name} (hash)" if name in HASHES else name.replace("_", " ")


def shortened(value: Any) -> str:
    """Write a setting, which may be a mapping of plain values, in a bounded number of characters."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        value = ", ".join(f"{key}={html.number(each)}" for key, each in value.items()) or "none"
    elif isinstance(value, float):
        value = f"{value:.6g}"
    elif not isinstance(value, str):
        value = json.dumps(value)
    return value if len(value) <= MAX_SETTING else f"{value[: MAX_SETTING - 1]}…"
