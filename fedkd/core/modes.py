"""Switch a network between training and evaluation, and keep the modes that the user gave to single parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """Put all parts of a module into evaluation mode, and each back into its own mode: some may be frozen in it."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield module
    finally:
        for part, mode in modes:
            part.training = mode


def let_train(module: nn.Module) -> None:
    """Put a module into training mode if it is in evaluation mode as a whole, as checkpoints are when they are loaded.

    In a module in training mode, parts that are in evaluation mode stay so: a BatchNorm that keeps its statistics.
    """
    if not module.training:
        module.train()
