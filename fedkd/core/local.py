"""An exchange with clients that all are in this process, for work that no federation runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from fedkd.core.messages import ClientTask, ClientUpdate, Exchange, Work

Connect = Callable[[Callable[[int], Any]], AbstractContextManager[Exchange]]
"""From what makes the clients' sites to an exchange with these clients, for as long as the context is open."""


class LocalExchange:
    """Runs works one after the other, and counts nothing.

    Args:
        sites: From a client's index to its site.
    """

    def __init__(self, sites: Callable[[int], Any]) -> None:
        self.sites = sites

    def __call__(self, work: Work, tasks: Sequence[ClientTask], min_updates: int | None = None) -> list[ClientUpdate]:
        """Return the updates, ordered by client. All must succeed."""
        return list(self.stream(work, tasks, min_updates))

    def stream(self, work: Work, tasks: Sequence[ClientTask], min_updates: int | None = None) -> Iterator[ClientUpdate]:
        """Yield the updates, ordered by client."""
        for task in sorted(tasks, key=lambda task: task.client):
            yield work(self.sites(task.client), task)


@contextmanager
def connect_locally(sites: Callable[[int], Any]) -> Iterator[Exchange]:
    """Give a `LocalExchange` with clients.

    Args:
        sites: From a client's index to its site.
    """
    yield LocalExchange(sites)
