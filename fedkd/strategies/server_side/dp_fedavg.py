"""DP-FedAvg: McMahan et al., "Learning Differentially Private Recurrent Language Models", arXiv 1710.06963.

Algorithm 1 with flat clipping, for cohorts of a fixed size m: w_{t+1} = w_t + (1 / m) (sum_k clip(delta_k, C) + N(0,
(z C)^2 I)). It protects whole clients: replacing one client's data changes the distribution of the global models by at
most (epsilon, delta).
"""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from fedkd.core.errors import FedKDError, MissingResourceError, check_range
from fedkd.core.messages import ClientUpdate, Metrics, ServerState
from fedkd.core.seeding import derive_seed
from fedkd.core.tensors import Tensors, split_state, weighted_mean
from fedkd.data import FederatedDataModule
from fedkd.strategies.base import Strategy
from fedkd.strategies.context import RoundContext
from fedkd.strategies.robust.norm_clipping import clip
from fedkd.training.module import DistillationModule


class DPFedAvg(Strategy):
    """Clip every client's delta, average with equal weights, add Gaussian noise; epsilon is in every round's row.

    The server is trusted: it sees deltas and adds the noise. All clients have the same weight, because a weight by
    examples would reveal their number and scale a client's influence. docs/strategies.md says what epsilon covers.

    Args:
        clip_norm: C, the largest norm of a client's delta, all parameters together, > 0.
        noise_multiplier: z, the noise's standard deviation in the sum of deltas over C, >= 0; 0 is no privacy.
        delta: At which epsilon is stated, in (0, 1); it should be well below 1 / the number of clients.
        seed: Decides the noise, with the round: runs can be repeated, but whoever knows the seed can subtract
            the noise. Repetitions with other run seeds need other noise seeds. None draws the seed from the operating
            system, for models that are published; such a run cannot be repeated.

    Raises:
        FedKDError: For values out of range; for a student with buffers (`check`).
        MissingResourceError: If the accountant is not installed.
    """

    decides = frozenset({"client_weights", "combine"})
    protects_updates = True
    columns = ("epsilon", "noise_seed")

    def __init__(
        self, clip_norm: float = 1.0, noise_multiplier: float = 1.0, delta: float = 1e-5, seed: int | None = 0
    ) -> None:
        check_range("clip_norm", clip_norm, low=0, low_open=True)
        check_range("noise_multiplier", noise_multiplier, low=0)
        check_range("delta", delta, low=0, high=1, low_open=True, high_open=True)
        import_accountant()
        self.clip_norm, self.noise_multiplier, self.delta, self.seed = clip_norm, noise_multiplier, delta, seed

    def check(self, module: DistillationModule, datamodule: FederatedDataModule) -> None:
        """Refuse buffers: they are statistics of a client's images, and get neither clipping nor noise."""
        _, names = split_state(module.student)
        if names:
            raise FedKDError(
                f"DPFedAvg protects parameters alone, but the student has buffers ({min(names)}, ...), which tell of "
                "clients' images: take one without BatchNorm, model.student_options: {norm: group}."
            )

    def start(self, state: ServerState, context: RoundContext) -> ServerState:
        """Note the frozen parameters: no client trains them, so they get no noise."""
        if self.seed is not None:
            rank_zero_warn(
                f"DPFedAvg: the noise is drawn from seed {self.seed}, so that the run can be repeated. Epsilon holds "
                "only against those who do not know it: for a model that is published choose seed: null."
            )
        frozen = {name for name, value in context.module().student.named_parameters() if not value.requires_grad}
        return replace(state, memory={f"frozen/{name}": torch.zeros(0) for name in frozen})

    def client_weights(self, updates: Sequence[ClientUpdate]) -> list[float]:
        """Return 1 for each: with cohorts of a fixed size m, 1 / m is the paper's 1 / (q N)."""
        return [1.0] * len(updates)

    def combine(self, state: ServerState, updates: Sequence[ClientUpdate], weights: Sequence[float]) -> Tensors:
        """Return the noisy mean of the clipped deltas; what no client trains stays as it is.

        It is the sum over the size of the cohort. A client that failed adds nothing, so that nobody's failure changes
        the others' share.
        """
        size = state.cohort_size or len(updates)
        mean = weighted_mean([clip(update.delta, self.clip_norm) for update in updates], [1.0] * len(updates))
        mean = {name: value * (len(updates) / size) for name, value in mean.items()} if size > len(updates) else mean
        seed = secrets.randbits(63) if self.seed is None else derive_seed(self.seed, "noise", state.round)
        generator = torch.Generator().manual_seed(seed)
        scale = self.noise_multiplier * self.clip_norm / size
        trained = [name for name in mean if f"frozen/{name}" not in state.memory]
        noisy = {name: mean[name] + scale * torch.randn(mean[name].shape, generator=generator) for name in trained}
        return {**mean, **noisy}

    def metrics(self, state: ServerState, updates: Sequence[ClientUpdate], context: RoundContext) -> Metrics:
        """Return epsilon after the rounds so far, and beside it the noise's seed: it holds for who does not know it."""
        seed = {} if self.seed is None else {"noise_seed": self.seed}
        return {"epsilon": self.epsilon(state.round, state.cohort_size or len(updates), len(context.clients)), **seed}

    def epsilon(self, rounds: int, clients_per_round: int, num_clients: int) -> float:
        """Return epsilon, at this strategy's delta, for neighbors that differ in one client being replaced.

        Cohorts are drawn at a fixed size and without replacement, and accounted for as such: Renyi differential privacy
        of Wang, Balle and Kasiviswanathan, arXiv 1808.00087, theorem 27. A replaced client moves the sum of deltas by
        up to 2 C, so that the accountant is told a noise multiplier of z / 2.

        Args:
            rounds: How many rounds are done, >= 0.
            clients_per_round: m, the size of every cohort, 1 to ``num_clients``.
            num_clients: How many clients have data; their number counts as public.

        Returns:
            epsilon >= 0; infinite without noise.
        """
        check_range("rounds", rounds, low=0, whole=True)
        check_range("num_clients", num_clients, low=1, whole=True)
        check_range("clients_per_round", clients_per_round, low=1, high=num_clients, whole=True)
        if not rounds:
            return 0.0
        if not self.noise_multiplier:
            return float("inf")
        dp = import_accountant()
        noise = dp.GaussianDpEvent(self.noise_multiplier / 2)
        accountant = dp.rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
        accountant.compose(dp.SampledWithoutReplacementDpEvent(num_clients, clients_per_round, noise), rounds)
        return float(accountant.get_epsilon(self.delta))


def import_accountant() -> Any:
    """Return the library dp_accounting; raise with how to install it if it is missing."""
    try:
        importlib.import_module("dp_accounting.rdp")
        return importlib.import_module("dp_accounting")
    except ImportError:
        raise MissingResourceError("DPFedAvg needs the package dp-accounting: pip install 'fedkd[privacy]'.") from None
