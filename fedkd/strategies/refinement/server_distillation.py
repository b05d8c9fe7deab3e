"""Distillation on the server, from the foundation model and from the clients' models, after aggregation.

The server distills the foundation model into the global student on unlabeled images, in addition to the clients;
the ensemble of the clients' models is FedDF's teacher (Lin et al., arXiv 2006.07242; `fedkd.strategies.FedDF`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedkd.core.errors import FedKDError, check_range
from fedkd.core.messages import ClientUpdate, ServerState
from fedkd.data import FederatedDataModule
from fedkd.strategies.base import Strategy
from fedkd.strategies.context import RoundContext, Which
from fedkd.strategies.refinement.pools import check_pool
from fedkd.training.module import DistillationModule


class ServerDistillation(Strategy):
    r"""After aggregation the server distills into the global student, on images that belong to no client.

    .. math:: T^2 (w_t \, KL(\sigma(t / T) \| \sigma(s / T)) + w_e \, KL(\sigma(\bar z / T) \| \sigma(s / T)))

    with the foundation model's cached logits t, the mean :math:`\bar z` of the logits of the round's clients, and the
    student's s. Adam, with a cosine down to 0 in every round. No label is
    read; images are augmented as on the clients. Nothing travels
    for it, and its seconds are part of the round's. A server optimizer's momentum, and a client's control variate,
    see the clients' deltas alone: the next round starts from the refined student.

    Args:
        teacher_weight: w_t, of the foundation model, >= 0.
        ensemble_weight: w_e, of the ensemble of the round's clients, >= 0.
        epochs: Passes over the images in every round; with 0 nothing is done.
        lr: Adam's first learning rate.
        temperature: T > 0.
        images: "public" is the public split, "shared" what ``data.shared`` gives to all clients.

    Raises:
        FedKDError: For values out of range, or if nothing teaches.
    """

    changes_student = True

    def __init__(
        self,
        teacher_weight: float = 1.0,
        ensemble_weight: float = 0.0,
        epochs: int = 5,
        lr: float = 1e-3,
        temperature: float = 2.0,
        images: Which = "public",
    ) -> None:
        check_range("teacher_weight", teacher_weight, low=0)
        check_range("ensemble_weight", ensemble_weight, low=0)
        check_range("epochs", epochs, low=0, whole=True)
        check_range("lr", lr, low=0, low_open=True)
        check_range("temperature", temperature, low=0, low_open=True)
        if not teacher_weight + ensemble_weight:
            raise FedKDError("teacher_weight and ensemble_weight are both 0: give one of them a number above.")
        self.teacher_weight, self.ensemble_weight = teacher_weight, ensemble_weight
        self.epochs, self.lr, self.temperature, self.images = epochs, lr, temperature, images

    def check(self, module: DistillationModule, datamodule: FederatedDataModule) -> None:
        """Ask for public images, and for a foundation model where it has a weight."""
        check_pool(self.images, datamodule)
        if self.teacher_weight and module.teacher is None:
            name = type(self).__name__
            raise FedKDError(f"{name}: teacher_weight {self.teacher_weight:g} needs a teacher: set model.teacher.")

    def refine(self, state: ServerState, updates: Sequence[ClientUpdate], context: RoundContext) -> ServerState:
        """Distill."""
        if not self.epochs:
            return state
        pool, sources = context.pool(self.images), []
        if self.teacher_weight:
            assert pool.teacher_logits is not None
            sources.append((self.teacher_weight, pool.teacher_logits))
        if self.ensemble_weight:
            sources.append((self.ensemble_weight, context.ensemble_logits(updates, pool)))
        return context.distill(
            state,
            pool,
            mixed_logits(sources, self.temperature),
            epochs=self.epochs,
            lr=self.lr,
            temperature=self.temperature,
            weight=self.teacher_weight + self.ensemble_weight,
        )

    @property
    def reads_updates(self) -> bool:
        """Whether the clients' models teach."""
        return bool(self.ensemble_weight)


def mixed_logits(sources: Sequence[tuple[float, Tensor]], temperature: float) -> Tensor:
    r"""Return the one teacher that teaches what several do: (..., K).

    .. math:: T \log \sum_i \frac{w_i}{\sum_j w_j} \sigma(z_i / T)

    For :math:`\sum_i w_i KL(p_i \| q)` and :math:`(\sum_i w_i) KL(\bar p \| q)`, with the weighted mean
    :math:`\bar p` of the p_i, differ by a constant: their gradients in q are the same.

    Args:
        sources: Weights > 0 and logits, all of one shape (..., K).
        temperature: T > 0.
    """
    if len(sources) == 1:
        return sources[0][1]
    total = sum(weight for weight, _ in sources)
    shares = [(logits.float() / temperature).log_softmax(-1) + math.log(weight / total) for weight, logits in sources]
    return temperature * torch.stack(shares).logsumexp(0)
