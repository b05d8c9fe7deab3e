"""Clients one after the other in this process: simplest, and fastest for small students."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fedkd.client import ClientContext
from fedkd.server.backends.base import Backend, ClientFunction
from fedkd.types import ClientTask, ClientUpdate


class InProcess(Backend):
    """Run clients one after the other in this process."""

    def map(
        self, function: ClientFunction, context: ClientContext, tasks: Iterable[ClientTask]
    ) -> Iterator[ClientUpdate]:
        """Yield the updates in the order of the tasks."""
        return (function(context, task) for task in tasks)
