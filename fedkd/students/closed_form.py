"""A student with a second head, which no client trains: the server solves it from sums over the clients' images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedkd.core.errors import FedKDError
from fedkd.students.features import feature_layer, features_and_logits, is_compiled, part_of, parts_of, uncompiled
from fedkd.students.probe import probe


class ClosedFormStudent(nn.Module):
    """A student whose logits come from a linear head on its features, once there is one.

    Training goes through the student's own last layer (`trained_part`). Once the head is set, whoever calls this module
    gets the head's logits. The head is three buffers, which are saved with the student and travel with it.

    Args:
        student: Images (B, C, H, W) in [0, 1] -> logits (B, K).
        num_classes: K.
        layers: Names of modules whose outputs (B, C_i, H_i, W_i) are pooled (`pool`), see `stages`; or the name of one
            ``nn.Linear``, whose inputs (B, D) are the features.
        calls: For each of these layers, which of its calls in a forward pass gives the output, from 0; ``()`` for the
            input of a linear layer.
        grids: For each of these layers the number of cells along an edge, g_i: its output gives C_i (g_i^2 + 1)
            numbers. The input of a linear layer has none: ``()``.
        feature_dim: D, the sum of all.

    Attributes:
        num_features: D.
        has_head: Whether the head is set.
        has_limit: Whether it scales long features down.
    """

    solved_weight: Tensor  # (K, D)
    solved_bias: Tensor  # (K,)
    solved_limit: Tensor  # (), longer features are scaled down to this norm; 0 leaves them

    def __init__(
        self,
        student: nn.Module,
        num_classes: int,
        layers: Sequence[str],
        calls: Sequence[int],
        grids: Sequence[int],
        feature_dim: int,
    ) -> None:
        super().__init__()
        self.student, self.layers, self.calls, self.grids = student, tuple(layers), tuple(calls), tuple(grids)
        self.register_buffer("solved_weight", torch.zeros(num_classes, feature_dim))
        self.register_buffer("solved_bias", torch.zeros(num_classes))
        self.register_buffer("solved_limit", torch.zeros(()))
        self.num_features, self.is_compiled = feature_dim, is_compiled(student)
        self.has_head = self.has_limit = False  # known when the buffers are loaded: an export has no branch on tensors

    @classmethod
    def on_last_layer(
        cls, student: nn.Module, num_classes: int, image_shape: tuple[int, int, int]
    ) -> ClosedFormStudent:
        """Take the inputs of the student's last linear layer as features."""
        layer = feature_layer(student, num_classes, image_shape)
        last = part_of(student, layer)
        assert isinstance(last, nn.Linear)
        return cls(student, num_classes, (layer,), (), (), last.in_features)

    @classmethod
    def on_stages(
        cls, student: nn.Module, num_classes: int, image_shape: tuple[int, int, int], grid: int = 4, count: int = 3
    ) -> ClosedFormStudent:
        """Pool the outputs of the student's last stages, the first of them on the finest grid: see `pool`.

        Args:
            student: A network of convolutions.
            num_classes: K.
            image_shape: (C, H, W).
            grid: Cells along an edge for the first of these stages, >= 1; each further one has half as many.
            count: How many stages, >= 1.

        Raises:
            FedKDError: If the student has no stages.
        """
        found = stages(student, image_shape)[-count:]
        grids = [max(1, min(grid // 2**i, each.height, each.width)) for i, each in enumerate(found)]
        dim = sum(each.channels * (cells**2 + 1) for each, cells in zip(found, grids, strict=True))
        return cls(student, num_classes, [each.name for each in found], [each.call for each in found], grids, dim)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [0, 1] to logits (B, K)."""
        return self.classify(self.features(images)) if self.has_head else self.student(images)

    def features(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [0, 1] to features (B, D), float32."""
        if not self.grids:
            return features_and_logits(self.student, images, self.layers[0])[0].float()
        caught: dict[tuple[str, int], Tensor] = {}
        called: Counter[str] = Counter()

        def catch(name: str) -> Any:
            def hook(_layer: nn.Module, _inputs: Any, output: Any) -> None:
                caught[name, called[name]] = output
                called[name] += 1

            return hook

        hooks = [part_of(self.student, name).register_forward_hook(catch(name)) for name in set(self.layers)]
        try:
            with uncompiled(self.student, self.is_compiled):
                self.student(images)
        finally:
            for hook in hooks:
                hook.remove()
        maps = [caught[each].float() for each in zip(self.layers, self.calls, strict=True)]
        found = [moments(each, cells) for each, cells in zip(maps, self.grids, strict=True)]
        return power_normalized(torch.cat([each for pair in found for each in pair], dim=1))

    def classify(self, features: Tensor) -> Tensor:
        """Map features (B, D) to the head's logits (B, K), in float32 whatever the precision around it."""
        with torch.autocast(features.device.type, enabled=False):
            if self.has_limit:
                features = features * (self.solved_limit.float() / features.norm(dim=1, keepdim=True)).clamp(max=1)
            # in a true half precision the buffers have that precision
            return F.linear(features, self.solved_weight.float(), self.solved_bias.float())

    def describe(self) -> dict[str, Any]:
        """Return what `restore` needs, ready for JSON."""
        return {
            "num_classes": len(self.solved_bias),
            "layers": list(self.layers),
            "calls": list(self.calls),
            "grids": list(self.grids),
            "feature_dim": self.num_features,
        }

    @classmethod
    def restore(cls, student: nn.Module, description: dict[str, Any]) -> ClosedFormStudent:
        """Wrap a student as `describe` says."""
        return student if isinstance(student, cls) else cls(student, **description)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        self.has_head, self.has_limit = bool(self.solved_weight.any()), bool(self.solved_limit > 0)


def pool(maps: Tensor, cells: int) -> Tensor:
    r"""Pool feature maps: the means over the cells of a grid, and the standard deviation over all positions.

    A network of convolutions knows little of where in the image something is, and a mean over all positions nothing. A
    grid of means keeps it (the spatial pyramid of Lazebnik, Schmid and Ponce, CVPR 2006). The standard deviation tells
    whether a channel answers everywhere or in one place. Of all numbers the root is taken (`power_normalized`).

    Args:
        maps: (B, C, H, W) float32.
        cells: Cells along an edge, g.

    Returns:
        (B, C (g^2 + 1)).
    """
    return power_normalized(torch.cat(moments(maps, cells), dim=1))


def moments(maps: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Return the means over the cells of a grid, (B, C g^2), and the standard deviation over all positions, (B, C)."""
    means = F.adaptive_avg_pool2d(maps, cells).flatten(1)  # (B, C, H, W) -> (B, C g^2)
    # torch's own variance takes ten times as long
    variances = F.adaptive_avg_pool2d((maps - F.adaptive_avg_pool2d(maps, 1)).square(), 1).flatten(1)  # (B, C)
    return means, (variances + TINY).sqrt()


def power_normalized(values: Tensor) -> Tensor:
    r"""Return :math:`x / \sqrt{|x|}`.

    The outputs of a ReLU have long tails, to which a linear fit would give too much weight (the power normalization of
    Perronnin, Sanchez and Mensink, ECCV 2010).
    """
    return values / (values.abs() + TINY).sqrt()


TINY = 1e-6
"""It keeps the gradients of roots finite at 0."""


def trained_part(student: nn.Module) -> nn.Module:
    """Return the part of a student that clients train: without a head that is solved in closed form."""
    return student.student if isinstance(student, ClosedFormStudent) else student


class Stage(NamedTuple):
    """A feature map of a network.

    Args:
        name: That of the module whose output it is, in `fedkd.students.features.parts_of` the network.
        call: Which of the module's calls in a forward pass gives it, from 0: a network may use a module many times.
        channels: C.
        height: H.
        width: W.
    """

    name: str
    call: int
    channels: int
    height: int
    width: int


def stages(student: nn.Module, image_shape: tuple[int, int, int]) -> list[Stage]:
    """Find a network's stages: for each resolution of its feature maps the last module that has one as its output.

    A map has the shape (B, C, H, W), where H and W are those of the images at one scale, up to a pixel. It is the
    output of a part with a convolution in it, which is no larger than the map before it, or of any part whose input is
    a map. So neither the attention matrices of a network (B, heads, N, N) count, nor maps that it keeps channels last
    in the order of their axes, (B, H, W, C). A network that goes on with such, or with tokens, behind its last map has
    no stages: the only map of a vision transformer is that of its patches.

    Args:
        student: Images (B, C, H, W) in [0, 1] -> logits.
        image_shape: (C, H, W) of its images.

    Returns:
        From the first stage to the last. Maps of one pixel do not count.

    Raises:
        FedKDError: If there is no feature map, or the network goes on with tokens.
    """
    last: dict[tuple[int, int], Stage] = {}
    called: Counter[str] = Counter()
    tokens: list[str] = []  # layers with weights that gave tokens since the last map
    trained = next(student.parameters(recurse=False), None) is not None  # whether weights have made what is there
    has_trained_map = False
    shapes: set[tuple[int, ...]] = {image_shape}  # of the maps that there have been
    positions = image_shape[1] * image_shape[2]  # of the last one
    entered: list[int] = []  # positions of the last map when a part was called, of all parts that run

    def enter(*_: Any) -> None:
        entered.append(positions)

    def note(name: str) -> Any:
        def hook(layer: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            nonlocal trained, has_trained_map, positions
            most = entered.pop()
            call, called[name] = called[name], called[name] + 1
            has_weights = next(layer.parameters(recurse=False), None) is not None
            trained = trained or has_weights
            if not isinstance(output, Tensor) or output.ndim not in (3, 4):
                return
            if output.ndim == 4 and _is_at_scale(output.shape, image_shape):
                size = high, wide = int(output.shape[2]), int(output.shape[3])
                if high * wide == 1:
                    return
                # by shape, for what a network does to a map without a module gives another tensor
                of_map = any(tuple(each.shape[1:]) in shapes for each in _tensors([*args, *kwargs.values()]))
                # a convolution over the heads of attention has no map as its input, and sees more positions
                if of_map or (high * wide <= most and _has_convolution(layer)):
                    last.pop(size, None)  # so that the order is that of the last calls
                    last[size] = Stage(name, call, int(output.shape[1]), *size)
                    shapes.add(tuple(output.shape[1:]))
                    positions = high * wide
                    tokens.clear()
                    has_trained_map = has_trained_map or trained
                    return
            if has_weights and math.prod(output.shape[1:-1]) > 1 and not isinstance(layer, _OF_MAPS):
                tokens.append(name)

        return hook

    parts = parts_of(student).items()
    hooks = [layer.register_forward_pre_hook(enter) for _, layer in parts]
    hooks += [layer.register_forward_hook(note(name), with_kwargs=True) for name, layer in parts]
    try:
        with uncompiled(student):
            probe(student, image_shape)
    finally:
        for each in hooks:
            each.remove()
    if tokens or not has_trained_map:  # a map that no weights have made is the image
        reason = f"it goes on with tokens in {tokens[0]!r}" if tokens else "it is no network of convolutions"
        raise FedKDError(
            f"{type(student).__name__} has no feature maps (B, C, H, W) to pool: {reason}. Take the inputs of its last "
            "layer, inputs: last."
        )
    return list(last.values())


_OF_MAPS = (nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm)
"""Layers with weights that give no tokens, of whatever shape their outputs are."""


def _is_at_scale(shape: Sequence[int], image_shape: Sequence[int]) -> bool:
    """Whether there is a scale s with |h - H s| <= 1 and |w - W s| <= 1: strides round, and edges may be cut."""
    (high, wide), (height, width) = shape[-2:], image_shape[-2:]
    return (high - 1) * width <= (wide + 1) * height and (wide - 1) * height <= (high + 1) * width


def _has_convolution(layer: nn.Module) -> bool:
    """Whether a part has weights (O, I, k, k) in it, of ``nn.Conv2d`` or of a layer of one's own."""
    return any(each.ndim == 4 for each in layer.parameters())


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among values and in lists among them."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _tensors(value)
        elif isinstance(value, Tensor):
            yield value
