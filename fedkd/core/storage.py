"""Where fedkd keeps what it can compute again: decoded images and teacher outputs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir(*parts: str) -> Path:
    """Return a folder of fedkd's cache, made if it is not there.

    The root is ``$FEDKD_CACHE``, else ``$XDG_CACHE_HOME/fedkd``, else ``~/.cache/fedkd``.

    Args:
        parts: Folders below the root.
    """
    xdg = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = Path(os.environ.get("FEDKD_CACHE") or Path(xdg) / "fedkd").expanduser()
    path = root.joinpath(*parts)
    path.mkdir(parents=True, exist_ok=True)
    return path
