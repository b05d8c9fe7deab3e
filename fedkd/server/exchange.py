"""`Exchange`: the one way by which anything passes between the server and its clients."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fedkd.core.errors import FedKDError
from fedkd.core.messages import ClientFailure, ClientTask, ClientUpdate, Work
from fedkd.core.stopping import raise_pending
from fedkd.server.backends import Workers
from fedkd.server.backends.base import ClientError


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
        failures: The clients that failed in exchanges that went on without them.
    """

    def __init__(self, workers: Workers, traffic: Traffic = Traffic()) -> None:
        self.workers = workers
        self.traffic = traffic
        self.failures: list[ClientFailure] = []

    def __call__(self, work: Work, tasks: Sequence[ClientTask], min_updates: int | None = None) -> list[ClientUpdate]:
        """Run a work at clients.

        Args:
            work: A module-level function ``work(site, task) -> update``.
            tasks: At most one for each client.
            min_updates: How many clients must succeed, >= 1; None is all. Those that fail are in `failures`.

        Returns:
            One update for each task, ordered by client; without those that fail.

        Raises:
            ClientError: If the work fails at a client, and all must succeed.
            FedKDError: If an update is missing, or holds an infinite number or NaN; if too few succeed.
        """
        return list(self.stream(work, tasks, min_updates))

    def stream(self, work: Work, tasks: Sequence[ClientTask], min_updates: int | None = None) -> Iterator[ClientUpdate]:
        """Run a work at clients, and yield their updates as they come, so that not all need be in memory at once.

        An update waits until those of the clients before it have come. What is wrong is raised after the last update.

        Args:
            work: As for a call.
            tasks: As for a call.
            min_updates: As for a call.

        Yields:
            One update for each task, ordered by client; without those that fail.

        Raises:
            ClientError: As for a call, when it happens.
            FedKDError: As for a call, after the last update.
        """
        told = sorted(task.client for task in tasks)
        answered: list[int] = []
        diverged: list[int] = []
        by_client = {task.client: task for task in tasks}
        first: tuple[int, Shapes] | None = None  # not the update: its tensors are freed once it is averaged
        failed: dict[int, str] = {}
        waiting: dict[int, ClientUpdate] = {}
        up, expected = 0, iter(told)
        following = next(expected, None)
        outcomes = self.workers.map(work, tasks)
        try:
            for update in outcomes:
                raise_pending()
                if isinstance(update, ClientError):
                    if min_updates is None:
                        raise update
                    failed |= {client: update.reason for client in update.clients}
                else:
                    answered.append(update.client)
                    up += update.num_bytes
                    task, own = by_client.get(update.client), (update.client, shapes_of(update.extras))
                    wrong = None if task is None else mistake(update, task, *(first or own))
                    first = first or (None if wrong else own)
                    if wrong is not None:
                        if min_updates is None:
                            raise ClientError([update.client], tasks[0].round, wrong)
                        failed[update.client] = wrong
                    elif update.is_finite or min_updates is None:
                        waiting[update.client] = update
                        diverged += [] if update.is_finite else [update.client]
                    else:
                        failed[update.client] = "what it sent is infinite or NaN"
                del update  # else the last one would stay in memory while the next one is made
                while following in waiting or following in failed:
                    if following in waiting:
                        yield waiting.pop(following)
                    following = next(expected, None)
        finally:
            if isinstance(outcomes, Generator):
                outcomes.close()  # at once: an error that is raised here would keep it, and the work that still runs
        if told != sorted({*answered, *failed}):
            raise FedKDError(
                f"{work.__name__}: clients {told} were told to work, updates came from {sorted(answered)}."
            )
        traffic = Traffic(up=up, down=sum(task.num_bytes for task in tasks))
        self.traffic += traffic
        self.workers.exchanged(work, told, traffic.up, traffic.down)
        self.failures += [ClientFailure(client, tasks[0].round, failed[client]) for client in sorted(failed)]
        if min_updates is not None and len(told) - len(failed) < min_updates:
            reasons = "; ".join(f"client {client}: {failed[client]}" for client in sorted(failed))
            raise FedKDError(
                f"Round {tasks[0].round}: {len(told) - len(failed)} of {len(told)} clients succeeded, and min_clients "
                f"is {min_updates}. {reasons}"
            )
        if diverged:
            raise FedKDError(
                f"Round {tasks[0].round}: what client(s) {diverged} sent from {work.__name__!r} is infinite or NaN. "
                "Lower the learning rate or set trainer.gradient_clip_val. The rounds before are in the run directory."
            )


Shapes = dict[str, tuple[int, ...]]


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """Return the shapes of tensors by name, without keeping the tensors."""
    return {name: tuple(value.shape) for name, value in tensors.items()}


def mistake(update: ClientUpdate, task: ClientTask, other: int, extras: Shapes) -> str | None:
    """Return why an update does not answer a task; None if it does.

    What it changes must have the names and shapes of what was sent. A work that changes no weights sends none, and a
    client with a student of its own is sent none. Extras are summed, so they must be like those of the other clients.

    Args:
        update: A client's.
        task: That of the same client.
        other: Another client.
        extras: The shapes of the extras in its update.
    """
    if not all(value.is_floating_point() or value.is_complex() for value in update.delta.values()):
        return "the delta of its update must be floating point"
    weights = task.weights
    for kind, changed, sent in (
        ("delta", update.delta, weights.parameters),
        ("buffers", update.buffers, weights.buffers),
    ):
        if changed and sent and (found := difference(kind, shapes_of(changed), shapes_of(sent))):
            return f"{found} in what it was sent"
    found = difference("extras", shapes_of(update.extras), extras)
    return f"{found} in that of client {other}" if found else None


def difference(kind: str, found: Shapes, expected: Shapes) -> str | None:
    """Return the first difference of an update's tensors from those expected, in name or shape; None without one."""
    for name in sorted({*found, *expected}):
        mine, other = found.get(name, "missing"), expected.get(name, "missing")
        if mine != other:
            return f"the {kind} {name!r} of its update is {mine}, and {other}"
    return None
