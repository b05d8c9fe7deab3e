"""Median and trimmed mean by coordinate: Yin et al., "Byzantine-Robust Distributed Learning", arXiv 1803.01498.

Algorithm 1, options I and II, on the clients' deltas in place of gradients.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedkd.core.errors import FedKDError, check_range
from fedkd.core.messages import ClientUpdate, ServerState
from fedkd.core.tensors import Tensors
from fedkd.strategies.base import Strategy


class CoordinateWise(Strategy, ABC):
    """Aggregates each coordinate by itself. All clients have the same weight: their numbers of examples may be false.

    Float buffers (BatchNorm statistics) are aggregated by the same rule; counters take the maximum.
    """

    decides = frozenset({"client_weights", "combine", "combine_buffers"})
    is_robust = True

    @abstractmethod
    def join(self, values: Tensor) -> Tensor:
        """Aggregate the clients' values, float32 (n, ...) -> (...)."""

    def client_weights(self, updates: Sequence[ClientUpdate]) -> list[float]:
        """Return 1 for each."""
        return [1.0] * len(updates)

    def combine(self, state: ServerState, updates: Sequence[ClientUpdate], weights: Sequence[float]) -> Tensors:
        """Aggregate the deltas."""
        return self._join_all([update.delta for update in updates])

    def combine_buffers(self, state: ServerState, updates: Sequence[ClientUpdate], weights: Sequence[float]) -> Tensors:
        """Aggregate the float buffers."""
        merged = super().combine_buffers(state, updates, weights)
        floats = {name: value.dtype for name, value in merged.items() if value.is_floating_point()}
        joined = self._join_all([{name: update.buffers[name] for name in floats} for update in updates])
        return {**merged, **{name: value.to(floats[name]) for name, value in joined.items()}}

    def _join_all(self, items: Sequence[Mapping[str, Tensor]]) -> Tensors:
        return {name: self.join(torch.stack([item[name].float() for item in items])) for name in items[0]}


class CoordinateMedian(CoordinateWise):
    """The median of each coordinate; of an even number of clients, the mean of the middle two.

    It tolerates attackers up to less than half of the cohort. On skewed shards it does not estimate the mean: it
    removes what only a few clients know.
    """

    def join(self, values: Tensor) -> Tensor:
        """Return the median, (n, ...) -> (...)."""
        n = len(values)
        return values.sort(dim=0).values[(n - 1) // 2 : n // 2 + 1].mean(dim=0)


class TrimmedMean(CoordinateWise):
    """The mean of each coordinate without its largest and its smallest values.

    ``TrimmedMean(0)`` is the plain mean; it equals FedAvg where clients have as many examples each.

    Args:
        trim: Share of the cohort to cut at either end (the paper's beta), in [0, 0.5), rounded up to whole clients. It
            must be no less than the share of attackers.
    """

    def __init__(self, trim: float = 0.1) -> None:
        check_range("trim", trim, low=0, high=0.5, high_open=True)
        self.trim = trim

    def check_cohort(self, num_clients: int) -> None:
        """Refuse a cohort of which trimming would leave nothing."""
        self.cut(num_clients)

    def cut(self, n: int) -> int:
        """Return how many of n values go at either end; raise if none would be left."""
        cut = math.ceil(self.trim * n - 1e-9)  # 0.07 * 100 is a little more than 7
        if 2 * cut >= n:
            raise FedKDError(
                f"TrimmedMean({self.trim}) leaves none of {n} clients: lower trim or take a larger cohort."
            )
        return cut

    def join(self, values: Tensor) -> Tensor:
        """Return the trimmed mean, (n, ...) -> (...)."""
        n = len(values)
        cut = self.cut(n)
        kept = values.sort(dim=0).values[cut : n - cut] if cut else values
        return kept.mean(dim=0)
