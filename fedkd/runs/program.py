"""A student as a program of ``torch.export``, which needs torch alone."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from torch import nn

from fedkd.core.errors import FedKDError

INPUT = "float32 images (B, C, H, W) with values in [0, 1], of any batch size; the student normalizes them itself"


def as_program(student: nn.Module, spec: Mapping[str, Any]) -> bytes:
    """Return a student as a program of ``torch.export`` of any batch size, with its spec as ``fedkd.json``."""
    program, file = trace(student, spec["image_shape"]), io.BytesIO()
    with quiet():
        torch.export.save(program, file, extra_files={"fedkd.json": json.dumps(described(spec))})
    return file.getvalue()


def described(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return what somebody who has the file alone needs to know."""
    return {
        "classes": spec["classes"],
        "image_shape": list(spec["image_shape"]),
        "input": INPUT,
        "output": "logits (B, K)",
    }


def trace(student: nn.Module, image_shape: Sequence[int]) -> torch.export.ExportedProgram:
    """Return a student's program for any batch size.

    Raises:
        FedKDError: If torch cannot follow what it does.
    """
    example = torch.rand(2, *image_shape)
    try:
        with quiet():
            batch = torch.export.Dim("batch")
            return torch.export.export(student, (example,), dynamic_shapes=({0: batch},))
    except Exception as error:  # torch.export raises many kinds, and its first line says what it could not follow
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise FedKDError(
            f"The student cannot be exported for any batch size: {type(error).__name__}: {first}"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's exporters from printing their progress and warning of their own internals."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
