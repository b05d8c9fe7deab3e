"""The base of all heads, which map a teacher's features to logits and are fitted by a protocol over the exchange."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from fedkd.core.config import Configured
from fedkd.teachers.heads.clients import HeadClients


@dataclass(frozen=True, eq=False)
class FittedHead:
    """The result of a federated fit.

    Args:
        module: Features (B, D) -> logits (B, K).
        sends: A description of what a client sends.
        chosen: Values that the fit chose, by name, such as the regularization.
    """

    module: nn.Module
    sends: str = ""
    chosen: Mapping[str, float] = field(default_factory=dict)


class FederatedHead(Configured, ABC):
    """A way to fit a head: a protocol over the exchange with the clients. Its arguments are its configuration."""

    @abstractmethod
    def fit(self, clients: HeadClients) -> FittedHead:
        """Fit a head.

        Args:
            clients: Runs a work at each client. A work reads only the features and labels of its client.

        Raises:
            FedKDError: If no client has an image.
        """

    def starting_from(self, head: nn.Module) -> FederatedHead:
        """Return the method for a teacher that has its own head, such as `ZeroShotHead`. Most methods ignore it."""
        return self
