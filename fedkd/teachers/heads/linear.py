"""A linear softmax classifier by federated averaging: McMahan et al. 2017, arXiv 1602.05629, on cached features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedkd.core.errors import check_range
from fedkd.core.seeding import derive_seed
from fedkd.teachers.heads.head import FederatedHead, FittedHead, Shards
from fedkd.teachers.heads.modules import LinearClassifier


@dataclass(frozen=True)
class LinearHead(FederatedHead):
    """Softmax regression, trained by rounds of local SGD and averaging: what clients would do without closed forms.

    Unlike `RidgeHead` it depends on the partition: the more classes differ between clients, the more local steps pull
    apart. Features are standardised first, with means and variances from sums, so that ``lr`` means the same for every
    backbone; in the end that is folded into the weights. Every client takes part in every round.

    Args:
        rounds: Rounds of averaging; >= 1.
        local_epochs: Passes of a client over its features in a round; >= 1.
        lr: The step size of local SGD; > 0.
        batch_size: Features in a step; >= 1.
        weight_decay: Added to the gradient of the weights, not of the biases; >= 0.
        seed: Decides the order of features within a client.
    """

    rounds: int = 20
    local_epochs: int = 1
    lr: float = 0.1
    batch_size: int = 32
    weight_decay: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("rounds", self.rounds, low=1, whole=True)
        check_range("local_epochs", self.local_epochs, low=1, whole=True)
        check_range("lr", self.lr, low=0, low_open=True)
        check_range("batch_size", self.batch_size, low=1, whole=True)
        check_range("weight_decay", self.weight_decay, low=0)

    def fit(self, features: np.ndarray, targets: Tensor, shards: Sequence[np.ndarray], num_classes: int) -> FittedHead:
        """Fit the head: see `FederatedHead.fit`."""
        data = Shards(features, targets, shards, privacy=None)
        moments = torch.stack([_moments(data.rows(shard)[0]) for shard in data.clients.values()]).sum(0)  # (2 D + 1,)
        dim, n = features.shape[1], float(moments[-1])
        mean = moments[:dim] / n
        std = (moments[dim:-1] / n - mean.square()).clamp(min=0).sqrt()
        std = torch.where(std > 1e-6 * mean.abs(), std, torch.ones_like(std))  # a constant feature says nothing

        weight = torch.zeros(dim + 1, num_classes)  # the last row is the bias
        for round in range(self.rounds):
            average = torch.zeros_like(weight, dtype=torch.float64)
            for client, shard in data.clients.items():
                x, y = data.rows(shard)
                local = self._train(weight, ((x - mean) / std).float(), y, derive_seed(self.seed, round, client))
                average += local.double() * (len(shard) / n)
            weight = average.float()

        folded = weight[:-1].double() / std[:, None]
        return FittedHead(
            LinearClassifier(folded, weight[-1] - mean @ folded),
            bytes_up=len(data) * (8 * len(moments) + self.rounds * 4 * weight.numel()),
            bytes_down=len(data) * (8 * 2 * dim + self.rounds * 4 * weight.numel()),
            sends=f"sums of x and x^2; then, in each of {self.rounds} rounds, its classifier",
        )

    def _train(self, weight: Tensor, features: Tensor, targets: Tensor, seed: int) -> Tensor:
        """Return a client's weights (D + 1, K) after its local epochs."""
        weight = weight.clone()
        x = F.pad(features, (0, 1), value=1.0)  # (n, D + 1)
        one_hot = F.one_hot(targets, weight.shape[1]).float()
        decay = torch.full((len(weight), 1), self.weight_decay)
        decay[-1] = 0
        generator = torch.Generator().manual_seed(seed)
        for _ in range(self.local_epochs):
            for batch in torch.randperm(len(x), generator=generator).split(self.batch_size):
                error = (x[batch] @ weight).softmax(1) - one_hot[batch]  # (b, K), the gradient by the logits
                weight -= self.lr * (x[batch].T @ error / len(batch) + decay * weight)
        return weight


def _moments(features: Tensor) -> Tensor:
    """(n, D) -> the sums of x and x^2 and n: (2 D + 1,) float64."""
    return torch.cat([features.sum(0), features.square().sum(0), features.new_tensor([len(features)])])
