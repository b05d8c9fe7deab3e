"""What stands where in a run directory, and what changes no result of a run, for those that import no torch."""

from __future__ import annotations

import re
from pathlib import Path

CHECKPOINT = re.compile(r"round_(\d{6,})\.ckpt")
MAX_CONFUSION_CLASSES = 100
"""With more classes ``summary.json`` has no confusion matrix: at 1000 it would be 2 MB."""
RECORD = "run"  # where a checkpoint's metadata keep what is not the state

ELSEWHERE = frozenset(
    {
        # where a client trains
        *("accelerator", "devices", "num_nodes", "strategy", "sync_batchnorm", "use_distributed_sampler"),
        # what is shown and kept of it
        *("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing", "default_root_dir"),
        *("log_every_n_steps", "profiler", "detect_anomaly", "barebones", "enable_autolog_hparams", "model_registry"),
        # how it is evaluated, which a client does not do
        *("num_sanity_val_steps", "val_check_interval", "check_val_every_n_epoch", "inference_mode"),
        *("limit_val_batches", "limit_test_batches", "limit_predict_batches"),
        # how fast it is
        *("benchmark", "deterministic", "reload_dataloaders_every_n_epochs"),
    }
)
"""Trainer arguments that change no result: a run may go on with others. Every other argument counts."""


def run_of(folder: Path) -> Path:
    """Return the run directory that a student's folder belongs to: for ``RUN/clients/K`` of several students ``RUN``.

    A run may itself stand in a folder ``clients``: it has a configuration, or rows of metrics.
    """
    is_run = any((folder / name).is_file() for name in ("config.yaml", "metrics.csv"))
    return folder if is_run or folder.parent.name != "clients" else folder.parents[1]


def round_checkpoints(run_dir: Path) -> dict[int, Path]:
    """Return a run's round checkpoints by the number of finished rounds, oldest first."""
    found = {path: CHECKPOINT.fullmatch(path.name) for path in (run_dir / "checkpoints").glob("round_*.ckpt")}
    return dict(sorted((int(name[1]), path) for path, name in found.items() if name))
