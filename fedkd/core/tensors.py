"""Arithmetic on the named tensors that server and clients exchange. Sums are float32 for inputs of any dtype."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

Tensors = dict[str, Tensor]


def split_state(module: nn.Module) -> tuple[Tensors, Tensors]:
    """Copy a module's persistent state to the CPU, separated into parameters and buffers.

    Args:
        module: Any module.

    Returns:
        ``(parameters, buffers)``, in ``state_dict`` order. A tensor with several names, such as a tied weight, stands
        under the first of them.
    """
    names = {name for name, _ in module.named_parameters()}
    found = module.state_dict(keep_vars=True)
    others = _further_names(found)
    # contiguous whatever the module's memory format: sums over tensors then do not depend on where they came from
    state = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in found.items()
        if name not in others
    }
    parameters = {name: value for name, value in state.items() if name in names}
    buffers = {name: value for name, value in state.items() if name not in names}
    return parameters, buffers


def load_state(
    module: nn.Module,
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    keep_dtypes: bool = False,
) -> None:
    """Overwrite a module's state. Its tensors take the new dtypes, since training in true half precision changes them.

    Args:
        module: The module that `split_state` copied, or one with the same structure.
        parameters: Its parameters.
        buffers: Its buffers.
        keep_dtypes: Whether the module's tensors keep their own dtypes instead.
    """
    state, found = {**parameters, **buffers}, module.state_dict(keep_vars=True)
    state |= {name: state[first] for name, first in _further_names(found).items() if first in state}
    with torch.no_grad():
        for name, value in found.items():
            if not keep_dtypes and name in state and value.dtype != state[name].dtype:
                value.data = value.data.to(state[name].dtype)
    module.load_state_dict(state)


def _further_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the further names of tensors that stand under several in a ``state_dict`` of variables, by the first."""
    first: dict[int, str] = {}
    return {name: first[id(value)] for name, value in state.items() if first.setdefault(id(value), name) != name}


def subtract(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Tensors:
    """Return ``left - right`` by name, in float32."""
    return {name: value.float() - right[name].float() for name, value in left.items()}


def add_scaled(base: Mapping[str, Tensor], step: Mapping[str, Tensor], scale: float = 1.0) -> Tensors:
    """Return ``base + scale * step`` by name, in the dtypes of ``base``."""
    return {name: (value.float() + scale * step[name].float()).to(value.dtype) for name, value in base.items()}


def weighted_mean(items: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> Tensors:
    """Average tensors by name, in float32. The weights need not sum to one.

    Args:
        items: One mapping per client, all with the same names and shapes.
        weights: One non-negative weight per client, with a positive sum.

    Returns:
        Float32 tensors.
    """
    mean = RunningMean(float(sum(weights)))
    for item, weight in zip(items, weights, strict=True):
        mean.add(item, weight)
    return mean.value()


class RunningMean:
    """`weighted_mean` of items that come one after the other: it keeps their mean, and none of them.

    Args:
        total: The expected sum of all weights, > 0. With this sum the value has the bits of `weighted_mean`; with
            another one it is right as well.
    """

    def __init__(self, total: float) -> None:
        self.total = total
        self._weights: list[float] = []
        self._mean: Tensors = {}

    def add(self, item: Mapping[str, Tensor], weight: float) -> None:
        """Add an item, with the names and shapes of those before."""
        if not self._weights:
            self._mean = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in item.items()}
        self._weights.append(weight)
        for name, value in item.items():
            self._mean[name].add_(value.float(), alpha=weight / self.total)

    def value(self) -> Tensors:
        """Return the mean of what was added, float32."""
        total = float(sum(self._weights))
        if total == self.total:
            return self._mean
        return {name: value * (self.total / total) for name, value in self._mean.items()}


def merge_buffers(
    base: Mapping[str, Tensor], items: Sequence[Mapping[str, Tensor]], weights: Sequence[float]
) -> Tensors:
    """Merge the clients' buffers: average floats (running statistics), take the maximum of integers (counters).

    Args:
        base: The buffers that the clients started from.
        items: One mapping per client.
        weights: One weight per client, for the averages.

    Returns:
        The merged buffers, in the dtypes of ``base``.
    """
    merged = RunningBuffers(base, float(sum(weights)))
    for item, weight in zip(items, weights, strict=True):
        merged.add(item, weight)
    return merged.value()


class RunningBuffers:
    """`merge_buffers` of items that come one after the other.

    Args:
        base: The buffers that the clients started from.
        total: As for `RunningMean`.
    """

    def __init__(self, base: Mapping[str, Tensor], total: float) -> None:
        self.base = base
        self._mean = RunningMean(total)
        self._greatest: Tensors = {}

    def add(self, item: Mapping[str, Tensor], weight: float) -> None:
        """Add a client's buffers."""
        self._mean.add({name: value for name, value in item.items() if value.is_floating_point()}, weight)
        for name, value in item.items():
            if not value.is_floating_point():
                before = self._greatest.get(name)
                self._greatest[name] = value if before is None else torch.maximum(before, value)

    def value(self) -> Tensors:
        """Return the merged buffers, in the dtypes of ``base``."""
        mean = self._mean.value()
        return {
            name: mean[name].to(value.dtype) if value.is_floating_point() else self._greatest[name]
            for name, value in self.base.items()
        }


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no entry of any tensor is infinite or NaN."""
    # A sum is finite only if its terms are, and takes a tenth of the time; a sum of large terms may overflow.
    floats = [value for value in tensors if value.is_floating_point() or value.is_complex()]
    return all(math.isfinite(abs(value.sum().item())) or bool(value.isfinite().all()) for value in floats)


def norm(tensors: Mapping[str, Tensor]) -> float:
    """Return the L2 norm over all tensors, accumulated in float64."""
    return math.sqrt(sum(float(value.double().square().sum()) for value in tensors.values()))


def num_bytes(*items: Mapping[str, Tensor]) -> int:
    """Return the size of all tensors in bytes, in their own dtypes."""
    return sum(value.numel() * value.element_size() for item in items for value in item.values())


def content_hash(value: Tensor | np.ndarray) -> str:
    """Return the SHA-256, in hex, of an array's dtype, shape and content."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "OSUVMm":  # no type of torch's
            content = repr(value.tolist()) if value.dtype.hasobject else value.tobytes().hex()
            return hashlib.sha256(f"{value.dtype} {value.shape} {content}".encode()).hexdigest()
        value = torch.from_numpy(np.ascontiguousarray(value)).reshape(value.shape)
    tensor = value.detach().cpu()
    tensor = tensor if tensor.layout == torch.strided else tensor.to_dense()
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
