"""``student.safetensors``: a run's student, with what is needed to build it again."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedkd import students
from fedkd.core.errors import FedKDError, MissingResourceError, in_one_line, unknown_name
from fedkd.core.messages import metadata_of
from fedkd.core.sealed import read_sealed, sealed
from fedkd.core.storage import write_atomically
from fedkd.core.tensors import load_state
from fedkd.students.features import plain_name
from fedkd.students.probe import probe

LAST = "last"
"""Which student of a run is that of the last round."""


def student_path(folder: str | Path, which: str = LAST) -> Path:
    """Return the file of a student in a run directory.

    Args:
        folder: The run directory.
        which: "last" is ``student.safetensors``; a name is that under which a callback saved it, such as "best".
    """
    return Path(folder).expanduser() / f"{'student' if which == LAST else which}.safetensors"


def write_student(path: Path, tensors: Mapping[str, Tensor], spec: Mapping[str, Any]) -> None:
    """Write a student.

    Args:
        path: The file: see `student_path`.
        tensors: The student's state and constants.
        spec: JSON-able: ``student`` (arguments of `fedkd.students.create`, or None for a module of the user's),
            ``takes_logits`` (whether it is in a `fedkd.students.LogitsStudent`), ``projection`` (of
            `fedkd.students.ProjectedStudent`, or None), ``closed_form`` (of `fedkd.students.ClosedFormStudent`, or
            None), ``classes``, ``image_shape``; and the ``round`` of a student that a callback saved.
    """
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    write_atomically(path, sealed(save(contiguous, metadata={"fedkd": json.dumps(spec)})))


def read_spec(run_dir: str | Path, which: str = LAST) -> dict[str, Any]:
    """Return what was saved beside a run's student: ``student``, ``classes``, ``image_shape``.

    Raises:
        MissingResourceError: If the run has no student.
        DamagedFileError: If its file is damaged.
    """
    path = student_path(run_dir, which)
    if not path.is_file():
        if (own := path.parent / "clients").is_dir():
            one = str(own / "0")
            raise MissingResourceError(
                f"{str(path.parent)!r} has a student for each client: name one, such as {one!r}."
            )
        saved = sorted(
            LAST if each == student_path(run_dir) else each.stem for each in path.parent.glob("*.safetensors")
        )
        if saved:
            raise MissingResourceError(f"{str(path.parent)!r}: {unknown_name('student', which, saved)}")
        raise MissingResourceError(f"No student at {str(path)!r}: the run is not there, or has not finished.")
    try:
        return json.loads(metadata_of(read_sealed(path))["fedkd"])
    except KeyError as error:
        raise FedKDError(f"{str(path)!r} is not a student that fedkd saved.") from error


def load_student(run_dir: str | Path, student: nn.Module | None = None, which: str = LAST) -> nn.Module:
    """Load a run's global student, in eval mode.

    Args:
        run_dir: The run directory.
        student: The module to load the weights into; needed where the run's student was not given by name.
        which: "last" is that of the last round; "best" that of `fedkd.server.callbacks.SaveBest`.

    Returns:
        The student: images (B, C, H, W) in [0, 1] to logits (B, K), the classes in the order of `read_spec`.

    Raises:
        MissingResourceError: If the run has no such student.
        FedKDError: If the student was a module of the user's and none is given, or it does not fit the weights.
    """
    spec = read_spec(run_dir, which)
    return restore_student(spec, load(read_sealed(student_path(run_dir, which))), student, str(run_dir))


def restore_student(
    spec: Mapping[str, Any], tensors: dict[str, Tensor], student: nn.Module | None, where: str
) -> nn.Module:
    """Build a student as its spec says, and load its tensors: `load_student` after the file is read.

    Args:
        spec: As `read_spec` returns it.
        tensors: The student's state and constants.
        student: The module to load the weights into; None builds it by name.
        where: What an error calls the place of the student.

    Raises:
        FedKDError: If the student was a module of the user's and none is given, or it does not fit the weights.
    """
    if student is None:
        if spec["student"] is None:
            raise FedKDError(f"The student of {where!r} was not made by name: give the module, student=.")
        student = students.create(**spec["student"])
    if spec.get("takes_logits") and not isinstance(student, students.LogitsStudent):
        student = students.LogitsStudent(student)
    if any(is_lazy(value) for value in student.parameters()):
        with torch.random.fork_rng(devices=[]):  # lazy parts draw weights, which the file's then replace
            probe(student, tuple(spec["image_shape"]))
    if spec.get("projection"):
        student = students.ProjectedStudent.restore(student, spec["projection"], tensors)
    if spec.get("closed_form"):
        student = students.ClosedFormStudent.restore(student, spec["closed_form"])
    student.to(memory_format=torch.channels_last)  # as it was trained
    try:
        load_state(student, _renamed(tensors, student), {}, keep_dtypes=True)
    except RuntimeError as error:
        # torch lists every name that differs
        reason = textwrap.shorten(in_one_line(error), 400, placeholder=" ...")
        if spec["student"] is None:
            reason += " It was not made by name: give a module like it, student= (--model.student)."
        raise FedKDError(f"The student does not fit the weights of {where!r}: {reason}") from error
    return student.eval()


def _renamed(tensors: dict[str, Tensor], student: nn.Module) -> dict[str, Tensor]:
    """Return tensors under the student's own names, where it or the one that was saved is compiled."""
    own = {plain_name(name): name for name in student.state_dict()}
    return {own.get(plain := plain_name(name), plain): value for name, value in tensors.items()}
