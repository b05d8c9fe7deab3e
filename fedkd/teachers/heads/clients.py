"""The clients of a head's fit, and the function that reads a client's features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedkd.core.errors import FedKDError
from fedkd.core.messages import ClientTask, ClientUpdate, Exchange
from fedkd.data.site import ClientSite
from fedkd.teachers.heads.privacy import GaussianPrivacy

SCRATCH_FILE = "features.npy"
"""The file in a client's scratch folder with features that another work computed."""

HeadWork = Callable[[ClientSite, ClientTask], ClientUpdate]


@dataclass(frozen=True, eq=False)
class HeadClients:
    """The clients that fit a head together.

    Args:
        exchange: Sends tasks to the clients.
        counts: The number of images of each client; a client may have none.
        num_classes: K.
        dim: The number of features of an image, over all columns.
        columns: The first column to use and the one after the last. None is all D. An ensemble's member uses its own.
        in_scratch: Whether clients read their features from their scratch folder instead of their rows.
    """

    exchange: Exchange
    counts: Mapping[int, int]
    num_classes: int
    dim: int
    columns: tuple[int, int] | None = None
    in_scratch: bool = False

    def part(self, start: int, stop: int) -> HeadClients:
        """Return the same clients with some of their features."""
        offset = self.columns[0] if self.columns else 0
        return replace(self, columns=(offset + start, offset + stop), dim=stop - start)

    def run(
        self,
        work: HeadWork,
        extras: Mapping[str, Tensor] | None = None,
        settings: Mapping[str, Any] | None = None,
        privacy: GaussianPrivacy | None = None,
        client_states: Mapping[int, Mapping[str, Tensor]] | None = None,
    ) -> list[ClientUpdate]:
        """Run a work at all clients with images.

        Args:
            work: The function to run. It receives one client's site.
            extras: Tensors to send.
            settings: Plain values to send.
            privacy: With it, clients without images also reply, so participation leaks nothing.
            client_states: What each client has kept from an earlier work of the fit. It is not sent, so it costs no
                bytes.

        Returns:
            The updates, ordered by client.

        Raises:
            FedKDError: If no client has an image.
        """
        clients = [client for client, count in self.counts.items() if count or privacy is not None]
        if not clients:
            raise FedKDError("Cannot fit a head: no client has an image.")
        common = {
            "num_classes": self.num_classes,
            "columns": self.columns,
            "in_scratch": self.in_scratch,
            "privacy": None if privacy is None else asdict(privacy),
        }
        settings, states = {**common, **(settings or {})}, client_states or {}
        tasks = [
            ClientTask(0, client, extras=extras or {}, client_state=states.get(client, {}), settings=settings)
            for client in clients
        ]
        return self.send(work, tasks)

    def send(self, work: HeadWork, tasks: Sequence[ClientTask]) -> list[ClientUpdate]:
        """Send the tasks and return the updates, ordered by client."""
        return self.exchange(work, tasks)


def privacy_of(task: ClientTask) -> GaussianPrivacy | None:
    """Return the privacy that a task requires, or None."""
    given = task.settings["privacy"]
    return None if given is None else GaussianPrivacy(**given)


def features_of(site: ClientSite, task: ClientTask, clip: bool = True) -> Tensor:
    """Return a client's features, (n, D) float64, clipped if the fit is private.

    Args:
        site: The client's site. Its teacher features are (n, D), or (n, 1, D) for the images themselves.
        task: The task from `HeadClients.run`.
        clip: Whether to clip the features if the fit is private.
    """
    settings = task.settings
    if settings["in_scratch"]:
        assert site.scratch is not None
        found = np.load(site.scratch / SCRATCH_FILE)
    else:
        if site.rows.teacher_features is None:
            raise FedKDError(f"Client {site.client} has no teacher features to fit a head to.")
        found = site.rows.teacher_features[np.arange(len(site.rows))]
    found = found[:, 0] if found.ndim == 3 else found
    if settings["columns"] is not None:
        start, stop = settings["columns"]
        found = found[:, start:stop]
    features = torch.from_numpy(np.ascontiguousarray(found)).double()
    privacy = privacy_of(task)
    return privacy.clipped(features) if privacy is not None and clip else features
