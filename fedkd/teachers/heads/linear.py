"""A linear softmax classifier by federated averaging: McMahan et al. 2017, arXiv 1602.05629, on cached features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedkd.core.errors import check_range
from fedkd.core.messages import ClientTask, ClientUpdate
from fedkd.core.seeding import derive_seed
from fedkd.data.site import ClientSite
from fedkd.teachers.heads.clients import HeadClients, features_of
from fedkd.teachers.heads.head import FederatedHead, FittedHead
from fedkd.teachers.heads.modules import LinearClassifier


@dataclass(frozen=True)
class LinearHead(FederatedHead):
    """Softmax regression, trained by rounds of local SGD and averaging: the baseline without a closed form.

    Unlike `RidgeHead` it depends on the partition: the more the classes differ between clients, the more the local
    weights diverge. Features are standardized first, with means and variances from the clients' sums, so that ``lr``
    means the same for every backbone. At the end the standardization is folded into the weights. Every client with
    images takes part in every round.

    Args:
        rounds: Rounds of averaging; >= 1.
        local_epochs: Passes of a client over its features in a round; >= 1.
        lr: The step size of local SGD; > 0.
        batch_size: Features in a step; >= 1.
        weight_decay: The factor of the weights that is added to their gradient, not to that of the biases; >= 0.
        seed: Determines the order of features within a client.
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

    def fit(self, clients: HeadClients) -> FittedHead:
        """Fit the head: see `FederatedHead.fit`."""
        sums = clients.run(send_feature_sums)
        moments = torch.stack([update.extras["sums"] for update in sums]).sum(0)  # (2 D + 1,)
        dim, n = clients.dim, float(moments[-1])
        mean = moments[:dim] / n
        std = (moments[dim:-1] / n - mean.square()).clamp(min=0).sqrt()
        std = torch.where(std > 1e-6 * mean.abs(), std, torch.ones_like(std))  # a constant feature is not scaled

        names = ("seed", "lr", "batch_size", "local_epochs", "weight_decay")
        settings = {name: getattr(self, name) for name in names}
        weight = torch.zeros(dim + 1, clients.num_classes)  # the last row is the bias
        states: dict[int, Mapping[str, Tensor]] = {}
        for round in range(self.rounds):
            extras = {"weight": weight} if states else {"weight": weight, "mean": mean, "std": std}
            updates = clients.run(train_linear_head, extras, {**settings, "round": round}, client_states=states)
            states = {update.client: update.client_state or {} for update in updates}
            average, total = torch.zeros_like(weight, dtype=torch.float64), sum(u.num_examples for u in updates)
            for update in updates:
                average += update.extras["weight"].double() * (update.num_examples / total)
            weight = average.float()

        folded = weight[:-1].double() / std[:, None]
        return FittedHead(
            LinearClassifier(folded, weight[-1] - mean @ folded),
            sends=f"sums of x and x^2; then, in each of {self.rounds} rounds, its classifier",
        )


def send_feature_sums(site: ClientSite, task: ClientTask) -> ClientUpdate:
    """Send the sums of the client's features and of their squares, and their count: ``extras["sums"]``, (2 D + 1,)."""
    features = features_of(site, task)
    count = features.new_tensor([len(features)])
    sums = torch.cat([features.sum(0), features.square().sum(0), count])
    return ClientUpdate(task.client, len(site.rows), extras={"sums": sums})


def train_linear_head(site: ClientSite, task: ClientTask) -> ClientUpdate:
    """Train the classifier on the client's standardized features: ``extras["weight"]``, (D + 1, K).

    Args:
        site: The client's site.
        task: ``extras`` hold the ``weight`` to start from and, in the first round, the features' ``mean`` and ``std``,
            (D,), which the client keeps. ``settings`` hold those of `LinearHead`, and the round.
    """
    settings = task.settings
    moments = task.client_state or {name: task.extras[name] for name in ("mean", "std")}
    features = ((features_of(site, task) - moments["mean"]) / moments["std"]).float()
    weight = task.extras["weight"].clone()
    x = F.pad(features, (0, 1), value=1.0)  # (n, D + 1)
    one_hot = F.one_hot(site.rows.targets, weight.shape[1]).float()
    decay = torch.full((len(weight), 1), settings["weight_decay"])
    decay[-1] = 0
    generator = torch.Generator().manual_seed(derive_seed(settings["seed"], settings["round"], task.client))
    for _ in range(settings["local_epochs"]):
        for batch in torch.randperm(len(x), generator=generator).split(settings["batch_size"]):
            error = (x[batch] @ weight).softmax(1) - one_hot[batch]  # (b, K), the gradient with respect to the logits
            weight -= settings["lr"] * (x[batch].T @ error / len(batch) + decay * weight)
    return ClientUpdate(task.client, len(site.rows), extras={"weight": weight}, client_state=moments)
