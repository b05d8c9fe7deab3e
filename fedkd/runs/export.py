"""Export a run's student to where fedkd is not: ONNX, and a program of ``torch.export``."""

from __future__ import annotations

import copy
import importlib.util
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedkd.core.errors import FedKDError, MissingResourceError, in_one_line, unknown_name
from fedkd.core.storage import make_parent, write_atomically
from fedkd.runs.program import as_program, described, quiet, trace
from fedkd.runs.student_file import LAST, load_student, read_spec

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
FORMATS = (*SUFFIXES, "safetensors")
TOLERANCE = 1e-3
"""What a logit may differ by from the student's, in units of the largest logit."""


@dataclass(frozen=True)
class Exported:
    """An exported student.

    Attributes:
        path: The file, or the folder for "safetensors".
        max_difference: The largest difference between its logits and the student's, on random images.
        url: The commit on the hub, if it was pushed there.
    """

    path: Path
    max_difference: float
    url: str | None = None


def export_student(
    run_dir: str | Path,
    format: str = "onnx",
    output: str | Path | None = None,
    which: str = LAST,
    student: nn.Module | None = None,
    push: str | None = None,
) -> Exported:
    """Export a run's student, and compare what was exported with it.

    Args:
        run_dir: The run directory.
        format: "onnx" is for ONNX Runtime and others (``pip install fedkd[export]``). "torch" is a program for
            ``torch.export.load(file).module()``, which needs torch alone. "safetensors" is a folder with the weights,
            their configuration, a model card and that program: see `fedkd.runs.published.PublishedStudent`.
        output: The file or folder; by default it lies in the run directory. A file there is written over.
        which: Which of the run's students: see `fedkd.load_student`.
        student: A module like the run's student, where that was not made by name.
        push: A repository of the HuggingFace hub to push the folder of "safetensors" to.

    Raises:
        MissingResourceError: If there is no student, or a package is not installed.
        FedKDError: If the student cannot be exported, or what was exported computes something else.
    """
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    if push is not None and format != "safetensors":
        raise FedKDError(f"push {push!r} needs the format 'safetensors', got {format!r}.")
    spec = read_spec(run_dir, which)
    given = None if spec["student"] else student
    module = load_student(run_dir, given, which)
    name = "student" if which == LAST else which
    if format == "safetensors":
        from fedkd.runs.published import PublishedStudent, card_facts, push_folder

        path = Path(output or Path(run_dir).expanduser() / f"{name}_published")
        PublishedStudent(spec, module).save_pretrained(path, model_card_kwargs=card_facts(run_dir, spec))
        loaded = PublishedStudent.from_pretrained(path, student=copy.deepcopy(given))
        exported = Exported(path, compare(loaded, module, spec["image_shape"]))
        if push is not None:
            try:
                exported = replace(exported, url=push_folder(path, push))
            except Exception as error:  # whatever the hub's client raises: no network, no token, no such account
                raise FedKDError(
                    f"The student is in {str(path)!r}, but could not be pushed to {push!r}: "
                    f"{type(error).__name__}: {in_one_line(error)}"
                ) from error
        return exported
    path = Path(output or Path(run_dir).expanduser() / f"{name}{SUFFIXES[format]}")
    make_parent(path)
    content = as_onnx(module, spec) if format == "onnx" else as_program(module, spec)
    difference = compare(run_onnx(content) if format == "onnx" else run_program(content), module, spec["image_shape"])
    write_atomically(path, content)
    return Exported(path, difference)


def as_onnx(student: nn.Module, spec: Mapping[str, Any]) -> bytes:
    """Return a student as an ONNX model from ``images`` to ``logits``, with its spec in the metadata.

    Raises:
        MissingResourceError: If a package is not installed.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise MissingResourceError(f"Export to ONNX needs {package}: pip install fedkd[export].")
    program = trace(student, spec["image_shape"])
    with quiet():
        exported: Any = torch.onnx.export(program, dynamo=True, input_names=["images"], output_names=["logits"])
    model = exported.model_proto
    for key, value in described(spec).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value)
    return model.SerializeToString()


def run_program(content: bytes) -> Any:
    """Return the function of an exported program."""
    return torch.export.load(io.BytesIO(content)).module()


def run_onnx(content: bytes) -> Any:
    """Return the function of an ONNX model, by ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def compare(exported: Any, student: nn.Module, image_shape: tuple[int, int, int]) -> float:
    """Return the largest difference of the logits of batches of one and of three random images.

    Raises:
        FedKDError: If it is above `TOLERANCE`.
    """
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    with torch.inference_mode():
        for size in (1, 3):
            images = torch.rand(size, *image_shape, generator=generator)
            expected: Tensor = student(images)
            found: Tensor = exported(images)
            difference = (found - expected).abs().max().item()
            if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
                raise FedKDError(
                    f"What was exported differs from the student: by {difference:.3g} in logits of up to "
                    f"{expected.abs().max().item():.3g}, at a batch of {size}."
                )
            largest = max(largest, difference)
    return largest
