"""Heads: from a teacher's features to logits, fitted without any image or feature leaving a client."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.core.errors import FedKDError, check_range
from fedkd.teachers.heads.calibration import best, loss_sums, scale_grid
from fedkd.teachers.heads.modules import ClipNorm, LinearClassifier, ZeroShotHead
from fedkd.teachers.heads.privacy import GaussianPrivacy
from fedkd.teachers.heads.ridge import RidgeStatistics, is_held_out
from fedkd.teachers.heads.ridge_solution import RidgeProblem, RidgeSolution, choose_regularization

__all__ = ["FederatedHead", "FittedHead", "LinearClassifier", "RidgeHead", "Shards", "ZeroShotHead", "scale_grid"]


@dataclass(frozen=True, eq=False)
class FittedHead:
    """What a federated fit ends with.

    Args:
        module: Features (B, D) -> logits (B, K).
        bytes_up: Bytes that all clients sent, together.
        bytes_down: Bytes that were sent to them, together (not the finished head itself).
        sends: What a client sends, in words.
        chosen: What the fit chose, by name, such as the regularisation.
    """

    module: nn.Module
    bytes_up: int
    bytes_down: int
    sends: str = ""
    chosen: Mapping[str, float] = field(default_factory=dict)


class FederatedHead(ABC):
    """A way to fit a head from what clients compute on their own features. Arguments are its configuration."""

    @abstractmethod
    def fit(self, features: np.ndarray, targets: Tensor, shards: Sequence[np.ndarray], num_classes: int) -> FittedHead:
        """Fit a head.

        Args:
            features: (N, D) of all images; a client looks only at the rows of its shard.
            targets: (N,) labels, likewise.
            shards: For each client its positions in the two; empty ones send nothing.
            num_classes: K.
        """

    def starting_from(self, head: nn.Module) -> FederatedHead:
        """Return the method for a teacher that brings a head of its own, such as `ZeroShotHead`; most ignore it."""
        return self


class Shards:
    """The clients' features and labels, each looked at by its own client only.

    Args:
        features: (N, D) of all images.
        targets: (N,).
        shards: For each client its positions in the two.
        privacy: Clips features. With it clients without an image take part too, for their silence would tell.
    """

    def __init__(
        self, features: np.ndarray, targets: Tensor, shards: Sequence[np.ndarray], privacy: GaussianPrivacy | None
    ) -> None:
        self.features, self.targets, self.privacy = features, targets, privacy
        self.clients = {c: shard for c, shard in enumerate(shards) if len(shard) or privacy is not None}
        if not self.clients:
            raise FedKDError("Cannot fit a head: no client has an image.")

    def __len__(self) -> int:
        """Return how many clients take part."""
        return len(self.clients)

    def rows(self, shard: np.ndarray, clip: bool = True) -> tuple[Tensor, Tensor]:
        """Return a client's features (n, D) float64, clipped if they are to be private, and labels (n,)."""
        features = torch.from_numpy(np.asarray(self.features[shard])).double()
        if self.privacy is not None and clip:
            features = self.privacy.clipped(features)
        return features, self.targets[torch.from_numpy(shard)]


@dataclass(frozen=True)
class RidgeHead(FederatedHead):
    """Ridge regression on one-hot targets, solved in closed form from sums that clients send, then given a temperature.

    The head is the same, to rounding, for every partition of the same data: see `fedkd.teachers.heads.ridge`.

    The regularisation is chosen by the server, without looking at any image: each client sends its sums in two parts,
    over a fixed fifth of its images and over the others. The sums of the others solve the regression for each value of
    a grid, those of the fifth tell each solution's squared error, and all of them make the final head.

    What a ridge regression fits lies around 0 and 1, too flat for a softmax to teach with. So in a second exchange a
    scale is chosen: the server sends the solution and a grid of scales, each client answers with its sum of
    cross-entropies at each of them, and the server takes the scale of the least total. The logits in it are
    leave-one-out ones, for a head is overconfident on images that it was fitted to.

    With privacy both exchanges share the one budget. The penalty is at least the norm of all noise, which is known
    without asking, and then little is left to choose: "auto" is that or 0.01, and the images stay in one part. The
    scale is chosen on fitted logits, since a private solution depends on no image much.

    Args:
        regularization: The penalty, relative to the features' mean variance, > 0; or "auto".
        privacy: Makes all that clients send differentially private.
    """

    regularization: float | Literal["auto"] = "auto"
    privacy: GaussianPrivacy | None = None

    def __post_init__(self) -> None:
        if isinstance(self.regularization, str):
            if self.regularization != "auto":
                raise FedKDError(f"regularization must be > 0 or 'auto', got {self.regularization!r}.")
        else:
            check_range("regularization", self.regularization, low=0, low_open=True)

    def fit(self, features: np.ndarray, targets: Tensor, shards: Sequence[np.ndarray], num_classes: int) -> FittedHead:
        """Fit the head: see `FederatedHead.fit`."""
        data = Shards(features, targets, shards, self.privacy)
        solution, regularization, bytes_up = self._regress(data, num_classes)
        scales = scale_grid(steps=1 if self.privacy else 4)
        answers = []
        for client, shard in data.clients.items():
            x, y = data.rows(shard)
            logits = self._unseen(solution, x, y)
            answers.append(loss_sums((scale * logits for scale in scales), y, self.privacy, client))
        scale = float(scales[best(answers, self.privacy)])
        return FittedHead(
            self._module(solution, scale),
            bytes_up=bytes_up + sum(8 * len(answer) for answer in answers),
            bytes_down=len(data) * (self._bytes_down(solution) + 8 * len(scales)),
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

    def _regress(self, data: Shards, num_classes: int) -> tuple[RidgeSolution, float, int]:
        """Return the solution, its regularisation, and the bytes that were sent for it: the first exchange."""

        def send(part: Callable[[np.ndarray], np.ndarray]) -> list[RidgeStatistics]:
            sent = []
            for client, shard in data.clients.items():
                statistics = RidgeStatistics.from_features(*data.rows(shard[part(shard)]), num_classes)
                sent.append(statistics.noisy(self.privacy, "ridge", client) if self.privacy else statistics)
            return sent

        if self._in_two_parts:
            fitted, held_out = send(lambda shard: ~is_held_out(shard)), send(is_held_out)
            sent = fitted + held_out
            regularization = choose_regularization(reduce(add, fitted), reduce(add, held_out))
        else:
            sent = send(lambda shard: np.ones(len(shard), bool))
            regularization = 1e-2 if self.regularization == "auto" else float(self.regularization)
        problem = RidgeProblem.from_statistics(reduce(add, sent))
        num_bytes = sum(statistics.num_bytes for statistics in sent)
        return problem.solve(regularization), problem.effective(regularization), num_bytes

    def _unseen(self, solution: RidgeSolution, features: Tensor, targets: Tensor) -> Tensor:
        """Return unscaled logits (n, K) that are not overconfident on images that were fitted."""
        return solution.predict(features) if self.privacy else solution.leave_one_out(features, targets)

    def _bytes_down(self, solution: RidgeSolution) -> int:
        if self.privacy is None:
            return solution.num_bytes
        return 8 * (solution.weight.numel() + solution.bias.numel())  # leaving one out needs more

    def _module(self, solution: RidgeSolution, scale: float) -> nn.Module:
        classifier = LinearClassifier(solution.weight, solution.bias, scale)
        return nn.Sequential(ClipNorm(self.privacy.clip), classifier) if self.privacy else classifier
