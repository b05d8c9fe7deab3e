"""`PooledBatchNorm`: FedAvg with BatchNorm's variances as if all clients' activations had been measured together."""

from __future__ import annotations

from collections.abc import Sequence

from fedkd.core.messages import ClientUpdate, ServerState
from fedkd.core.tensors import Tensors, weighted_mean
from fedkd.strategies.base import Strategy


class PooledBatchNorm(Strategy):
    """Aggregate running variances by the law of total variance; all else is FedAvg.

    The average of the clients' variances is too small where their means differ, as on skewed shards. With the weights
    p_i of the average, ``var = sum p_i (var_i + mean_i^2) - mean^2``, which is computed as ``sum p_i (var_i + (mean_i -
    mean)^2)`` and so is never negative. Combine it with any strategy that leaves the buffers alone.
    """

    decides = frozenset({"combine_buffers"})

    def combine_buffers(self, state: ServerState, updates: Sequence[ClientUpdate], weights: Sequence[float]) -> Tensors:
        """Average the buffers, and add to each variance that of the clients' means."""
        merged = super().combine_buffers(state, updates, weights)
        layers = {name.removesuffix("running_var") for name in merged if name.endswith("running_var")}
        for layer in layers & {name.removesuffix("running_mean") for name in merged}:
            mean, var = f"{layer}running_mean", f"{layer}running_var"
            away = [{var: (update.buffers[mean].float() - merged[mean].float()) ** 2} for update in updates]
            merged[var] = (merged[var].float() + weighted_mean(away, weights)[var]).to(merged[var].dtype)
        return merged
