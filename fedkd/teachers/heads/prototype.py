"""Class means as a head: Snell et al. 2017, "Prototypical Networks for Few-shot Learning" (arXiv 1703.05175).

The prototype of a class is the mean of its images' features. An image is assigned to the nearest prototype. Means need
only sums: a client sends, for each class, sum x, the number of its images and, for Euclidean distances, sum |x|^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedkd.core.errors import FedKDError, unknown_name
from fedkd.core.messages import ClientTask, ClientUpdate
from fedkd.data.site import ClientSite
from fedkd.teachers.heads.calibration import best, loss_sums, scale_grid
from fedkd.teachers.heads.clients import HeadClients, features_of, privacy_of
from fedkd.teachers.heads.head import FederatedHead, FittedHead
from fedkd.teachers.heads.modules import ClipNorm, LinearClassifier, UnitNorm
from fedkd.teachers.heads.privacy import SUMS_SHARE, GaussianPrivacy

_DISTANCES = ("cosine", "euclidean")


@dataclass(frozen=True)
class PrototypeHead(FederatedHead):
    """Class means, with a scale that is chosen as for `RidgeHead`. The head is the same for every partition.

    With "cosine" features x are first scaled to unit length, and the logits are scale * x . m_k / |m_k|. With
    "euclidean" they are -scale * |x - m_k|^2 / r^2, up to a term that is the same for all classes. r^2 is the mean
    squared distance of an image to its class mean, so the scale does not depend on the scale of the features.

    A client sends (D + 1) K numbers, or (D + 2) K with "euclidean". For large D this is far less than a ridge head's
    D^2 / 2. A class that no client has gets a cosine of -1, the least there is, or the squared distance of the mean of
    all images plus r^2, which an image near that mean may still prefer to a real class.

    Args:
        distance: "cosine" or "euclidean".
        privacy: Makes everything that clients send differentially private. Both exchanges share one budget.
    """

    distance: Literal["cosine", "euclidean"] = "cosine"
    privacy: GaussianPrivacy | None = None

    def __post_init__(self) -> None:
        if self.distance not in _DISTANCES:
            raise unknown_name("distance", self.distance, _DISTANCES)

    def fit(self, clients: HeadClients) -> FittedHead:
        """Fit the head: see `FederatedHead.fit`."""
        settings = {"distance": self.distance}
        updates = clients.run(send_prototype_sums, settings=settings, privacy=self.privacy)
        total = reduce(add, [update.extras["sums"] for update in updates])
        weight, bias = self.classifier(total)

        scales = scale_grid(octaves=12, steps=1 if self.privacy else 4)
        answers = clients.run(send_prototype_losses, {"total": total, "scales": scales}, settings, self.privacy)
        scale = float(scales[best([answer.extras["losses"] for answer in answers], self.privacy)])
        before: list[nn.Module] = [UnitNorm()] if self.distance == "cosine" else []
        if self.privacy and not before:
            before = [ClipNorm(self.privacy.clip)]
        classifier = LinearClassifier(weight, bias, scale)
        return FittedHead(
            nn.Sequential(*before, classifier) if before else classifier,
            sends=f"sums of x by class{', with noise' if self.privacy else ''}; then its loss at {len(scales)} scales",
            chosen={"scale": scale},
        )

    def sums(self, features: Tensor, targets: Tensor, num_classes: int) -> Tensor:
        """Return what a client sends, one column per class: sum x, the count, and for "euclidean" sum |x|^2.

        Args:
            features: (n, D) float64; n may be 0.
            targets: (n,).
            num_classes: K.

        Returns:
            (D + 1, K) or (D + 2, K) float64.
        """
        rows = [features, torch.ones(len(features), 1, dtype=torch.float64)]
        if self.distance == "euclidean":
            rows.append(features.square().sum(1, keepdim=True))
        each = torch.cat(rows, dim=1)
        return torch.zeros(num_classes, each.shape[1], dtype=torch.float64).index_add_(0, targets, each).T.contiguous()

    def noisy(self, sums: Tensor, client: int) -> Tensor:
        """Return a client's sums, with noise if there is ``privacy``.

        One image adds (x, 1) or (x, 1, |x|^2) to one column. So the sensitivity is sqrt(2) for "cosine", where x has
        length one, and sqrt(c^2 + 1 + c^4) for "euclidean", where its length is at most c = ``privacy.clip``.
        """
        if self.privacy is None:
            return sums
        c = self.privacy.clip
        sensitivity = math.sqrt(2) if self.distance == "cosine" else math.sqrt(c**2 + 1 + c**4)
        return self.privacy.add_noise(sums, sensitivity, SUMS_SHARE, "prototypes", client)

    def classifier(self, total: Tensor) -> tuple[Tensor, Tensor]:
        """Return W (D, K) and b (K,), float64, of the unscaled logits x W + b, from the sums over all clients."""
        dim = len(total) - (2 if self.distance == "euclidean" else 1)
        sums, counts = total[:dim], total[dim]
        absent = counts < 0.5  # with noise a count is not an integer
        if absent.all():
            raise FedKDError("Cannot fit a head: no client has an image, according to the clients' sums.")
        if self.distance == "cosine":
            weight, bias = F.normalize(sums, dim=0), torch.zeros_like(counts)
            return weight * ~absent, bias - 1.0 * absent
        present = counts.clamp(min=1) * ~absent
        everything = (sums * ~absent).sum(1, keepdim=True) / present.sum()
        means = torch.where(absent, everything, sums / counts.clamp(min=1))  # (D, K)
        radius = self._radius(total)
        return 2 * means / radius, -means.square().sum(0) / radius - 1.0 * absent

    def leave_one_out(self, total: Tensor, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the unscaled logits of each image from prototypes without this image, and its label.

        An image that is the only one of its class is left out: without it the class has no prototype.

        Args:
            total: The sums over all clients.
            features: (n, D) float64.
            targets: (n,).
        """
        dim = features.shape[1]
        keep = total[dim, targets] > 1.5
        x, y = features[keep], targets[keep]
        weight, bias = self.classifier(total)
        without = total[:dim, y].T - x  # (n, D)
        if self.distance == "cosine":
            own = (x * F.normalize(without, dim=1)).sum(1)
        else:
            means = without / (total[dim, y] - 1)[:, None]
            own = (2 * (x * means).sum(1) - means.square().sum(1)) / self._radius(total)
        return (x @ weight + bias).scatter(1, y[:, None], own[:, None]), y

    def _radius(self, total: Tensor) -> float:
        """Return r^2 = (sum |x|^2 - sum_k n_k |m_k|^2) / n. It is 1 if all features are 0.

        With privacy it is sum |x|^2 / n, which noise changes little. The choice of the scale corrects the difference.
        """
        sums, counts, squares = total[:-2], total[-2].clamp(min=1), total[-1]
        mean_square = float(squares.sum() / counts.sum())
        if self.privacy:
            return max(mean_square, 1e-6)
        within = float((squares - sums.square().sum(0) / counts).sum() / counts.sum())
        return max(within, 1e-6 * mean_square) or 1.0


