"""The teacher that ships with fedkd: a real checkpoint folder, small, good, and trained on the public split alone."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from protocols import prepare

import fedkd.teachers
from fedkd.data import Digits, FederatedDataModule
from fedkd.teachers import FeatureTeacher, create, teachers

FOLDER = Path(fedkd.teachers.__file__).parent / "checkpoints" / "digits"


def script() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "examples" / "train_digits_teacher.py"
    spec = importlib.util.spec_from_file_location("train_digits_teacher", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_is_an_ordinary_small_checkpoint() -> None:
    assert teachers["digits-tiny"].checkpoint == str(FOLDER)
    names = {path.name for path in FOLDER.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= names
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_000_000
    one, two = create("digits-tiny"), FeatureTeacher(str(FOLDER))
    assert type(one) is FeatureTeacher
    assert one.fingerprint() == two.fingerprint()


def test_teaches_clients_images_that_it_never_saw(tmp_path: Path) -> None:
    data = FederatedDataModule(Digits(), public_fraction=0.3)
    data.setup()
    outputs = prepare(create("digits-tiny"), data.train, data.test, data.shards, cache=tmp_path)
    assert outputs.balanced_accuracy >= 0.97
    assert f"{outputs.accuracy:.2%}" in (FOLDER / "README.md").read_text()  # what the model card claims


def test_its_script_trains_on_the_public_split_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, used = script(), []

    def train(images: torch.Tensor, targets: torch.Tensor, num_classes: int, epochs: int) -> torch.nn.Module:
        used.append((images, targets))
        return real(images, targets, num_classes, epochs)

    real = module.train
    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(sys, "argv", ["train", "--epochs", "1", "--output", str(tmp_path)])
    module.main()
    first = (tmp_path / "model.safetensors").read_bytes()
    module.main()
    assert (tmp_path / "model.safetensors").read_bytes() == first, "the same seed must give the same weights"
    data = FederatedDataModule(Digits(), public_fraction=0.3)
    data.setup()
    assert len(np.intersect1d(data.public_indices, np.concatenate(data.shards))) == 0
    public = data.train.subset(data.public_indices)
    expected = create(str(tmp_path)).preprocess(public.images.float() / 255)  # type: ignore[operator]
    for images, targets in used:
        assert torch.equal(images, expected)
        assert torch.equal(targets, public.targets)
    assert len(used) == 2


def test_augmentation_moves_every_image_by_itself() -> None:
    torch.manual_seed(0)
    image = torch.zeros(1, 1, 32, 32)
    image[..., 12:20, 12:20] = 1
    batch = script().augment(image.expand(64, -1, -1, -1))
    mass = batch.sum((1, 2, 3))
    assert mass.min() > 45  # 64, scaled by at most 15% a side, and never pushed out
    assert mass.max() < 90
    assert len(torch.unique(batch.flatten(1), dim=0)) == 64
    rows = (batch.sum(3) * torch.arange(32)).sum((1, 2)) / mass  # where each one's middle is
    assert rows.std() > 1
    assert (rows - 15.5).abs().max() < 6.5
