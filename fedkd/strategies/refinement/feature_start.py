"""A student whose body knows the teacher's features before the first round, from images of no client.

The teacher's labels of generated images are useless; its features are not. The server trains the student's body to
predict them, in the directions in which the clients' images differ most: the principal directions of the features of
all clients, whose sums a teacher's ridge head needs as well. It is the regression of FitNets (Romero et al., arXiv
1412.6550) on whitened principal directions, on images as in Baradad et al. (arXiv 2106.05963).
"""

from __future__ import annotations

from functools import reduce
from operator import add

import numpy as np
import torch
from torch import Tensor

from fedkd.core.errors import FedKDError, check_range
from fedkd.core.messages import ServerState
from fedkd.data import FederatedDataModule
from fedkd.strategies.base import Strategy
from fedkd.strategies.context import RoundContext, Which
from fedkd.strategies.refinement.pools import check_pool
from fedkd.teachers.heads.clients import HeadClients
from fedkd.teachers.heads.ridge import send_ridge_statistics, statistics_in
from fedkd.teachers.heads.ridge_solution import RidgeProblem
from fedkd.training.module import DistillationModule


class FeatureStart(Strategy):
    """Before the first round the server distills the teacher's features of unlabeled images into the student's body.

    Each client sends the sums of its teacher features once, as for a ridge head: (D + 1) (D + 2) / 2 + (D + 1) K
    numbers of 8 bytes. The student's last layer keeps its first weights.

    Args:
        images: "shared" is what ``data.shared`` gives, such as `fedkd.data.DeadLeaves` with ``fraction: 0``, which no
            client trains on; "public" is the public split.
        dim: How many principal directions are learned, >= 1.
        epochs: Passes over the images, >= 0.
        lr: Adam's first learning rate, which follows a cosine down to 0.

    Raises:
        FedKDError: If a value is out of range.
    """

    changes_student = True
    sends_sums = True
    needs_teacher_features = True

    def __init__(self, images: Which = "shared", dim: int = 128, epochs: int = 9, lr: float = 1e-3) -> None:
        check_range("dim", dim, low=1, whole=True)
        check_range("epochs", epochs, low=0, whole=True)
        check_range("lr", lr, low=0, low_open=True)
        self.images, self.dim, self.epochs, self.lr = images, dim, epochs, lr

    def check(self, module: DistillationModule, datamodule: FederatedDataModule) -> None:
        """Ask for images and a teacher."""
        check_pool(self.images, datamodule)
        if module.teacher is None:
            raise FedKDError("FeatureStart distills a teacher's features: set model.teacher.")

    def start(self, state: ServerState, context: RoundContext) -> ServerState:
        """Train the body."""
        if not self.epochs:
            return state
        features = context.pool(self.images).rows.teacher_features
        assert features is not None
        found = torch.from_numpy(np.asarray(features[np.arange(len(features))])).double()
        found = found.mean(1) if found.ndim == 3 else found  # (P, V, D) -> (P, D)
        clients = HeadClients(context.exchange, context.clients, len(context.classes), found.shape[1])
        updates = clients.run(send_ridge_statistics, settings={"parts": ("all",)})
        scatter = RidgeProblem.from_statistics(reduce(add, [statistics_in(each, "all") for each in updates])).scatter
        targets = whitened(found, principal_directions(scatter, self.dim)).float()
        return context.distill_features(state, context.pool(self.images), targets, epochs=self.epochs, lr=self.lr)


def principal_directions(scatter: Tensor, dim: int) -> Tensor:
    """Return the directions of most variance, (D, dim), by their variance; fewer if D is less than ``dim``.

    Args:
        scatter: (D, D), symmetric.
        dim: How many.
    """
    return torch.linalg.eigh(scatter).eigenvectors.flip(1)[:, :dim]


def whitened(features: Tensor, directions: Tensor) -> Tensor:
    """Project features (P, D) on directions (D, q), to mean 0 and variance 1: (P, q). What is constant becomes 0."""
    away = (features - features.mean(0)) @ directions
    spread = away.square().mean(0).sqrt()
    return away / torch.where(spread > 1e-9 * spread.max().clamp(min=1e-30), spread, torch.inf)