def send_prototype_sums(site: ClientSite, task: ClientTask) -> ClientUpdate:
    """Send the client's sums by class: ``extras["sums"]``; see `PrototypeHead.sums`."""
    head = _head_of(task)
    sums = head.sums(_rows(head, site, task), site.rows.targets, task.settings["num_classes"])
    return ClientUpdate(task.client, len(site.rows), extras={"sums": head.noisy(sums, task.client)})


def send_prototype_losses(site: ClientSite, task: ClientTask) -> ClientUpdate:
    """Send the client's summed loss at each scale: ``extras["losses"]``, (G,).

    Args:
        site: The client's site.
        task: ``extras`` hold the ``total`` of all clients' sums and the ``scales``, (G,).
    """
    head, total = _head_of(task), task.extras["total"]
    x, y = _rows(head, site, task), site.rows.targets
    if head.privacy is not None:
        weight, bias = head.classifier(total)
        logits = x @ weight + bias
    else:
        logits, y = head.leave_one_out(total, x, y)
    losses = loss_sums((scale * logits for scale in task.extras["scales"]), y, head.privacy, task.client)
    return ClientUpdate(task.client, len(site.rows), extras={"losses": losses})


def _head_of(task: ClientTask) -> PrototypeHead:
    return PrototypeHead(task.settings["distance"], privacy_of(task))


def _rows(head: PrototypeHead, site: ClientSite, task: ClientTask) -> Tensor:
    features = features_of(site, task)
    return F.normalize(features, dim=1) if head.distance == "cosine" else features
