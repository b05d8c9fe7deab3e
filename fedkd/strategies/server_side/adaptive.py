"""FedAdagrad, FedAdam and FedYogi: Reddi et al., "Adaptive Federated Optimization", arXiv 2003.00295, algorithm 2.

With Delta_t the mean delta, all by coordinate::

    m_t = beta1 m_{t-1} + (1 - beta1) Delta_t,          m_{-1} = 0
    v_t = v_{t-1} + Delta_t^2                           (FedAdagrad)
    v_t = v_{t-1} - (1 - beta2) Delta_t^2 sign(v_{t-1} - Delta_t^2)    (FedYogi)
    v_t = beta2 v_{t-1} + (1 - beta2) Delta_t^2         (FedAdam),      v_{-1} = tau^2
    w_{t+1} = w_t + server_lr m_t / (sqrt(v_t) + tau)

There is no bias correction, so the first steps of FedAdam are not those of torch's Adam.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from fedkd.core.errors import check_range
from fedkd.core.tensors import Tensors
from fedkd.strategies.server_side.server_optimizer import ServerOptimizer


class Adaptive(ServerOptimizer):
    """Everything but the update of v, which differs between the three.

    Args:
        server_lr: The server's learning rate, > 0. A coordinate moves by about server_lr a round once its deltas are
            large beside tau, whatever the clients' learning rate; the paper searches it by task, 0.001 to 1.
        beta1: Decay of the first moment, in [0, 1).
        tau: Degree of adaptivity, > 0: smaller is more adaptive; deltas far below tau are hardly scaled up.
    """

    def __init__(self, server_lr: float, beta1: float, tau: float) -> None:
        super().__init__(server_lr)
        check_range("beta1", beta1, low=0, high=1, high_open=True)
        check_range("tau", tau, low=0, low_open=True)
        self.beta1, self.tau = beta1, tau

    @abstractmethod
    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor:
        """Return v_t from v_{t-1} and the squared delta."""

    def first_moments(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensors]:
        """Return m = 0 and v = tau^2."""
        m = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in parameters.items()}
        return {"m": m, "v": {name: torch.full_like(value, self.tau**2) for name, value in m.items()}}

    def direction(
        self, delta: Mapping[str, Tensor], moments: Mapping[str, Tensors]
    ) -> tuple[Tensors, dict[str, Tensors]]:
        """Return m_t / (sqrt(v_t) + tau)."""
        m = {name: self.beta1 * old + (1 - self.beta1) * delta[name] for name, old in moments["m"].items()}
        v = {name: self.second_moment(old, delta[name].square()) for name, old in moments["v"].items()}
        return {name: m[name] / (v[name].sqrt() + self.tau) for name in m}, {"m": m, "v": v}


class FedAdagrad(Adaptive):
    """Steps shrink with the sum of all squared deltas.

    Args:
        server_lr: The server's learning rate, > 0.
        beta1: Decay of the first moment, in [0, 1); 0, as in the paper's experiments, is plain Adagrad.
        tau: How adaptive the step is, > 0.
    """

    def __init__(self, server_lr: float = 0.1, beta1: float = 0.0, tau: float = 1e-3) -> None:
        super().__init__(server_lr, beta1, tau)

    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor:
        """Return v + delta^2."""
        return v + squared


class FedAdam(Adaptive):
    """Steps follow a moving average of squared deltas.

    Args:
        server_lr: The server's learning rate, > 0.
        beta1: Decay of the first moment, in [0, 1).
        beta2: Decay of the second moment, in [0, 1).
        tau: How adaptive the step is, > 0.
    """

    def __init__(self, server_lr: float = 0.01, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3) -> None:
        super().__init__(server_lr, beta1, tau)
        check_range("beta2", beta2, low=0, high=1, high_open=True)
        self.beta2 = beta2

    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor:
        """Return beta2 v + (1 - beta2) delta^2."""
        return self.beta2 * v + (1 - self.beta2) * squared


class FedYogi(FedAdam):
    """As FedAdam, but v moves by at most (1 - beta2) delta^2, so that it forgets slowly."""

    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor:
        """Return v - (1 - beta2) delta^2 sign(v - delta^2)."""
        return v - (1 - self.beta2) * squared * torch.sign(v - squared)
