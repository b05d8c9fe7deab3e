"""Ridge regression as a head: solved in closed form from sums that clients send, then scaled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Literal

import torch
from torch import Tensor, nn

from fedkd.core.errors import FedKDError, check_range
from fedkd.core.messages import ClientTask, ClientUpdate
from fedkd.data.site import ClientSite
from fedkd.teachers.heads.calibration import best, loss_sums, scale_grid
from fedkd.teachers.heads.clients import HeadClients, features_of, privacy_of
from fedkd.teachers.heads.head import FederatedHead, FittedHead
from fedkd.teachers.heads.modules import ClipNorm, LinearClassifier
from fedkd.teachers.heads.privacy import GaussianPrivacy
from fedkd.teachers.heads.ridge_solution import RidgeProblem, RidgeSolution, choose_regularization
from fedkd.teachers.heads.ridge_statistics import RidgeStatistics, is_held_out, pack, unpack


@dataclass(frozen=True)
class RidgeHead(FederatedHead):
    """Ridge regression on one-hot targets, solved in closed form from sums that clients send, then given a temperature.

    The head is the same, up to rounding, for every partition of the same data: see
    `fedkd.teachers.heads.ridge_statistics`.

    The server chooses the regularization only from sums. Each client sends its sums in two parts: over a fixed fifth
    of its images, and over the other images. The sums over the other images give a solution for each value of a grid.
    The sums over the fifth give the squared error of each solution. All sums together give the final head.

    The outputs of a ridge regression are around 0 and 1, so their softmax is too flat. A second exchange therefore
    chooses a scale. The server sends the solution and a grid of scales, each client replies with its sum of
    cross-entropies at each scale, and the server takes the scale with the least total. The logits are leave-one-out
    logits, because a head is overconfident on images that it was fitted to.

    With privacy both exchanges share one budget. The penalty is at least the norm of all noise, which is public.
    Little is then left to choose, so "auto" is this minimum or 0.01, whichever is larger, and the images are not split
    in two parts. The scale is chosen on fitted logits, because a private solution hardly depends on any single image.

    Args:
        regularization: The penalty, relative to the features' mean variance, > 0; or "auto".
        privacy: Makes everything that clients send differentially private.
        standardize: Whether each feature is divided by its standard deviation before, so that the penalty means the
            same for features of unlike sizes. Not with privacy.
        class_balanced: Whether classes count alike, whatever their numbers of images: an image of class c then counts
            n / (K n_c) times. Clients send their number of images of each class before. Not with privacy.
    """

    regularization: float | Literal["auto"] = "auto"
    privacy: GaussianPrivacy | None = None
    standardize: bool = False
    class_balanced: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.regularization, str):
            if self.regularization != "auto":
                raise FedKDError(f"regularization must be > 0 or 'auto', got {self.regularization!r}.")
        else:
            check_range("regularization", self.regularization, low=0, low_open=True)
        for name in ("standardize", "class_balanced"):
            if self.privacy is not None and getattr(self, name):
                raise FedKDError(f"{name}: true needs sums without noise. Set it to false, or leave out privacy.")

    def fit(self, clients: HeadClients) -> FittedHead:
        """Fit the head: see `FederatedHead.fit`."""
        balance = self._balance(clients)
        solution, regularization = self._regress(clients, balance)
        scales = scale_grid(steps=1 if self.privacy else 4)
        extras = {**self._sent(solution), **balance, "scales": scales}
        answers = clients.run(send_ridge_losses, extras, privacy=self.privacy)
        scale = float(scales[best([answer.extras["losses"] for answer in answers], self.privacy)])
        return FittedHead(
            self._module(solution, scale),
            sends=f"{self._sends}; then its loss at {len(scales)} scales",
            chosen={"regularization": regularization, "scale": scale},
        )

    @property
    def _in_two_parts(self) -> bool:
        return self.regularization == "auto" and self.privacy is None

    @property
    def _sends(self) -> str:
        parts = " over two parts of its images" if self._in_two_parts else ""
        return f"sums of x x^T and x y^T{parts}{', with noise' if self.privacy else ''}"

    def _balance(self, clients: HeadClients) -> dict[str, Tensor]:
        """Return what clients are told of how often an image of each class counts: nothing if all count once."""
        if not self.class_balanced:
            return {}
        counts = torch.stack([update.extras["counts"] for update in clients.run(send_class_counts)]).sum(0)
        weights = counts.sum() / (int((counts > 0).sum()) * counts.clamp(min=1))
        return {"class_weights": weights}

    def _regress(self, clients: HeadClients, balance: Mapping[str, Tensor]) -> tuple[RidgeSolution, float]:
        """Run the exchange of sums. Return the solution and its regularization."""
        parts = ("fit", "held_out") if self._in_two_parts else ("all",)
        updates = clients.run(send_ridge_statistics, balance, settings={"parts": parts}, privacy=self.privacy)
        sent = {part: [statistics_in(update, part) for update in updates] for part in parts}
        if self._in_two_parts:
            regularization = choose_regularization(
                reduce(add, sent["fit"]), reduce(add, sent["held_out"]), self.standardize
            )
        else:
            regularization = 1e-2 if self.regularization == "auto" else float(self.regularization)
        everything = [statistics for part in parts for statistics in sent[part]]
        problem = RidgeProblem.from_statistics(reduce(add, everything), self.standardize)
        return problem.solve(regularization), problem.effective(regularization)

    def _sent(self, solution: RidgeSolution) -> dict[str, Tensor]:
        """Return the tensors of the solution that a client needs. Leave-one-out logits need more than the weights."""
        if self.privacy is not None:
            return {"weight": solution.weight, "bias": solution.bias}
        return {
            "weight": solution.weight,
            "bias": solution.bias,
            "mean": solution.mean,
            "precision": pack(solution.precision),
            "count": torch.tensor(float(solution.count), dtype=torch.float64),
        }

    def _module(self, solution: RidgeSolution, scale: float) -> nn.Module:
        classifier = LinearClassifier(solution.weight, solution.bias, scale)
        return nn.Sequential(ClipNorm(self.privacy.clip), classifier) if self.privacy else classifier


def send_class_counts(site: ClientSite, task: ClientTask) -> ClientUpdate:
    """Send the number of the client's images of each class: ``extras["counts"]``, (K,) float64."""
    counts = torch.bincount(site.rows.targets, minlength=task.settings["num_classes"]).double()
    return ClientUpdate(task.client, len(site.rows), extras={"counts": counts})


