"""Where clients run."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

from fedkd.core.config import Configured
from fedkd.core.errors import FedKDError, in_one_line, is_out_of_memory
from fedkd.core.messages import ClientTask, ClientUpdate, Work
from fedkd.core.stopping import Terminated

if TYPE_CHECKING:  # a worker process imports this package first, and all of Lightning only if a work needs it
    from fedkd.data.site import ClientSite

SiteFactory = Callable[[int], "ClientSite"]
"""From a client's index to its site."""


class ClientError(FedKDError):
    """A work failed at a client. The message names the client and the round; the cause is the work's own exception.

    Args:
        clients: The client; several where they worked as one.
        round: The round.
        reason: What happened.
    """

    def __init__(self, clients: Sequence[int], round: int, reason: str) -> None:
        who = f"Client{'s' * (len(clients) > 1)} {', '.join(map(str, clients))}"
        super().__init__(f"{who}, round {round}: {reason}")
        self.clients, self.round, self.reason = tuple(clients), round, reason


Outcome = ClientUpdate | ClientError
"""What comes of a task."""


class Workers(ABC):
    """What runs works on the clients of one site factory, until it is closed. It is a context manager."""

    @abstractmethod
    def map(self, work: Work, tasks: Sequence[ClientTask]) -> Iterator[Outcome]:
        """Run ``work(site, task)`` for every task, at the site of the task's client.

        A result depends on its task alone, so any order and any place will do.

        Args:
            work: A module-level function.
            tasks: One for each client, at most.

        Yields:
            For each task its update, or what went wrong, as they come, in any order. Whoever reads them may stop, which
            ends the work that still runs.
        """

    def exchanged(self, work: Work, clients: Sequence[int], up: int, down: int) -> None:  # noqa: B027
        """Be told of an exchange that is over, to measure it; nothing by default.

        Args:
            work: What the clients did.
            clients: The clients.
            up: Bytes that all of them sent.
            down: Bytes that were sent to them.
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

    threads: int | None = 1
    """PyTorch's threads while a client works on the CPU; None leaves them as they are."""
    has_processes: ClassVar[bool] = False
    """Whether clients run in processes of their own on this machine."""
    is_remote: ClassVar[bool] = False
    """Whether clients run on machines that have their own data."""

    @property
    def num_at_once(self) -> int:
        """Return how many clients work at the same time."""
        return 1

    @abstractmethod
    def open(self, sites: SiteFactory) -> Workers:
        """Return workers for the clients of a site factory.

        A run opens a backend several times, once for each stage of it, with other sites. What is costly to start, such
        as processes, may stay until `shutdown`.

        Args:
            sites: From a client's index to its site. It pickles.
        """

    def data_of(self, plan: Any, federation: Any) -> Any:
        """Return the data of a run as its server sees them: by default the run's own, which this machine has in full.

        Args:
            plan: The run's `fedkd.server.setup.Plan`.
            federation: The `fedkd.Federation`.
        """
        return plan.datamodule

    def check(self, module: Any, trainer: Mapping[str, Any]) -> None:
        """Raise a `fedkd.FedKDError` if the backend cannot train a module, before any work; nothing by default.

        Args:
            module: A built `fedkd.DistillationModule`.
            trainer: Arguments of the clients' Trainers.
        """

    def shutdown(self) -> None:
        """Release what outlives single `open` calls, when a run ends; nothing by default."""


def run_work(work: Work, sites: SiteFactory, task: ClientTask) -> Outcome:
    """Run a work at its client's site; return its update, or what went wrong.

    Ctrl-C and SIGTERM pass. Any other exception is the client's, also an exit.
    """
    try:
        return work(sites(task.client), task)
    except Terminated:
        raise
    except (Exception, SystemExit) as error:
        failure = ClientError([task.client], task.round, said_by(error))
        failure.__cause__ = error
        return failure


def said_by(error: BaseException) -> str:
    """Return an error's message in one line, with its type unless the error is one for the caller."""
    if is_out_of_memory(error):
        return f"out of memory ({in_one_line(error)}): lower data.batch_size, or take a smaller student"
    lightning: Any = sys.modules.get("lightning.fabric.utilities.exceptions")
    plain = isinstance(error, FedKDError) or (
        lightning is not None and isinstance(error, lightning.MisconfigurationException)
    )
    text = " ".join(str(error).split())
    return text if plain else f"{type(error).__name__}: {text}".removesuffix(": ")
