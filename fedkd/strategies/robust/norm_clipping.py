"""Norm clipping: Sun et al., "Can You Really Backdoor Federated Learning?", arXiv 1911.07963, section 4.

w_{t+1} = w_t + sum_k (n_k / n) delta_k / max(1, ||delta_k||_2 / M).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from fedkd.core.errors import check_range
from fedkd.core.messages import ClientUpdate, ServerState
from fedkd.core.tensors import Tensors, norm, weighted_mean
from fedkd.strategies.base import Strategy


class NormClipping(Strategy):
    """FedAvg of deltas that are clipped to a norm first, which bounds each client's influence.

    Weights are by examples. Buffers are averaged as in FedAvg, without a bound: against attackers use a student
    without BatchNorm (``student_options: {norm: group}``).

    Args:
        max_norm: M, the largest norm of a client's delta, all parameters together, > 0.
    """

    decides = frozenset({"combine"})
    is_robust = True

    def __init__(self, max_norm: float = 1.0) -> None:
        check_range("max_norm", max_norm, low=0, low_open=True)
        self.max_norm = max_norm

    def combine(self, state: ServerState, updates: Sequence[ClientUpdate], weights: Sequence[float]) -> Tensors:
        """Return the mean of the clipped deltas."""
        return weighted_mean([clip(update.delta, self.max_norm) for update in updates], weights)


def clip(delta: Mapping[str, Tensor], max_norm: float) -> Tensors:
    """Scale a delta down to ``max_norm``, all tensors together; a shorter one stays as it is."""
    length = norm(delta)
    scale = max_norm / length if length > max_norm else 1.0
    return {name: scale * value for name, value in delta.items()}
