"""What holds for every exported head, and for LoRA: everything that is sent has a byte form that keeps its bits."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Remote
from protocols import adapt, fit_head
from teachers.tiny_checkpoints import build

import fedkd
from fedkd.core.config import describe
from fedkd.data import Digits
from fedkd.teachers import FederatedHead, GaussianPrivacy, LoRA, LoRATeacher, ZeroShotHead

CLASSES, DIM, IMAGES = 4, 6, 120


def text_head() -> ZeroShotHead:
    generator = torch.Generator().manual_seed(1)
    text = torch.nn.functional.normalize(torch.randn(CLASSES, DIM, generator=generator), dim=1)
    return ZeroShotHead(text, 10.0)


# Whatever cannot be made without arguments has a line here.
MAKE = {"ZeroShotRidge": lambda: fedkd.teachers.ZeroShotRidge().starting_from(text_head())}
PRIVATE = ("RidgeHead", "PrototypeHead")
HEADS = [
    name
    for name in fedkd.teachers.__all__
    if inspect.isclass(found := getattr(fedkd.teachers, name))
    and issubclass(found, FederatedHead)
    and not inspect.isabstract(found)
]


def make(name: str, **arguments) -> FederatedHead:
    return MAKE[name]() if name in MAKE else getattr(fedkd.teachers, name)(**arguments)


def features() -> tuple[np.ndarray, torch.Tensor, list[np.ndarray]]:
    """Return features (N, D) in clusters by class, the classes, and the shards of four clients, one of them empty."""
    rng = np.random.default_rng(0)
    targets = np.arange(IMAGES) % CLASSES
    centers = 3 * rng.normal(size=(CLASSES, DIM))
    clients = np.where(rng.random(IMAGES) < 0.7, targets % 2, 3)
    shards = [np.flatnonzero(clients == client) for client in range(4)]
    return (centers[targets] + rng.normal(size=(IMAGES, DIM))).astype(np.float32), torch.from_numpy(targets), shards


@pytest.mark.parametrize(
    ("name", "arguments"),
    [(name, {}) for name in HEADS] + [(name, {"privacy": GaussianPrivacy(8, 1e-5, 1.0)}) for name in PRIVATE],
)
def test_a_head_is_the_same_from_bytes(name, arguments):
    values, targets, shards = features()
    head = make(name, **arguments)
    before = describe(head)
    here = fit_head(head, values, targets, shards, CLASSES)
    there = fit_head(make(name, **arguments), values, targets, shards, CLASSES, backend=Remote())
    logits = here.module(torch.from_numpy(values))
    assert logits.shape == (IMAGES, CLASSES)
    assert torch.equal(logits, there.module(torch.from_numpy(values)))
    assert (here.bytes_up, here.bytes_down) == (there.bytes_up, there.bytes_down)
    assert here.bytes_up > 0
    assert describe(head) == before  # a head keeps nothing in itself


def test_lora_is_the_same_from_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint = str(build("vit", tmp_path / "vit"))
    train, _ = Digits().load()
    shards = [np.arange(0, 20), np.arange(20, 40)]
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def adapted(backend):
        monkeypatch.setenv("FEDKD_CACHE", str(tmp_path / type(backend).__name__))  # nothing is found that was kept
        teacher = LoRATeacher(checkpoint, lora=LoRA(rank=2, rounds=1, lr=0.01))
        teacher.prepare(train.classes)
        return teacher, adapt(teacher, train, shards, backend=backend)

    (here, sent), (there, sent_there) = adapted(fedkd.InProcess()), adapted(Remote())
    assert torch.equal(here.features(images), there.features(images))
    assert sent == sent_there
    assert sent.up > 0
