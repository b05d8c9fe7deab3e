"""RFA: Pillutla et al., "Robust Aggregation for Federated Learning", arXiv 1912.13445, algorithms 1 and 2.

The geometric median minimizes sum_k alpha_k ||v - delta_k|| with alpha_k = n_k / n. The smoothed Weiszfeld algorithm
alternates beta_k = alpha_k / max(nu, ||v - delta_k||) and v = sum_k beta_k delta_k / sum_k beta_k.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedkd.core.errors import check_range
from fedkd.core.messages import ClientUpdate, ServerState
from fedkd.core.tensors import Tensors, norm, subtract, weighted_mean
from fedkd.strategies.base import Strategy


class GeometricMedian(Strategy):
    """An average that gives distant deltas less weight; it tolerates outliers with less than half of all examples.

    Clients start with weights by examples as in FedAvg, so a false number of examples is not detected. Buffers are
    averaged with the deltas' final weights.

    Args:
        smoothing: nu, > 0: distances below it count as nu.
        tolerance: > 0; the iteration stops where the sum of distances falls by less than this share of itself.
        max_iterations: >= 1; the paper finds three to be enough.
    """

    decides = frozenset({"client_weights", "combine"})
    is_robust = True

    def __init__(self, smoothing: float = 1e-6, tolerance: float = 1e-6, max_iterations: int = 100) -> None:
        check_range("smoothing", smoothing, low=0, low_open=True)
        check_range("tolerance", tolerance, low=0, low_open=True)
        check_range("max_iterations", max_iterations, low=1, whole=True)
        self.smoothing, self.tolerance, self.max_iterations = smoothing, tolerance, max_iterations

    def client_weights(self, updates: Sequence[ClientUpdate]) -> list[float]:
        """Return the betas, which sum to 1: the geometric median is the mean with these weights."""
        deltas = [update.delta for update in updates]
        alphas = [update.num_examples / sum(u.num_examples for u in updates) for update in updates]
        betas, before = alphas, float("inf")
        for _ in range(self.max_iterations):
            center = weighted_mean(deltas, betas)
            distances = [norm(subtract(delta, center)) for delta in deltas]
            now = sum(a * d for a, d in zip(alphas, distances, strict=True))
            if before - now <= self.tolerance * now:
                break
            raw = [a / max(self.smoothing, d) for a, d in zip(alphas, distances, strict=True)]
            betas, before = [b / sum(raw) for b in raw], now
        return betas

    def combine(self, state: ServerState, updates: Sequence[ClientUpdate], weights: Sequence[float]) -> Tensors:
        """Return the mean: the rule is in `client_weights`, and cannot be combined with another one."""
        return super().combine(state, updates, weights)
