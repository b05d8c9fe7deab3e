"""One forward pass of a student on two black images, to learn what it returns."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from fedkd.core.modes import evaluating


def probe(student: nn.Module, image_shape: tuple[int, int, int], as_it_is: bool = False) -> Any:
    """Return a student's output for two black images, without gradients. Its state stays as it is.

    Args:
        student: Any module. Lazy parts get their weights here.
        image_shape: (C, H, W).
        as_it_is: Whether its parts keep their modes, training for most; else all are in evaluation mode.
    """
    reference = next((value for value in student.parameters() if not is_lazy(value)), torch.zeros(()))
    images = torch.zeros(2, *image_shape, device=reference.device)
    with torch.no_grad():
        if not as_it_is:
            with evaluating(student):
                return student(images)
        before = [(value, value.clone()) for value in student.buffers()]
        try:
            return student(images)
        finally:
            for value, kept in before:  # a BatchNorm has counted the batch
                value.copy_(kept)
