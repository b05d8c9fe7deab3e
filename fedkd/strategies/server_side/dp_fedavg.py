"""DP-FedAvg: McMahan et al., "Learning Differentially Private Recurrent Language Models", arXiv 1710.06963.

Algorithm 1 with flat clipping, for cohorts of a fixed size m: w_{t+1} = w_t + (1 / m) (sum_k clip(delta_k, C) + N(0,
(z C)^2 I)). It protects whole clients: the sequence of global models would hardly differ with another client's data.
"""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from fedkd.core.errors import FedKDError, MissingResourceError, check_range
from fedkd.core.messages import ClientUpdate, ServerState
from fedkd.core.seeding import derive_seed
from fedkd.core.tensors import Tensors, weighted_mean
from fedkd.strategies.base import Strategy
from fedkd.strategies.robust.norm_clipping import clip

if TYPE_CHECKING:
    from fedkd.data import FederatedDataModule
    from fedkd.server.context import ServerContext
    from fedkd.training.module import DistillationModule


class DPFedAvg(Strategy):
    """Clip every client's delta, average with equal weights, add Gaussian noise; epsilon is in every round's row.

    The server is trusted: it sees deltas and adds the noise. All clients count the same, for a weight by examples would
    tell of a client and scale its pull. What epsilon covers, and what not, is in docs/strategies.md.

    Args:
        clip_norm: C, the largest norm of a client's delta, all parameters together, > 0.
        noise_multiplier: z, the noise's standard deviation in the sum of deltas over C, >= 0; 0 is no privacy.
        delta: At which epsilon is stated, in (0, 1); it should be well below 1 / the number of clients.
        seed: Decides the noise, with the round: runs can be repeated, but whoever knows the seed can take the noise off
            again. Repetitions with other run seeds need other ones here. None draws the noise's seed from the operating
            system, for models that are given away; such a run cannot be repeated.

    Raises:
        FedKDError: For values out of range; for a student with buffers (`check`).
        MissingResourceError: If the accountant is not installed.
    """

    private: ClassVar[bool] = True

    def __init__(
        self, clip_norm: float = 1.0, noise_multiplier: float = 1.0, delta: float = 1e-5, seed: int | None = 0
    ) -> None:
        check_range("clip_norm", clip_norm, low=0, low_open=True)
        check_range("noise_multiplier", noise_multiplier, low=0)
        check_range("delta", delta, low=0, high=1, low_open=True, high_open=True)
        import_accountant()
        self.clip_norm, self.noise_multiplier, self.delta, self.seed = clip_norm, noise_multiplier, delta, seed
        self._frozen: set[str] = set()

    def check(self, module: DistillationModule, datamodule: FederatedDataModule, cohort_size: int) -> None:
        """Refuse buffers: they are what a client saw, neither clipped nor noised. Note what is trained."""
        assert module.student is not None
        self._frozen = {name for name, value in module.student.named_parameters() if not value.requires_grad}
        names = set(module.student.state_dict()) - {name for name, _ in module.student.named_parameters()}
        if names:
            raise FedKDError(
                f"DPFedAvg protects parameters alone, but the student has buffers ({min(names)}, ...), which tell of "
                "clients' images: take one without BatchNorm, model.student_options: {norm: group}."
            )

    def weights(self, updates: Sequence[ClientUpdate]) -> list[float]:
        """Return 1 for each: with cohorts of a fixed size m, 1 / m is the paper's 1 / (q N)."""
        return [1.0] * len(updates)

    def combine(self, state: ServerState, updates: Sequence[ClientUpdate], weights: Sequence[float]) -> Tensors:
        """Return the noisy mean of the clipped deltas; what no client trains stays as it is."""
        mean = weighted_mean([clip(update.delta, self.clip_norm) for update in updates], [1.0] * len(updates))
        seed = secrets.randbits(63) if self.seed is None else derive_seed(self.seed, "noise", state.round)
        generator = torch.Generator().manual_seed(seed)
        scale = self.noise_multiplier * self.clip_norm / len(updates)
        trained = [name for name in mean if name not in self._frozen]
        noisy = {name: mean[name] + scale * torch.randn(mean[name].shape, generator=generator) for name in trained}
        return {**mean, **noisy}

    def metrics(self, state: ServerState, updates: Sequence[ClientUpdate], context: ServerContext) -> dict[str, float]:
        """Return epsilon after the rounds so far."""
        num_clients = sum(len(shard) > 0 for shard in context.datamodule.shards)
        return {"epsilon": self.epsilon(state.round, len(updates), num_clients)}

    def epsilon(self, rounds: int, clients_per_round: int, num_clients: int) -> float:
        """Return epsilon, at this strategy's delta, for neighbours that differ in one client being replaced.

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
    """Return the library dp_accounting, or say how to get it."""
    try:
        importlib.import_module("dp_accounting.rdp")
        return importlib.import_module("dp_accounting")
    except ImportError:
        raise MissingResourceError("DPFedAvg needs the package dp-accounting: pip install 'fedkd[privacy]'.") from None
