"""Where clients run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Protocol

from fedkd.client.works import ClientContext
from fedkd.core.messages import ClientTask, ClientUpdate


class ClientFunction(Protocol):
    """The type of `fedkd.client.works.run_client`."""

    def __call__(self, context: ClientContext, task: ClientTask) -> ClientUpdate:
        """Run one task."""
        ...


class Backend(ABC):
    """Runs a round's tasks. A result depends on its task alone, so any order and any place will do."""

    @abstractmethod
    def map(
        self, function: ClientFunction, context: ClientContext, tasks: Iterable[ClientTask]
    ) -> Iterator[ClientUpdate]:
        """Apply ``function(context, task)`` to every task.

        Args:
            function: `fedkd.client.works.run_client`.
            context: What the tasks share.
            tasks: The round's tasks.

        Yields:
            The updates, as they come, in any order.
        """
