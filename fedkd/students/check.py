"""Check whether a module can be a student."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedkd.core.errors import FedKDError, in_one_line, is_out_of_memory
from fedkd.students.logits import LogitsStudent, logits_of
from fedkd.students.probe import probe


def as_student(model: nn.Module, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """Return a model as a student: itself, or in a `LogitsStudent` if its output is more than logits.

    Args:
        model: Any module. Lazy parts get their weights here.
        num_classes: K.
        image_shape: (C, H, W).

    Raises:
        FedKDError: If it does not map images (B, C, H, W) to logits (B, K), in training too.
    """
    outputs = [_output(model, image_shape)]  # first, since lazy parts draw their weights here
    with torch.random.fork_rng(devices=[]):  # dropout draws
        outputs.append(_output(model, image_shape, training=True))
    if not all(isinstance(output, Tensor) for output in outputs):
        for output in outputs:
            logits_of(output)
        model = LogitsStudent(model)
    check(model, num_classes, image_shape)
    return model


def check(student: nn.Module, num_classes: int, image_shape: tuple[int, int, int]) -> None:
    """Raise unless ``student`` maps images of ``image_shape`` to (B, num_classes) logits."""
    output = _output(student, image_shape)
    tensors = {**dict(student.named_parameters()), **dict(student.named_buffers())}
    if (name := next((name for name, value in tensors.items() if value.is_complex()), None)) is not None:
        raise FedKDError(
            f"The student's {name!r} is complex ({str(tensors[name].dtype).removeprefix('torch.')}): clients' sums are "
            "float32. Keep real and imaginary part in two parameters, such as with torch.view_as_real."
        )
    shape = tuple(logits_of(output).shape)
    if shape != (2, num_classes):
        raise FedKDError(f"The student must return logits of shape (2, {num_classes}) for 2 images, got {shape}.")


def _output(student: nn.Module, image_shape: tuple[int, int, int], training: bool = False) -> Any:
    """Return what `probe` does.

    Raises:
        FedKDError: If the student does not take such images.
    """
    try:
        return probe(student, image_shape, as_it_is=training)
    except Exception as error:  # a student's own code may raise anything, an AssertionError too
        if isinstance(error, FedKDError) or is_out_of_memory(error):
            raise
        mode = ", in training" if training else ""
        raise FedKDError(
            f"The student does not take images of shape {(2, *image_shape)}{mode}: {in_one_line(error)}"
        ) from error
