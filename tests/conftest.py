"""What every test shares: a cache of its own, and the real data when it lies beside the repository."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two threads a process collapse beside a neighbor

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

import fedkd
from fedkd.client import works
from fedkd.students import students
from fedkd.teachers.registry import teachers

# a process that a shell starts in the background ignores Ctrl-C, and so would the commands that tests stop by it
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# the same examples in every run, and few, since all tests together take minutes
settings.register_profile("suite", derandomize=True, database=None, deadline=None, max_examples=60)
settings.load_profile("suite")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep tests away from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "FEDKD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test register students and teachers that are gone after it."""
    for registry in (students, teachers):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))


@pytest.fixture(scope="session")
def pool() -> Iterator[fedkd.ProcessPool]:
    """Return a pool of two processes, which stay for all tests."""
    with fedkd.ProcessPool(workers=2) as kept:
        yield kept


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> set[type]:
    """Return the set of the types of Trainers that clients in this process used."""
    used, fit = set(), works.fit
    monkeypatch.setattr(works, "fit", lambda trainer, *rest: (used.add(type(trainer)), fit(trainer, *rest)))
    return used


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real data beside the repository, or skip."""
    path = Path(__file__).resolve().parents[1].parent / "shared"
    if not path.is_dir():
        pytest.skip(f"needs the real data in {path}, which is not there")
    return path
