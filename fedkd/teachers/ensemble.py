"""Several teachers as one: their predictions are averaged, with given weights or weights fitted to public images."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedkd.core.errors import FedKDError
from fedkd.core.local import Connect
from fedkd.data import FederatedDataModule
from fedkd.teachers.catalogue import create
from fedkd.teachers.heads.ensemble import EnsembleHead, MembersHeads, fitted_weights, head_of
from fedkd.teachers.outputs.fingerprint import fingerprint
from fedkd.teachers.teacher import Teacher


class EnsembleTeacher(Teacher):
    """Several teachers as one. Each may be zero-shot or have a head that is fitted.

    Its features are the members' features, concatenated. Its head averages their predictions: see `EnsembleHead`.

    Args:
        teachers: The members: teachers, or arguments of `fedkd.teachers.create`.
        weights: One number >= 0 per member, of which only the ratios matter; or "fitted", which fits the weights to the
            public images by cross-entropy and needs ``public_fraction`` above 0; or None for equal weights.

    Raises:
        FedKDError: If there is no member, or the weights are not one of these.
    """

    not_in_features = Teacher.not_in_features | {"weights", "widths"}

    def __init__(self, teachers: list[Teacher | str], weights: list[float] | Literal["fitted"] | None = None) -> None:
        super().__init__()
        if not teachers:
            raise FedKDError("teachers is empty: an ensemble needs at least one teacher.")
        self.weights = weights
        self.initial_weights = _checked(weights, len(teachers))
        self.members = nn.ModuleList(create(each) if isinstance(each, str) else each for each in teachers)
        self.widths: tuple[int, ...] = ()

    @property
    def teachers(self) -> list[Teacher]:
        """The members."""
        return list(self.members)  # type: ignore[arg-type]

    def features(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> the members' features, concatenated (B, D_1 + ... + D_M) float32."""
        return torch.cat([_outputs(member, images) for member in self.teachers], dim=1)

    def prepare(self, classes: Sequence[str]) -> None:
        """Prepare the members. If each has its own head, build the ensemble's head."""
        super().prepare(classes)
        black = torch.zeros(1, *self.image_shape, device=self.device)
        with torch.no_grad():
            for member in self.teachers:
                member.image_shape = self.image_shape
                member.prepare(classes)
            self.widths = tuple(_outputs(member, black).shape[1] for member in self.teachers)
        self.head_method = MembersHeads(self.teachers, self.widths, self.initial_weights)
        heads = [head_of(member) for member in self.teachers]
        self.head, self.head_is_fitted = None, False
        if all(head is not None for head in heads):
            weights = self.initial_weights.to(self.device)
            self.head = EnsembleHead([head for head in heads if head is not None], self.widths, weights)

    def fit_weights(self, outputs: Tensor, targets: Tensor) -> None:
        """Fit the weights to public images, if ``weights`` is "fitted". Called after the head is fitted.

        Args:
            outputs: Features (P, D_1 + ... + D_M) of the public images.
            targets: (P,) labels.

        Raises:
            FedKDError: If ``weights`` is "fitted" and P is 0.
        """
        if self.weights != "fitted":
            return
        if len(targets) == 0:
            raise FedKDError("weights 'fitted' needs public images: set public_fraction above 0, or give the weights.")
        assert isinstance(self.head, EnsembleHead)
        with torch.no_grad():
            opinions = self.head.opinions(outputs.to(self.device)).cpu()
        self.head.weights.copy_(fitted_weights(opinions, targets.cpu()))

    def adapt(self, data: FederatedDataModule, connect: Connect) -> None:
        """Adapt each member that can be adapted: see `LoRATeacher.adapt`."""
        for member in self.teachers:
            if adapt := getattr(member, "adapt", None):
                adapt(data, connect)

    def fingerprint(self) -> str:
        """Return a hash of everything that the features depend on: the members, and what a subclass adds to them."""
        each = [fingerprint(m) if m.overrides_forward else m.fingerprint() for m in self.teachers]
        if type(self) is not EnsembleTeacher:
            each.append(fingerprint(self, ignore=self.not_in_features | {"members", "initial_weights"}))
        return hashlib.sha256(" ".join(["ensemble", *each]).encode()).hexdigest()

    def identity(self) -> str:
        """Return the members' identities and the weights: see `Teacher.identity`."""
        return f"EnsembleTeacher of {'; '.join(m.identity() for m in self.teachers)}; weights={self.weights!r}"


def _outputs(member: Teacher, images: Tensor) -> Tensor:
    """Return a member's features, or its logits if it overrides ``forward``."""
    return (member(images) if member.overrides_forward else member.features(images)).float()


def _checked(weights: Any, count: int) -> Tensor:
    """Return the initial weights, (M,), which sum to one."""
    is_name = isinstance(weights, str)
    if weights is None or (is_name and weights == "fitted"):
        return torch.full((count,), 1 / count)
    is_list = isinstance(weights, Sequence) and not is_name
    if not is_list or not all(isinstance(w, Real) and not isinstance(w, bool) for w in weights):
        near = is_name and difflib.get_close_matches(weights, ["fitted"])
        hint = " Did you mean 'fitted'?" if near else ""
        raise FedKDError(f"weights must be a list of numbers, 'fitted' or null, got {weights!r}.{hint}")
    if len(weights) != count:
        raise FedKDError(f"weights must be one number per teacher, {count}, got {len(weights)}: {list(weights)}.")
    if not all(math.isfinite(w) and w >= 0 for w in weights) or sum(weights) == 0:
        raise FedKDError(f"weights must be >= 0 and not all 0, got {list(weights)}.")
    return torch.tensor(weights) / sum(weights)
