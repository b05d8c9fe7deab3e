"""Check whether a module can be a student."""

from __future__ import annotations

import torch
from torch import nn

from fedkd.core.errors import FedKDError
from fedkd.core.modes import evaluating


def check(student: nn.Module, num_classes: int, image_shape: tuple[int, int, int]) -> None:
    """Raise unless ``student`` maps images of ``image_shape`` to (B, num_classes) logits."""
    tensors = {**dict(student.named_parameters()), **dict(student.named_buffers())}
    if (name := next((name for name, value in tensors.items() if value.is_complex()), None)) is not None:
        raise FedKDError(
            f"The student's {name!r} is complex ({str(tensors[name].dtype).removeprefix('torch.')}): clients' sums are "
            "float32. Keep real and imaginary part in two parameters, such as with torch.view_as_real."
        )
    reference = next(iter(student.parameters()), torch.zeros(()))
    images = torch.zeros(2, *image_shape, device=reference.device)
    try:
        with torch.no_grad(), evaluating(student):
            shape = tuple(student(images).shape)
    except RuntimeError as error:
        raise FedKDError(f"The student does not take images of shape {tuple(images.shape)}: {error}") from error
    if shape != (2, num_classes):
        raise FedKDError(f"The student must return logits of shape (2, {num_classes}) for 2 images, got {shape}.")
