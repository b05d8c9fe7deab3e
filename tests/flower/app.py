"""A small run as a Flower app has it, and the same run on a grid of this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fedkd.flower.apps import server_run
from fedkd.flower.local_grid import Fault, LocalGrid
from fedkd.flower.run_files import Run

BASE = {
    "seed_everything": 1,
    "data": {
        "dataset": {"class_path": "Subset", "init_args": {"dataset": "Digits", "train_fraction": 0.15}},
        "num_clients": 4,
        "partitioner": {"class_path": "Dirichlet", "init_args": {"alpha": 0.5}},
        "batch_size": 32,
        "public_fraction": 0.3,
    },
    "model": {"student": "cnn", "teacher": "digits-tiny", "loss": {"class_path": "KD"}},
    "federation": {"rounds": 2},
    "trainer": {"max_epochs": 1, "accelerator": "cpu"},
}


def app(folder: Path, arguments: str = "", **config: Any) -> dict[str, Any]:
    """Write a run's YAML and return the app's configuration."""
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(BASE))
    return {"config": str(path), "arguments": arguments, **config}


def nodes(count: int, total: int | None = None, **config: Any) -> dict[int, dict[str, Any]]:
    """Return the configurations of ``count`` SuperNodes of ``total``."""
    parts = count if total is None else total
    return {100 + i: {"partition-id": i, "num-partitions": parts, **config} for i in range(count)}


def on_grid(
    config: dict[str, Any],
    there: dict[int, dict[str, Any]],
    fault: Fault | None = None,
    options: dict[str, Any] | None = None,
) -> tuple[Run, LocalGrid]:
    """Return the run with a grid of nodes as its backend, and the grid; ``options`` are the app's configuration."""
    grid = LocalGrid(there, config, fault)
    run = server_run(grid, {"start-timeout": 30, **config, **(options or {})})
    run.federation.backend.poll_seconds = 0.01
    return run, grid


def fit(run: Run, run_dir: Path, ckpt_path: str | None = None) -> dict[str, Any]:
    """Run it."""
    run.federation.run_dir = run_dir
    return run.federation.fit(run.module, run.data, ckpt_path=ckpt_path)
