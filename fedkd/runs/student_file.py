"""``student.safetensors``: a run's student, with what is needed to build it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedkd import students
from fedkd.core.errors import FedKDError, MissingResourceError, in_one_line
from fedkd.core.messages import metadata_of
from fedkd.core.sealed import read_sealed, sealed
from fedkd.core.storage import write_atomically
from fedkd.core.tensors import load_state
from fedkd.students.probe import probe

NAME = "student.safetensors"


def write_student(folder: Path, tensors: Mapping[str, Tensor], spec: Mapping[str, Any]) -> None:
    """Write a student.

    Args:
        folder: The run directory, or that of one client's student in it.
        tensors: The student's state and constants.
        spec: JSON-able: ``student`` (arguments of `fedkd.students.create`, or None for a module of the user's),
            ``takes_logits`` (whether it is in a `fedkd.students.LogitsStudent`), ``projection`` (of
            `fedkd.students.ProjectedStudent`, or None), ``closed_form`` (of `fedkd.students.ClosedFormStudent`, or
            None), ``classes``, ``image_shape``.
    """
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    write_atomically(folder / NAME, sealed(save(contiguous, metadata={"fedkd": json.dumps(spec)})))


def read_spec(run_dir: str | Path) -> dict[str, Any]:
    """Return what was saved beside a run's student: ``student``, ``classes``, ``image_shape``.

    Raises:
        MissingResourceError: If the run has no student.
        DamagedFileError: If its file is damaged.
    """
    run_dir = Path(run_dir).expanduser()
    path = run_dir / NAME
    if not path.is_file():
        if (own := Path(run_dir) / "clients").is_dir():
            one = str(own / "0")
            raise MissingResourceError(f"{str(run_dir)!r} has a student for each client: name one, such as {one!r}.")
        raise MissingResourceError(f"No student at {str(path)!r}: the run is not there, or has not finished.")
    try:
        return json.loads(metadata_of(read_sealed(path))["fedkd"])
    except KeyError as error:
        raise FedKDError(f"{str(path)!r} is not a student that fedkd saved.") from error


def load_student(run_dir: str | Path, student: nn.Module | None = None) -> nn.Module:
    """Load a run's global student, in eval mode.

    Args:
        run_dir: The run directory.
        student: The module to load the weights into; needed where the run's student was not given by name.

    Returns:
        The student: images (B, C, H, W) in [0, 1] to logits (B, K), the classes in the order of `read_spec`.

    Raises:
        MissingResourceError: If the run has no student.
        FedKDError: If the student was a module of the user's and none is given, or it does not fit the weights.
    """
    spec = read_spec(run_dir)
    if student is None:
        if spec["student"] is None:
            raise FedKDError(f"The student of {str(run_dir)!r} was not made by name: pass load_student(..., student=).")
        student = students.create(**spec["student"])
    if spec.get("takes_logits") and not isinstance(student, students.LogitsStudent):
        student = students.LogitsStudent(student)
    if any(is_lazy(value) for value in student.parameters()):
        with torch.random.fork_rng(devices=[]):  # lazy parts draw weights, which the file's then replace
            probe(student, tuple(spec["image_shape"]))
    tensors = load(read_sealed(Path(run_dir).expanduser() / NAME))
    if spec.get("projection"):
        student = students.ProjectedStudent.restore(student, spec["projection"], tensors)
    if spec.get("closed_form"):
        student = students.ClosedFormStudent.restore(student, spec["closed_form"])
    student.to(memory_format=torch.channels_last)  # as it was trained
    try:
        load_state(student, _renamed(tensors, student), {}, keep_dtypes=True)
    except RuntimeError as error:
        raise FedKDError(
            f"The given student does not fit the weights of {str(run_dir)!r}: {in_one_line(error)}"
        ) from error
    return student.eval()


COMPILED = "_orig_mod."
"""What torch.compile puts before the names of what it wraps."""


def _renamed(tensors: dict[str, Tensor], student: nn.Module) -> dict[str, Tensor]:
    """Return tensors under the student's own names, where it or the one that was saved is compiled."""
    own = {name.replace(COMPILED, ""): name for name in student.state_dict()}
    return {own.get(plain := name.replace(COMPILED, ""), plain): value for name, value in tensors.items()}
