"""Clients one after the other in this process: simplest, and fastest for small students."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from fedkd.client.works import ClientContext
from fedkd.core.errors import check_range
from fedkd.core.messages import ClientTask, ClientUpdate
from fedkd.server.backends.base import Backend, ClientFunction


class InProcess(Backend):
    """Run clients one after the other in this process.

    Args:
        num_threads: Threads of PyTorch while clients train on the CPU; None leaves them as they are. For small batches
            one is fastest, and several collapse when something else wants the cores.

    Raises:
        FedKDError: If ``num_threads`` is less than 1.
    """

    def __init__(self, num_threads: int | None = None) -> None:
        if num_threads is not None:
            check_range("num_threads", num_threads, low=1, whole=True)
        self.num_threads = num_threads

    def map(
        self, function: ClientFunction, context: ClientContext, tasks: Iterable[ClientTask]
    ) -> Iterator[ClientUpdate]:
        """Yield the updates in the order of the tasks."""
        before = torch.get_num_threads()
        try:
            if self.num_threads is not None:
                torch.set_num_threads(self.num_threads)
            for task in tasks:
                yield function(context, task)
        finally:
            torch.set_num_threads(before)
