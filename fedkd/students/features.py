"""A student's features: the input of its last linear layer, for any architecture."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from fedkd.core.errors import FedKDError
from fedkd.students.probe import probe


def feature_layer(student: nn.Module, num_classes: int, image_shape: tuple[int, int, int]) -> str:
    """Find the layer that turns features into logits: the last ``nn.Linear`` with K outputs that a forward pass calls.

    Args:
        student: Images (B, C, H, W) in [0, 1] -> logits (B, K).
        num_classes: K.
        image_shape: (C, H, W) of its images.

    Returns:
        The layer's name among the student's modules.

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
        for name, layer in student.named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == num_classes
    ]
    try:
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

    hook = student.get_submodule(layer).register_forward_pre_hook(catch)
    try:
        logits = student(images)
    finally:
        hook.remove()
    return caught[-1], logits
