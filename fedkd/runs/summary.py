"""A run's own records: its partition, its rounds and its summary."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table
from torch import Tensor

from fedkd.core.messages import ClientUpdate, Metrics
from fedkd.core.notebook import as_html
from fedkd.runs.layout import MAX_CONFUSION_CLASSES
from fedkd.runs.metrics_file import fingerprint_of
from fedkd.teachers import TeacherOutputs
from fedkd.teachers.registry import name_of
from fedkd.training.module import DistillationModule

PACKAGES = ("fedkd", "lightning", "torch", "torchvision", "transformers", "numpy")


ROUND_COLUMNS = (
    *("round", "loss", "accuracy", "balanced_accuracy", "accuracy/*", "train/*"),
    *("num_examples", "num_steps", "bytes_up", "bytes_down", "seconds"),
)
"""The numbers of every row of ``metrics.csv``; ``*`` stands for names of classes, and of terms of the loss."""


def round_row(
    round: int,
    updates: Sequence[ClientUpdate],
    metrics: Metrics,
    *,
    val_accuracy: Mapping[int, float],
    bytes_up: int,
    bytes_down: int,
    seconds: float,
) -> Metrics:
    """Gather one row of ``metrics.csv``: test metrics, training terms weighted by examples, cohort, bytes, seconds.

    Where clients hold images out, ``client_val_accuracy`` has the accuracy of each in one cell: ``0=0.95 3=0.875``. A
    column for each client would make the file as wide as the federation.
    """
    total = sum(update.num_examples for update in updates)
    names = sorted({name for update in updates for name in update.metrics if name.startswith("train/")})
    terms = {name: mean_of_term(name, updates) for name in names}
    return {
        "round": round,
        **metrics,
        **terms,
        **({"client_val_accuracy": each_client(val_accuracy)} if val_accuracy else {}),
        "cohort": " ".join(str(update.client) for update in updates),
        "num_examples": total,
        "num_steps": sum(update.num_steps for update in updates),
        "bytes_up": bytes_up,
        "bytes_down": bytes_down,
        "seconds": round_seconds(seconds),
    }


def mean_of_term(name: str, updates: Sequence[ClientUpdate]) -> float:
    """Return the mean of a training term by examples, over the clients that have it; who takes no step has none."""
    have = [update for update in updates if name in update.metrics]
    return sum(each.metrics[name] * each.num_examples for each in have) / sum(each.num_examples for each in have)


def each_client(values: Mapping[int, float]) -> str:
    """Write a number for each client into one cell, as `fedkd.runs.record.read_each_client` reads it."""
    return " ".join(f"{client}={value:.6g}" for client, value in sorted(values.items()))


def reported(updates: Sequence[ClientUpdate], val_accuracy: Mapping[int, float]) -> dict[int, Metrics]:
    """Return the numbers that each client of a round reported, without its tensors.

    Args:
        updates: Those of the round.
        val_accuracy: Of each client that was evaluated.
    """
    return {
        update.client: {
            "num_examples": update.num_examples,
            "num_steps": update.num_steps,
            **update.metrics,
            **({"val_accuracy": val_accuracy[update.client]} if update.client in val_accuracy else {}),
        }
        for update in updates
    }


def round_seconds(seconds: float) -> float:
    """Return seconds to the millisecond."""
    return float(f"{seconds:.3f}")


class Summary(dict[str, Any]):
    """What `Federation.fit` returns, and ``summary.json`` holds: a dictionary that a notebook shows as a table."""

    def table(self) -> Table:
        """Return the accuracies of student and teacher, overall and for each class."""
        teacher = self["teacher"] or {}
        table = Table(
            title=f"{self['rounds']} round{'s' if self['rounds'] != 1 else ''}, {self['round_seconds']:.1f} s",
            title_justify="left",
        )
        table.add_column("test accuracy")
        table.add_column("student", justify="right")
        table.add_column("best round", justify="right")
        if teacher:
            table.add_column("teacher", justify="right")

        def row(name: str, *values: float | None) -> None:
            shown = ("" if value is None else f"{value:.1%}" for value in values[: len(table.columns) - 1])
            table.add_row(escape(name), *shown)

        for name in ("balanced_accuracy", "accuracy"):
            row(name.replace("_", " "), self[name], self["best"][name], teacher.get(name))
        table.add_section()
        for name, value in self["per_class_accuracy"].items():
            row(name, value, None, teacher.get("per_class_accuracy", {}).get(name))
        return table

    def _repr_html_(self) -> str:
        return as_html(self.table(), f"run directory: {escape(self['run_dir'])}")


def summarize(
    module: DistillationModule,
    history: list[Metrics],
    settings: Mapping[str, Any],
    *,
    outputs: TeacherOutputs | None,
    head_bytes: tuple[int, int],
    seconds: float,
    run_dir: Path,
    confusion: Tensor | None,
    stopped: str | None = None,
) -> Summary:
    """Gather ``summary.json``.

    Args:
        module: The trained module.
        history: One row a round.
        settings: Of the run, by name, one line or number each.
        outputs: The teacher's, if there is one.
        head_bytes: Bytes up and down to adapt the teacher, to fit its head, and to fit the loss to it.
        seconds: Wall-clock time of this call; rounds before a resume are in ``round_seconds``.
        run_dir: The run's folder.
        stopped: Why a callback ended the run before its last round, if one did.
        confusion: Test images by true and by predicted class of the final global student, (K, K); None without one.

    Returns:
        JSON-able values. Accuracies are fractions. ``best`` is chosen by balanced accuracy on the test set, so it is
        optimistic: quote the final figures. ``confusion`` is None for more than
        `MAX_CONFUSION_CLASSES` classes.
    """
    best = max(history, key=lambda row: row["balanced_accuracy"])
    final = history[-1]
    return Summary(
        {
            "run_dir": str(run_dir),
            "rounds": len(history),
            "stopped": stopped,
            "strategy": settings["strategy"],
            "accuracy": final["accuracy"],
            "balanced_accuracy": final["balanced_accuracy"],
            "per_class_accuracy": {name: final[f"accuracy/{name}"] for name in module.classes},
            "confusion": None if confusion is None or len(confusion) > MAX_CONFUSION_CLASSES else confusion.tolist(),
            "best": {key: best[key] for key in ("round", "accuracy", "balanced_accuracy")},
            "teacher": None if outputs is None else describe_teacher(module, outputs, head_bytes),
            "bytes_up": sum(row["bytes_up"] for row in history) + head_bytes[0],
            "bytes_down": sum(row["bytes_down"] for row in history) + head_bytes[1],
            "metrics_sha256": fingerprint_of(history),
            "round_seconds": round_seconds(sum(row["seconds"] for row in history)),
            "seconds": round_seconds(seconds),
            "settings": dict(settings),
            "versions": versions(),
        }
    )


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that decide a run's result."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def describe_teacher(
    module: DistillationModule, outputs: TeacherOutputs, head_bytes: tuple[int, int]
) -> dict[str, Any]:
    """Return the teacher's own results on the test set, and what was fitted to it."""
    return {
        "name": name_of(str(getattr(module.teacher, "checkpoint", type(module.teacher).__qualname__))),
        "accuracy": outputs.accuracy,
        "balanced_accuracy": outputs.balanced_accuracy,
        "per_class_accuracy": dict(zip(module.classes, outputs.per_class_accuracy, strict=True)),
        "head": outputs.chosen,
        "loss": module.loss.resolved(),
        "clients_send": outputs.sends,
        "head_bytes_up": head_bytes[0],
        "head_bytes_down": head_bytes[1],
        "shared_images": outputs.num_shared,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
