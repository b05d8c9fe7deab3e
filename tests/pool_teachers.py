"""A teacher that the processes of a pool can import."""

from __future__ import annotations

from torch import Tensor

from fedkd.teachers import LoRATeacher


class InvertedTeacher(LoRATeacher):
    """A subclass with features of its own, of inverted images."""

    def features(self, images: Tensor) -> Tensor:
        return super().features(1 - images)
