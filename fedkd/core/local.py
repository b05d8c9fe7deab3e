"""An exchange with clients that all are in this process, for work that no federation runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from fedkd.core.messages import ClientTask, ClientUpdate, Exchange, Work

Connect = Callable[[Callable[[int], Any]], AbstractContextManager[Exchange]]
"""From what makes the clients' sites to an exchange with these clients, for as long as the context is open."""


@contextmanager
def connect_locally(sites: Callable[[int], Any]) -> Iterator[Exchange]:
    """Give an exchange that runs works one after the other, and counts nothing.

    Args:
        sites: From a client's index to its site.
    """

    def exchange(work: Work, tasks: Sequence[ClientTask]) -> list[ClientUpdate]:
        return [work(sites(task.client), task) for task in sorted(tasks, key=lambda task: task.client)]

    yield exchange
