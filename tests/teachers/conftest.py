"""What the teachers' tests share: tiny checkpoints, a photograph, and a few images."""

from __future__ import annotations

import importlib
import linecache
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType

import numpy as np
import pytest
import torch
from tiny_checkpoints import build
from torch import Tensor

from fedkd.data import ImageSet


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return a function from a family's name to a tiny checkpoint's folder, made once."""
    made: dict[str, str] = {}

    def get(family: str) -> str:
        if family not in made:
            made[family] = str(build(family, tmp_path_factory.mktemp(family)))
        return made[family]

    return get


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """Return a real photograph, uint8 (H, W, 3), oblong."""
    datasets = pytest.importorskip("sklearn.datasets")
    return np.ascontiguousarray(datasets.load_sample_image("china.jpg"))  # (427, 640, 3)


@pytest.fixture
def images() -> ImageSet:
    """Return forty small images of three classes, each bright in a channel of its own."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(40) % 3
    noise: Tensor = torch.randint(0, 60, (40, 3, 8, 8), generator=generator)
    bright = 150 * torch.nn.functional.one_hot(targets, 3)[:, :, None, None]  # (40, 3, 1, 1)
    return ImageSet((noise + bright).to(torch.uint8), targets, ("cat", "dog", "bird"))


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Return a function that imports modules from texts, afresh, and returns the one named user."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def load(user: str, others: Mapping[str, str] = MappingProxyType({})) -> ModuleType:
        for name, text in {"user": user, **others}.items():
            path = tmp_path / f"{name.replace('.', '/')}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            for each in (name, name.partition(".")[0]):
                monkeypatch.delitem(sys.modules, each, raising=False)
        linecache.clearcache()
        importlib.invalidate_caches()
        return importlib.import_module("user")

    return load
