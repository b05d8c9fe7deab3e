"""What every test shares: a cache of its own, and the real data when it lies beside the repository."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep tests away from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "FEDKD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real data beside the repository, or skip."""
    path = Path(__file__).resolve().parents[1].parent / "shared"
    if not path.is_dir():
        pytest.skip(f"needs the real data in {path}, which is not there")
    return path