def send_ridge_statistics(site: ClientSite, task: ClientTask) -> ClientUpdate:
    """Send the sums over the client's images, or over each of two parts of them. With privacy the sums have noise.

    Args:
        site: The client's site.
        task: ``settings["parts"]`` names the parts: "all", or "fit" and "held_out". ``extras["class_weights"]``, (K,),
            where classes count alike.
    """
    privacy, features, targets = privacy_of(task), features_of(site, task), site.rows.targets
    held_out = torch.from_numpy(is_held_out(site.rows.index.numpy()))
    chosen = {"all": torch.ones(len(targets), dtype=torch.bool), "fit": ~held_out, "held_out": held_out}
    extras: dict[str, Tensor] = {}
    metrics: dict[str, float] = {}
    for part in task.settings["parts"]:
        rows = chosen[part]
        statistics = RidgeStatistics.from_features(
            features[rows], targets[rows], task.settings["num_classes"], task.extras.get("class_weights")
        )
        if privacy is not None:
            statistics = statistics.noisy(privacy, "ridge", task.client)
        extras |= {
            f"{part}/second_moments": statistics.second_moments,
            f"{part}/cross_moments": statistics.cross_moments,
        }
        metrics[f"{part}/noise"] = statistics.noise
    return ClientUpdate(task.client, len(site.rows), metrics=metrics, extras=extras)


def statistics_in(update: ClientUpdate, part: str) -> RidgeStatistics:
    """Return what a client sent for one part of its images."""
    second, cross = (update.extras[f"{part}/{name}"] for name in ("second_moments", "cross_moments"))
    return RidgeStatistics(second, cross, update.metrics[f"{part}/noise"])


def send_ridge_losses(site: ClientSite, task: ClientTask) -> ClientUpdate:
    """Send the client's summed loss of the solution's logits times each scale: ``extras["losses"]``, (G,).

    Args:
        site: The client's site.
        task: ``extras`` hold the solution (`RidgeHead`) and the ``scales``, (G,).
    """
    logits, targets = unseen_logits(site, task), site.rows.targets
    weights, scaled = task.extras.get("class_weights"), (scale * logits for scale in task.extras["scales"])
    losses = loss_sums(scaled, targets, privacy_of(task), task.client, weights)
    return ClientUpdate(task.client, len(site.rows), extras={"losses": losses})


def unseen_logits(site: ClientSite, task: ClientTask) -> Tensor:
    """Return unscaled logits (n, K) of the client's images, without the overconfidence of a fit to these images."""
    features, extras = features_of(site, task), task.extras
    if task.settings["privacy"] is not None:
        return features @ extras["weight"] + extras["bias"]
    solution = RidgeSolution(
        extras["weight"],
        extras["bias"],
        extras["mean"],
        unpack(extras["precision"], len(extras["mean"])),
        float(extras["count"]),
    )
    weights = extras.get("class_weights")
    return solution.leave_one_out(features, site.rows.targets, None if weights is None else weights[site.rows.targets])
