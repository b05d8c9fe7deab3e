"""A finished run's student at work: ``fedkd test`` and ``fedkd predict``."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedkd.client import make_trainer, quiet_lightning
from fedkd.data import BatchLoader, FederatedDataModule, ImageSet
from fedkd.distillation import DistillationModule
from fedkd.errors import FedKDError, MissingResourceError
from fedkd.server.checkpoint import write_atomically
from fedkd.server.evaluation import evaluate
from fedkd.server.run_dir import load_student, read_spec
from fedkd.tensors import split_state
from fedkd.types import Metrics, ServerState

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}


def test_run(run_dir: Path, datamodule: FederatedDataModule, trainer: Mapping[str, Any]) -> Metrics:
    """Test a run's student on the datamodule's global test set.

    Args:
        run_dir: The run.
        datamodule: Its test set need not be the run's, but the classes must be.
        trainer: Arguments of the Lightning Trainer.

    Returns:
        As `fedkd.server.evaluation.evaluate`.

    Raises:
        FedKDError: If the data's classes are not those that the student was trained on.
    """
    module = DistillationModule(load_student(run_dir))
    datamodule.prepare_data()
    datamodule.setup()
    trained = tuple(read_spec(run_dir)["classes"])
    if tuple(datamodule.classes) != trained:
        raise FedKDError(f"The student knows the classes {list(trained)}, the data has {list(datamodule.classes)}.")
    module.build(datamodule.classes, datamodule.image_shape)
    assert module.student is not None
    return evaluate(module, datamodule, trainer, ServerState(0, *split_state(module.student)))


def predict_run(
    run_dir: Path, datamodule: FederatedDataModule, trainer: Mapping[str, Any], images: str | None, output: Path
) -> Path:
    """Write a run's predictions as CSV: a row an image, its name, the predicted class, each class's probability.

    Args:
        run_dir: The run.
        datamodule: Its test set is read when ``images`` is None.
        trainer: Arguments of the Lightning Trainer.
        images: An image file, or a folder of them (searched recursively).
        output: The CSV file.

    Returns:
        ``output``.
    """
    spec = read_spec(run_dir)
    module = DistillationModule(load_student(run_dir))
    module.build(spec["classes"], tuple(spec["image_shape"]))
    if images is None:
        datamodule.prepare_data()
        datamodule.setup()
        data, names = datamodule.test, [str(i) for i in range(len(datamodule.test))]
    else:
        files = find_images(Path(images))
        pixels = torch.stack([read_image(file, spec["image_shape"]) for file in files])
        data = ImageSet(pixels, torch.zeros(len(files), dtype=torch.int64), tuple(spec["classes"]))
        names = [str(file) for file in files]
    loader = BatchLoader(data, range(len(names)), batch_size=datamodule.eval_batch_size)
    with quiet_lightning():
        arguments = {key: value for key, value in trainer.items() if key not in ("callbacks", "logger")}
        batches = make_trainer(arguments).predict(module, dataloaders=loader)
    probabilities = torch.cat(batches)  # type: ignore[arg-type]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "prediction", *spec["classes"]])
    for name, row in zip(names, probabilities.tolist(), strict=True):
        best = max(range(len(row)), key=row.__getitem__)
        writer.writerow([name, spec["classes"][best], *(f"{value:.6f}" for value in row)])
    write_atomically(output, text.getvalue())
    return output


def find_images(path: Path) -> list[Path]:
    """Return the image files at or below ``path``, sorted."""
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise MissingResourceError(f"No images at {str(path)!r}; looked for {', '.join(sorted(IMAGE_SUFFIXES))}.")
    return found


def read_image(path: Path, image_shape: tuple[int, int, int]) -> Tensor:
    """Read one image file as a uint8 tensor (C, H, W) of the student's shape, resized where needed."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    channels, height, width = image_shape
    try:
        image = Image.open(path).convert("L" if channels == 1 else "RGB")
    except UnidentifiedImageError as error:
        raise FedKDError(f"{str(path)!r} is not an image.") from error
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image)).reshape(height, width, channels)
    return pixels.permute(2, 0, 1)
