"""Strategies whose clients fail when they are told to; the processes of a pool can import them."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, replace

import torch

from fedkd.core.errors import FedKDError
from fedkd.core.messages import LocalRule
from fedkd.strategies import FedAvg


@dataclass(frozen=True)
class FailingRule(LocalRule):
    """Fails, in one of several ways."""

    how: str

    def finish(self, update, task, trainer):
        if self.how == "raise":
            raise FileNotFoundError("images/7.png")
        if self.how == "wrong":
            raise FedKDError("its images are gone")
        if self.how == "exit":
            raise SystemExit(0)
        if self.how == "memory":
            raise MemoryError
        if self.how == "device memory":
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB.")
        if self.how == "nan":
            return replace(update, delta={name: value * float("nan") for name, value in update.delta.items()})
        if self.how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "hang":
            time.sleep(600)
        return update


class Failing(FedAvg):
    """FedAvg in whose round 1 some clients fail.

    Args:
        how: In which way.
        clients: Which.
        read: Whether the strategy reads single updates, so that they are not averaged as they come.
    """

    def __init__(self, how: str, clients: tuple[int, ...] = (1,), read: bool = False) -> None:
        self.how, self.clients, self.read = how, clients, read

    @property
    def reads_updates(self) -> bool:
        return self.read

    def local_rule(self, state, client):
        fails = state.round == 1 and client in self.clients
        return FailingRule(self.how) if fails else super().local_rule(state, client)
