"""`Exchange`: the one way by which anything passes between the server and its clients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedkd.core.errors import FedKDError
from fedkd.core.messages import ClientTask, ClientUpdate, Work
from fedkd.server.backends import Workers


@dataclass(frozen=True)
class Traffic:
    """Bytes of the tensors that were sent; two are added, or subtracted, side by side.

    Attributes:
        up: From all clients to the server.
        down: From the server to all clients.
    """

    up: int = 0
    down: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        """Return both together."""
        return Traffic(self.up + other.up, self.down + other.down)

    def __sub__(self, other: Traffic) -> Traffic:
        """Return what came since ``other``."""
        return Traffic(self.up - other.up, self.down - other.down)


class Exchange:
    """Sends tasks to clients and returns their updates: counted, checked and in the clients' order.

    Args:
        workers: Where the clients run.
        traffic: Bytes that count as sent already.

    Attributes:
        traffic: The bytes that were sent so far. They are counted here and nowhere else.
    """

    def __init__(self, workers: Workers, traffic: Traffic = Traffic()) -> None:
        self.workers = workers
        self.traffic = traffic

    def __call__(self, work: Work, tasks: Sequence[ClientTask]) -> list[ClientUpdate]:
        """Run a work at clients.

        Args:
            work: A module-level function ``work(site, task) -> update``.
            tasks: At most one for each client.

        Returns:
            One update for each task, ordered by client.

        Raises:
            ClientError: If the work fails at a client.
            FedKDError: If an update is missing, or holds an infinite number or NaN.
        """
        return list(self.stream(work, tasks))

    def stream(self, work: Work, tasks: Sequence[ClientTask]) -> Iterator[ClientUpdate]:
        """Run a work at clients, and yield their updates as they come, so that not all need be in memory at once.

        An update waits until those of the clients before it have come. What is wrong is raised after the last update.

        Args:
            work: As for a call.
            tasks: As for a call.

        Yields:
            One update for each task, ordered by client.

        Raises:
            ClientError: As for a call, when it happens.
            FedKDError: As for a call, after the last update.
        """
        told = sorted(task.client for task in tasks)
        answered: list[int] = []
        diverged: list[int] = []
        waiting: dict[int, ClientUpdate] = {}
        up, expected = 0, iter(told)
        following = next(expected, None)
        for update in self.workers.map(work, tasks):
            answered.append(update.client)
            waiting[update.client] = update
            del update  # else the last one would stay in memory while the next one is made
            while following in waiting:
                ready = waiting.pop(following)
                up += ready.num_bytes
                if not ready.is_finite:
                    diverged.append(ready.client)
                yield ready
                del ready
                following = next(expected, None)
        if told != sorted(answered):
            raise FedKDError(
                f"{work.__name__}: clients {told} were told to work, updates came from {sorted(answered)}."
            )
        self.traffic += Traffic(up=up, down=sum(task.num_bytes for task in tasks))
        if diverged:
            raise FedKDError(
                f"Round {tasks[0].round}: what client(s) {diverged} sent from {work.__name__!r} is infinite or NaN. "
                "Lower the learning rate or set trainer.gradient_clip_val. The rounds before are in the run directory."
            )
