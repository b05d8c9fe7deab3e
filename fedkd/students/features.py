"""A student's features: the input of its last linear layer, for any architecture."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from fedkd.core.errors import FedKDError
from fedkd.students.probe import probe

COMPILED = "_orig_mod."
"""What torch.compile puts before the names of what it wraps."""


def parts_of(student: nn.Module) -> dict[str, nn.Module]:
    """Return a student's modules by name, the student itself left out. Names are the same whether it is compiled."""
    found = {plain_name(f"{name}.").rstrip("."): part for name, part in student.named_modules()}
    return {name: part for name, part in found.items() if name}


def part_of(student: nn.Module, name: str) -> nn.Module:
    """Return one of `parts_of` a student, without a walk over all."""
    part = original(student)
    for step in name.split("."):
        part = original(getattr(part, step))
    return part


def original(part: nn.Module) -> nn.Module:
    """Return what torch.compile has wrapped, or the module itself."""
    found = getattr(part, "_orig_mod", part)
    assert isinstance(found, nn.Module)
    return found


def plain_name(name: str) -> str:
    """Return the name of a parameter or buffer as it is where nothing is compiled."""
    return name.replace(COMPILED, "")


def is_compiled(student: nn.Module) -> bool:
    """Whether torch.compile has made the student or a part of it."""
    return any(hasattr(part, "_orig_mod") or part._compiled_call_impl is not None for part in student.modules())


def uncompiled(student: nn.Module, needed: bool | None = None) -> AbstractContextManager[object]:
    """Run a student's parts one by one while the block runs: what torch.compile has made calls no hooks.

    Args:
        student: Any module.
        needed: What `is_compiled` returned when the student was wrapped, to spare a walk over its parts. A student that
            is compiled as a whole since then is noticed too. None calls `is_compiled`.
    """
    needed = is_compiled(student) if needed is None else needed or student._compiled_call_impl is not None
    if torch.compiler.is_compiling():  # the whole is compiled, hooks included
        return nullcontext()
    return torch.compiler.set_stance("force_eager") if needed else nullcontext()


def feature_layer(student: nn.Module, num_classes: int, image_shape: tuple[int, int, int]) -> str:
    """Find the layer that turns features into logits: the last ``nn.Linear`` with K outputs that a forward pass calls.

    Args:
        student: Images (B, C, H, W) in [0, 1] -> logits (B, K).
        num_classes: K.
        image_shape: (C, H, W) of its images.

    Returns:
        The layer's name in `parts_of` the student.

    Raises:
        FedKDError: If there is no such layer.
    """
    called: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs and inputs[0].ndim == 2:  # one vector per image
                called.append(name)

        return note

    hooks = [
        layer.register_forward_pre_hook(watch(name))
        for name, layer in parts_of(student).items()
        if isinstance(layer, nn.Linear) and layer.out_features == num_classes
    ]
    try:
        with uncompiled(student):
            probe(student, image_shape)
    finally:
        for hook in hooks:
            hook.remove()
    if not called:
        raise FedKDError(
            f"{type(student).__name__} has no features to distill: it has no nn.Linear that maps one vector per image "
            f"to {num_classes} classes. Choose a loss on logits, such as KD, or a student that ends in such a layer."
        )
    return called[-1]


def features_and_logits(student: nn.Module, images: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """Compute features and logits in one forward pass.

    Args:
        student: Images (B, C, H, W) in [0, 1] -> logits (B, K).
        images: (B, C, H, W).
        layer: The layer's name, from `feature_layer`.

    Returns:
        Features (B, D_student), with gradients, and logits (B, K).
    """
    caught: list[Tensor] = []

    def catch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        caught.append(inputs[0])

    hook = part_of(student, layer).register_forward_pre_hook(catch)
    try:
        with uncompiled(student):
            logits = student(images)
    finally:
        hook.remove()
    return caught[-1], logits
