"""Several clients at once in this process, as one stack of students."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from fedkd.core.errors import FedKDError, check_range
from fedkd.core.messages import ClientTask, Work
from fedkd.core.stopping import Terminated
from fedkd.server.backends.base import ClientError, Outcome, SiteFactory, Workers
from fedkd.server.backends.in_process import SITES_KEPT, InProcess, InProcessWorkers


class Stacked(InProcess):
    """Train several clients at once in this process, by `torch.func` over their stacked parameters.

    It is meant for a GPU that the batch of one client does not fill; its speed on one is not measured yet. On a CPU it
    is slower than `InProcess`. Updates equal those of `InProcess` up to the order of addition in float32. All works but
    training run one client after the other.

    It trains what treats each entry of a stack by itself: optimizers of torch but LBFGS, Adafactor and SparseAdam;
    students without running statistics (``norm: group``) and without Dropout; float32 or bfloat16; strategies but
    `MOON`. It refuses the rest by name.

    Args:
        clients: How many train at once, K >= 1. They are in memory together: K students, their gradients, the
            optimizer's state and the activations of K batches.
        threads: As for `InProcess`.

    Raises:
        FedKDError: If a value is less than 1.
    """

    def __init__(self, clients: int = 10, threads: int | None = 1) -> None:
        super().__init__(threads)
        check_range("clients", clients, low=1, whole=True)
        self.clients = clients

    def check(self, module: Any, trainer: Mapping[str, Any]) -> None:
        """Raise if several clients cannot be trained at once."""
        from fedkd.training.stacked import reason_against_stacking

        reason = reason_against_stacking(module, trainer)
        if reason is not None:
            raise FedKDError(
                f"The backend Stacked cannot train several clients at once, since {reason}. Choose InProcess or "
                "ProcessPool."
            )

    @property
    def num_at_once(self) -> int:
        """Return how many clients are trained at once."""
        return self.clients

    def open(self, sites: SiteFactory) -> Workers:
        """Return workers that run in this process."""
        return StackedWorkers(sites, self.clients, self.threads)


class StackedWorkers(InProcessWorkers):
    """Trains K clients at once, and runs other works in the order of the tasks.

    Args:
        sites: From a client's index to its site.
        clients: K.
        threads: As for `InProcess`.
    """

    def __init__(self, sites: SiteFactory, clients: int, threads: int | None) -> None:
        super().__init__(sites, threads, sites_kept=max(SITES_KEPT, clients))
        self.clients = clients

    def map(self, work: Work, tasks: Sequence[ClientTask]) -> Iterator[Outcome]:
        """Yield the updates of K clients after those of the K before."""
        from fedkd.client.works import train

        if work is not train:
            yield from super().map(work, tasks)
            return
        waiting: dict[int, list[ClientTask]] = {}  # by the module that trains them
        for task in tasks:
            try:
                module = self.sites(task.client).module
            except Exception:
                yield from super().map(work, [task])  # it fails there too, and with the client's name
                continue
            group = waiting.setdefault(id(module), [])
            group.append(task)
            if len(group) == self.clients:
                yield from self._train(group)
                group.clear()
        for group in waiting.values():
            if group:
                yield from self._train(group)

    def _train(self, tasks: Sequence[ClientTask]) -> Iterator[Outcome]:
        """Train some clients at once; one after the other if one of them fails, so that it is known which."""
        from fedkd.client.works import train, train_stacked
        from fedkd.training.stacked import CannotStackError

        before, done = torch.get_num_threads(), set[int]()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        try:
            for update in train_stacked([self.sites(task.client) for task in tasks], tasks):
                done.add(update.client)
                yield update
        except CannotStackError as error:
            failure = ClientError([task.client for task in tasks], tasks[0].round, str(error))
            failure.__cause__ = error
            yield failure
        except Terminated:
            raise
        except (Exception, SystemExit):
            yield from super().map(train, [task for task in tasks if task.client not in done])
        finally:
            torch.set_num_threads(before)
