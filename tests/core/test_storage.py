"""Files are replaced completely or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedkd.core.errors import FedKDError
from fedkd.core.storage import cache_dir, replacing, write_atomically


def test_write_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomically(path, "old")
    write_atomically(path, "n\u00e9w")
    assert path.read_bytes() == b"n\xc3\xa9w"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of the n")
            assert temporary.parent == tmp_path
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_without_a_home_the_cache_is_where_it_is_told(tmp_path: Path) -> None:
    """As in a container whose user has no entry in passwd."""
    code = (
        "import os, pwd; pwd.getpwuid = lambda uid: (_ for _ in ()).throw(KeyError(uid));"
        "from fedkd.core.storage import cache_dir; print(cache_dir('a'))"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    told = {**environment, "FEDKD_CACHE": str(tmp_path)}
    found = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True)
    assert found.stdout == f"{tmp_path / 'a'}\n", found.stderr
    environment.pop("FEDKD_CACHE", None)
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert found.stderr.splitlines()[-1].endswith("There is no home folder for the cache: set FEDKD_CACHE to a folder.")


def test_a_cache_folder_that_cannot_be_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path / "file"))
    with pytest.raises(FedKDError, match=r"cannot be made: .*Set FEDKD_CACHE"):
        cache_dir("teachers")


def test_the_cache_root_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("FEDKD_CACHE", raising=False)
    assert cache_dir("images") == tmp_path / "xdg" / "fedkd" / "images"
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path / "own"))
    assert cache_dir("a", "b") == tmp_path / "own" / "a" / "b"
    assert (tmp_path / "own" / "a" / "b").is_dir()
