"""What stands where in a run directory, for those that read one without torch."""

from __future__ import annotations

import re
from pathlib import Path

CHECKPOINT = re.compile(r"round_(\d{6,})\.ckpt")
MAX_CONFUSION_CLASSES = 100
"""With more classes ``summary.json`` has no confusion matrix: at 1000 it would be 2 MB."""
RECORD = "run"  # where a checkpoint's metadata keep what is not the state


def round_checkpoints(run_dir: Path) -> dict[int, Path]:
    """Return a run's round checkpoints by the number of finished rounds, oldest first."""
    found = {path: CHECKPOINT.fullmatch(path.name) for path in (run_dir / "checkpoints").glob("round_*.ckpt")}
    return dict(sorted((int(name[1]), path) for path, name in found.items() if name))
