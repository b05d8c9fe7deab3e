"""Clients one after the other in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch

from fedkd.core.errors import MAX_THREADS, check_range
from fedkd.core.messages import ClientTask, Work
from fedkd.server.backends.base import Backend, Outcome, SiteFactory, Workers, run_work

SITES_KEPT = 16
"""So many sites are kept: with no more clients, each client's rows are copied once in a run."""


class InProcess(Backend):
    """Run clients one after the other in this process: the simplest, and the fastest for small students.

    Args:
        threads: PyTorch's threads while a client works on the CPU; None leaves them as they are. One is steadier: two
            threads fall to a tenth of one thread's speed beside a busy neighbor.

    Raises:
        FedKDError: If ``threads`` is less than 1 or more than 1024.
    """

    def __init__(self, threads: int | None = 1) -> None:
        if threads is not None:
            check_range("threads", threads, low=1, high=MAX_THREADS, whole=True)
        self.threads = threads

    def open(self, sites: SiteFactory) -> Workers:
        """Return workers that run in this process."""
        return InProcessWorkers(sites, self.threads)


class InProcessWorkers(Workers):
    """Runs works in this process, in the order of the tasks.

    Args:
        sites: From a client's index to its site.
        threads: As for `InProcess`.
        sites_kept: How many sites are kept.
    """

    def __init__(self, sites: SiteFactory, threads: int | None, sites_kept: int = SITES_KEPT) -> None:
        self.sites = lru_cache(sites_kept)(sites)
        self.threads = threads

    def map(self, work: Work, tasks: Sequence[ClientTask]) -> Iterator[Outcome]:
        """Yield the updates in the order of the tasks."""
        before = torch.get_num_threads()
        for task in tasks:
            try:
                if self.threads is not None:
                    torch.set_num_threads(self.threads)
                update = run_work(work, self.sites, task)
            finally:
                torch.set_num_threads(before)
            yield update
            del update  # else it would stay in memory while the next client works
