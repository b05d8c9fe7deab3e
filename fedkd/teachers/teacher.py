"""The base of all teachers: a frozen network that maps images to features, and features to logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedkd.core.config import one_line
from fedkd.core.errors import FedKDError
from fedkd.teachers.heads.head import FederatedHead
from fedkd.teachers.heads.ridge import RidgeHead
from fedkd.teachers.outputs.fingerprint import fingerprint


class Teacher(nn.Module, ABC):
    """A frozen teacher. To add one, subclass it with ``__init__`` and ``features``; nothing else is needed.

        class MyTeacher(Teacher):
            def __init__(self) -> None:
                super().__init__()
                self.backbone = load_my_network()

            def features(self, images: Tensor) -> Tensor:
                return self.backbone(2 * images - 1)

    Every module or parameter that is assigned to a teacher is frozen and stays in evaluation mode. Features are
    computed once and cached. Then ``head_method`` fits ``head`` on them federatedly. A teacher with its own classifier
    assigns it to ``head`` (``nn.Identity()`` if ``features`` already returns logits).

    Args:
        head_method: The method that fits the head from what clients send; a ridge head by default.

    Attributes:
        head: Maps features (B, D) to logits (B, K). None until it is fitted.
        head_is_fitted: Whether ``head_method`` fitted ``head``. If so, other data needs a new fit.
        classes: The class names, after `prepare` was called.
        image_shape: (C, H, W) of the data's images, known before `prepare` is called.
    """

    not_in_features: ClassVar[frozenset[str]] = frozenset(
        {"head", "head_method", "head_is_fitted", "classes", "image_shape"}
    )
    """Names of attributes that features do not depend on: the cache stays valid when they change."""

    head: nn.Module | None

    def __init__(self, head_method: FederatedHead | None = None) -> None:
        super().__init__()
        if head_method is not None and not isinstance(head_method, FederatedHead):
            raise FedKDError(f"head must be a FederatedHead such as RidgeHead(), got {head_method!r}.")
        self.head_method = RidgeHead() if head_method is None else head_method
        self.head = None
        self.head_is_fitted = False
        self.classes: tuple[str, ...] = ()
        self.image_shape: tuple[int, int, int] = (3, 32, 32)
        self.training = False

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Compute features.

        Args:
            images: (B, C, H, W) in [0, 1], where C is 1 or 3. The teacher itself resizes and normalizes them.

        Returns:
            (B, D) float32.
        """

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits: images (B, C, H, W) in [0, 1] -> (B, K) float32.

        Raises:
            FedKDError: If the head is not fitted yet.
        """
        if self.head is None:
            raise FedKDError(
                f"{type(self).__name__} has no head yet: prepare_teacher(...) fits it on the clients' data."
            )
        return self.head(self.features(images)).float()

    def prepare(self, classes: Sequence[str]) -> None:
        """Store the K class names. Called once, before any image is processed."""
        self.classes = tuple(classes)

    def fingerprint(self) -> str:
        """Return a hash of everything that the features depend on: weights, code, settings, preprocessing, dtype."""
        return fingerprint(self, ignore=self.not_in_features)

    def identity(self) -> str:
        """Return a line that identifies this teacher before it is prepared. A resumed run compares it."""
        data = {"classes", "image_shape"}
        what = fingerprint(self, ignore=data) if self.overrides_forward else self.fingerprint()
        names = sorted(self.not_in_features - data - {"head", "head_is_fitted"})
        texts = [f"{name}={one_line(vars(self)[name])}" for name in names if name in vars(self)]
        return f"{type(self).__qualname__} {what[:16]}, {', '.join(texts)}"

    @property
    def overrides_forward(self) -> bool:
        """Whether the teacher overrides `forward`, so its logits need not be its head's outputs for its features."""
        return type(self).forward is not Teacher.forward

    @property
    def frozen_head(self) -> nn.Module | None:
        """Return the head, features (B, D) -> logits (B, K), if there is one and the logits are its outputs."""
        return None if self.overrides_forward else self.head

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        tensors = [*self.parameters(), *self.buffers()]
        return tensors[0].device if tensors else torch.device("cpu")

    @property
    def feature_dim(self) -> int:
        """Return D. One forward pass of a black image determines it."""
        with torch.no_grad():
            return self.features(torch.zeros(1, *self.image_shape, device=self.device)).shape[1]

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode, whatever ``mode``: a teacher never trains."""
        return super().train(False)

    def __setattr__(self, name: str, value: Any) -> None:
        """Freeze each module or parameter that is assigned."""
        if isinstance(value, nn.Module | nn.Parameter):
            value.requires_grad_(False)
        if isinstance(value, nn.Module):
            value.eval()
        super().__setattr__(name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call `forward` without gradients, but not in inference mode: a loss must be able to use the result."""
        with torch.no_grad():
            return super().__call__(*args, **kwargs)
