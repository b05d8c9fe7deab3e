"""Where clients run."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fedkd.core.config import Configured
from fedkd.core.errors import FedKDError
from fedkd.core.messages import ClientTask, ClientUpdate, Work
from fedkd.core.stopping import Terminated

if TYPE_CHECKING:  # a worker process imports this package first, and all of Lightning only if a work needs it
    from fedkd.data.site import ClientSite

SiteFactory = Callable[[int], "ClientSite"]
"""From a client's index to its site."""


class ClientError(FedKDError):
    """A work failed at a client. The message names the client and the round; the cause is the work's own exception."""


class Workers(ABC):
    """What runs works on the clients of one site factory, until it is closed. It is a context manager."""

    @abstractmethod
    def map(self, work: Work, tasks: Sequence[ClientTask]) -> Iterator[ClientUpdate]:
        """Run ``work(site, task)`` for every task, at the site of the task's client.

        A result depends on its task alone, so any order and any place will do.

        Args:
            work: A module-level function.
            tasks: One for each client, at most.

        Yields:
            The updates, as they come, in any order.

        Raises:
            ClientError: If a work raises.
        """

    def close(self) -> None:  # noqa: B027
        """Let go of the sites; nothing by default."""

    def __enter__(self) -> Workers:
        """Return the workers."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


class Backend(Configured, ABC):
    """Where clients run: `open` gives workers. Only `fedkd.server.exchange.Exchange` calls them."""

    @abstractmethod
    def open(self, sites: SiteFactory) -> Workers:
        """Return workers for the clients of a site factory.

        A run opens a backend several times, once for each stage of it, with other sites. What is costly to start, such
        as processes, may stay until `shutdown`.

        Args:
            sites: From a client's index to its site. It pickles.
        """

    def check(self, module: Any, trainer: Mapping[str, Any]) -> None:
        """Raise a `fedkd.FedKDError` if the backend cannot train a module, before any work; nothing by default.

        Args:
            module: A built `fedkd.DistillationModule`.
            trainer: Arguments of the clients' Trainers.
        """

    def shutdown(self) -> None:
        """Release what outlives single `open` calls, when a run ends; nothing by default."""


def run_work(work: Work, sites: SiteFactory, task: ClientTask) -> ClientUpdate:
    """Run a work at its client's site.

    Raises:
        ClientError: If it raises anything but Ctrl-C and SIGTERM. An exit within a client's work ends no run.
    """
    try:
        return work(sites(task.client), task)
    except (KeyboardInterrupt, GeneratorExit, Terminated):
        raise
    except BaseException as error:
        raise ClientError(f"Client {task.client}, round {task.round}: {said_by(error)}") from error


def said_by(error: BaseException) -> str:
    """Return an error's message, with its type unless the error is one for the caller."""
    lightning: Any = sys.modules.get("lightning.fabric.utilities.exceptions")
    plain = isinstance(error, FedKDError) or (
        lightning is not None and isinstance(error, lightning.MisconfigurationException)
    )
    return str(error) if plain else f"{type(error).__name__}: {error}"
