"""A finished run's student at work: ``fedkd test`` and ``fedkd predict``."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedkd.core.errors import FedKDError, MissingResourceError
from fedkd.core.messages import Metrics, Weights
from fedkd.core.storage import write_atomically
from fedkd.core.tensors import split_state
from fedkd.data import BatchLoader, FederatedDataModule, ImageSet, Rows
from fedkd.data.images.folder import EXTENSIONS, decode_file, printable, walk
from fedkd.data.images.image_csv import PATH_COLUMNS, ImageTable
from fedkd.runs.student_file import LAST, load_student, read_spec
from fedkd.training.evaluation import evaluate
from fedkd.training.module import DistillationModule
from fedkd.training.trainer import evaluation_arguments, evaluator_for, predict
from fedkd.training.trainer_arguments import check_trainer

SHEET, SHEET_COLUMNS = 24, 6
"""How many images a contact sheet has, and how many in a row."""


def load_module(run_dir: Path, student: nn.Module | None, which: str) -> tuple[DistillationModule, dict[str, Any]]:
    """Load a run's student into a module, and what was saved beside it."""
    spec = read_spec(run_dir, which)
    module = DistillationModule(load_student(run_dir, None if spec["student"] else student, which))
    module.build(spec["classes"], tuple(spec["image_shape"]))
    return module, spec


def load_data(datamodule: FederatedDataModule, spec: Mapping[str, Any]) -> None:
    """Load the data.

    Raises:
        FedKDError: If its classes or image shape are not those that the student was trained on.
    """
    datamodule.prepare_data()
    datamodule.setup()
    for what in ("classes", "image_shape"):
        trained, found = list(spec[what]), list(getattr(datamodule, what))
        if trained != found:
            raise FedKDError(f"The student was trained on {what} {trained}, the data has {found}.")


def evaluate_run(
    run_dir: Path,
    datamodule: FederatedDataModule,
    trainer: Mapping[str, Any],
    student: nn.Module | None = None,
    which: str = LAST,
) -> Metrics:
    """Test a run's student on the datamodule's global test set.

    Args:
        run_dir: The run.
        datamodule: Its test set need not be the run's, but the classes must be.
        trainer: Arguments of the Lightning Trainer.
        student: A module like the run's student, where that was not made by name.
        which: Which of the run's students: see `fedkd.load_student`.

    Returns:
        As `fedkd.training.evaluation.evaluate`.

    Raises:
        FedKDError: If Lightning refuses the Trainer's arguments, or the data's classes are not those that the student
            was trained on.
    """
    check_trainer(evaluation_arguments(trainer))
    module, spec = load_module(run_dir, student, which)
    load_data(datamodule, spec)
    weights = Weights(*split_state(module.student))
    return evaluate(module, weights, Rows.of(datamodule.test), trainer, datamodule.eval_batch_size)


def predict_run(
    run_dir: Path,
    datamodule: FederatedDataModule,
    trainer: Mapping[str, Any],
    images: str | None,
    output: Path,
    student: nn.Module | None = None,
    which: str = LAST,
) -> Path:
    """Write a run's predictions as CSV: a row an image, its name, the predicted class, each class's probability.

    Args:
        run_dir: The run.
        datamodule: Its test set is read when ``images`` is None.
        trainer: Arguments of the Lightning Trainer.
        images: An image file, a folder of them (searched recursively), or a CSV of paths.
        output: The CSV file. `contact_sheet` stands beside it, as PNG.
        student: A module like the run's student, where that was not made by name.
        which: Which of the run's students: see `fedkd.load_student`.

    Returns:
        ``output``.
    """
    check_trainer(evaluation_arguments(trainer))
    module, spec = load_module(run_dir, student, which)
    if images is None:
        load_data(datamodule, spec)
        data, names = datamodule.test, [str(i) for i in range(len(datamodule.test))]
    else:
        files = find_images(Path(images))
        pixels = torch.stack([read_image(file, spec["image_shape"]) for file in files])
        data = ImageSet(pixels, torch.zeros(len(files), dtype=torch.int64), tuple(spec["classes"]))
        names = [printable(file) for file in files]
    loader = BatchLoader(Rows.of(data), batch_size=datamodule.eval_batch_size)
    probabilities = predict(evaluator_for(module, trainer), module, loader)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "prediction", *spec["classes"]])
    for name, row in zip(names, probabilities.tolist(), strict=True):
        best = max(range(len(row)), key=row.__getitem__)
        writer.writerow([name, spec["classes"][best], *(f"{value:.6f}" for value in row)])
    write_atomically(output, text.getvalue())
    write_atomically(output.with_suffix(".png"), contact_sheet(data.images, names, probabilities, spec["classes"]))
    return output


def contact_sheet(images: Tensor, names: Sequence[str], probabilities: Tensor, classes: Sequence[str]) -> bytes:
    """Return a PNG of the images whose predicted class has the lowest probability, at most `SHEET`, lowest first.

    Args:
        images: uint8 (N, C, H, W).
        names: Of each image.
        probabilities: (N, K).
        classes: K names.
    """
    from matplotlib.figure import Figure

    certainty, predicted = probabilities.max(1)
    chosen = certainty.argsort(stable=True)[:SHEET].tolist()
    columns = min(SHEET_COLUMNS, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    figure = Figure(figsize=(1.6 * columns, 2.0 * rows), layout="constrained")
    for number, i in enumerate(chosen):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.imshow(images[i].permute(1, 2, 0).expand(-1, -1, 3).numpy(), interpolation="nearest")
        axes.set_axis_off()
        title = f"{classes[int(predicted[i])]} {certainty[i]:.0%}\n{Path(names[i]).name}"
        axes.set_title(title.replace("$", r"\$"), fontsize=7)  # else matplotlib takes what is between two for a formula
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


def find_images(path: Path) -> list[Path]:
    """Return the image files at or below ``path``, sorted; those below as `fedkd.data.ImageFolder` finds them.

    Args:
        path: An image file, a folder, or a CSV whose first line names a column of paths: one of `PATH_COLUMNS`. Paths
            are relative to the CSV's folder, and keep its order.
    """
    if path.suffix.lower() == ".csv" and path.is_file():
        return listed_images(path)
    if path.is_file():
        return [path]
    found = sorted(path / file.path[1:] for file in walk(path, "")) if path.is_dir() else []
    if not found:
        raise MissingResourceError(f"No images at {str(path)!r}; looked for {', '.join(EXTENSIONS)}.")
    return found


def listed_images(path: Path) -> list[Path]:
    """Return the image files that a CSV lists."""
    table = ImageTable.read(path, ",")
    return [Path(file.path) for file in table.image_files(None, table.column("path", None, PATH_COLUMNS))]


def read_image(path: Path, image_shape: tuple[int, int, int]) -> Tensor:
    """Read one image file as `fedkd.data.ImageFolder` would: uint8 (C, H, W) of the student's shape."""
    import numpy as np
    from PIL import Image

    channels, height, width = image_shape
    pixels = decode_file(path.parent, path.name, (width, height))
    if channels == 1 and len(pixels) == 3:
        pixels = np.asarray(Image.fromarray(np.moveaxis(pixels, 0, -1)).convert("L"))[None]
    return torch.from_numpy(pixels.copy()).expand(channels, -1, -1)
