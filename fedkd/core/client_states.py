"""`ClientStates`: what a strategy remembers for each client. A change costs what it changes, however many clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

ClientState = Mapping[str, Tensor]


class ClientStates(Mapping[int, ClientState]):
    """The states of a committed round, which may lie on disk, and what changed since. It is never changed itself.

    Args:
        committed: By client.
        changes: By client, over those; an empty state is that of a client for which nothing is remembered any more.

    Attributes:
        committed: As given.
        changes: As given.
    """

    def __init__(
        self, committed: Mapping[int, ClientState] | None = None, changes: Mapping[int, ClientState] | None = None
    ) -> None:
        self.committed: Mapping[int, ClientState] = {} if committed is None else committed
        self.changes: Mapping[int, ClientState] = {} if changes is None else changes

    @classmethod
    def of(cls, states: Mapping[int, ClientState]) -> ClientStates:
        """Return states as such a mapping."""
        return states if isinstance(states, ClientStates) else cls(states)

    def changed(self, changes: Mapping[int, ClientState]) -> ClientStates:
        """Return the states after some changes; an empty state clears that of a client."""
        return ClientStates(self.committed, {**self.changes, **changes}) if changes else self

    def __getitem__(self, client: int) -> ClientState:
        """Return a client's state, read from disk if it lies there.

        Raises:
            KeyError: If nothing is remembered for the client.
        """
        if client in self.changes:
            if not self.changes[client]:
                raise KeyError(client)
            return self.changes[client]
        return self.committed[client]

    def __contains__(self, client: object) -> bool:
        """Whether something is remembered for a client."""
        return bool(self.changes[client]) if client in self.changes else client in self.committed  # type: ignore[index]

    def __iter__(self) -> Iterator[int]:
        """Yield the clients."""
        yield from (client for client in self.committed if client not in self.changes)
        yield from (client for client, state in self.changes.items() if state)

    def __len__(self) -> int:
        """Return the number of clients for which something is remembered."""
        return sum(1 for _ in self)


class ViewedStates(Mapping[int, ClientState]):
    """States as one part of a `fedkd.strategies.Compose` sees them; each is made when it is read.

    Args:
        states: By client.
        view: From a whole state to what is seen of it.
    """

    def __init__(self, states: Mapping[int, ClientState], view: Callable[[ClientState], ClientState]) -> None:
        self.states, self.view = states, view

    def __getitem__(self, client: int) -> ClientState:
        """Return what is seen of a client's state."""
        return self.view(self.states[client])

    def __contains__(self, client: object) -> bool:
        """Whether there is a state of a client."""
        return client in self.states

    def __iter__(self) -> Iterator[int]:
        """Yield the clients."""
        return iter(self.states)

    def __len__(self) -> int:
        """Return the number of states."""
        return len(self.states)
