"""`ClientFiles`: what a strategy remembers for each client, in a file for each client and round that changed it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedkd.core.client_states import ClientState
from fedkd.core.errors import FedKDError
from fedkd.core.sealed import read_sealed, sealed
from fedkd.core.storage import writing

NAME = re.compile(r"(\d+)\.round_(\d{6,})\.safetensors")
WRITERS = 8
"""Files are brought to disk by so many threads, since each waits for the disk."""


class ClientFiles(Mapping[int, ClientState]):
    """The clients' states after a round, in files ``CLIENT.round_NNNNNN.safetensors``: a client's newest counts.

    What is in memory is an index of numbers. A state is read when it is asked for. A round is put on disk in three
    steps: `write`, then its checkpoint with `fingerprint`, then `discard`. So the files of the last checkpoint are
    there at every moment.

    Args:
        folder: Where the files are; it is made when the first is written.
        round: The number of finished rounds. Files of later rounds do not count.
        discard: Whether files of later rounds are deleted: rounds that were given up.
    """

    def __init__(self, folder: Path, round: int = 0, discard: bool = False) -> None:
        self.folder = folder
        self._rounds: dict[int, list[int]] = {}  # of each client's files, ascending
        self._sum = 0
        for path in folder.glob("*.safetensors"):
            found = NAME.fullmatch(path.name)
            if found and int(found[2]) <= round:
                self._rounds.setdefault(int(found[1]), []).append(int(found[2]))
            elif found and discard:
                path.unlink()
        for client, rounds in self._rounds.items():
            rounds.sort()
            self._sum += _number(client, rounds[-1])

    @property
    def fingerprint(self) -> str:
        """Which file of each client counts: their number, and a sum of hashes, which a round changes at little cost."""
        return f"{len(self._rounds)}:{self._sum % 2**64:016x}"

    def check(self, fingerprint: str) -> None:
        """Refuse if the files are others than when a checkpoint was written.

        Args:
            fingerprint: From the checkpoint.

        Raises:
            FedKDError: If files are missing, or there are others.
        """
        if fingerprint != self.fingerprint:
            raise FedKDError(
                f"{str(self.folder)!r} is not as the checkpoint left it: it has states of {len(self._rounds)} clients, "
                f"there were {fingerprint.partition(':')[0]}. Put back what was deleted or renamed, or start again."
            )

    def write(self, changes: Mapping[int, ClientState], round: int) -> None:
        """Write what a round changed. It counts from the moment that the round's checkpoint is there.

        Args:
            changes: By client; an empty state clears that of a client.
            round: The number of finished rounds.
        """
        if not changes:
            return
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(lambda item: _write(self._path(item[0], round), item[1]), changes.items()))
        _sync(self.folder)
        for client in changes:
            rounds = self._rounds.setdefault(client, [])
            if rounds:
                self._sum -= _number(client, rounds[-1])
            self._sum += _number(client, round)
            if round not in rounds:
                rounds.append(round)

    def discard(self, clients: Iterable[int], keep: int) -> None:
        """Delete files that no checkpoint needs.

        Args:
            clients: Those whose states a round changed.
            keep: The oldest round whose checkpoint stays.
        """
        for client in clients:
            rounds = self._rounds.get(client, [])
            while len(rounds) > 1 and rounds[1] <= keep:
                self._path(client, rounds.pop(0)).unlink(missing_ok=True)

    def copy_to(self, folder: Path) -> None:
        """Copy every client's newest file, without copying its content where the file system allows that."""
        for client, rounds in self._rounds.items():
            folder.mkdir(parents=True, exist_ok=True)
            path = self._path(client, rounds[-1])
            target = folder / path.name
            target.unlink(missing_ok=True)
            try:
                os.link(path, target)
            except OSError:
                shutil.copyfile(path, target)

    def __getitem__(self, client: int) -> dict[str, Tensor]:
        """Read a client's state.

        Raises:
            KeyError: If there is none.
            FedKDError: If its file is damaged or missing.
        """
        path = self._path(client, self._rounds[client][-1])
        try:
            state = load(read_sealed(path))
        except (FedKDError, SafetensorError) as error:
            raise FedKDError(f"The state of client {client} cannot be read. {error}") from error
        if not state:
            raise KeyError(client)
        return state

    def __contains__(self, client: object) -> bool:
        """Whether there is a file of a client; that of one that was cleared is empty."""
        if client not in self._rounds:
            return False
        try:
            self[client]
        except KeyError:
            return False
        return True

    def __iter__(self) -> Iterator[int]:
        """Yield the clients, ascending."""
        return (client for client in sorted(self._rounds) if client in self)

    def __len__(self) -> int:
        """Return the number of clients."""
        return sum(1 for _ in self)

    def _path(self, client: int, round: int) -> Path:
        return self.folder / f"{client}.round_{round:06d}.safetensors"


def _number(client: int, round: int) -> int:
    """Return a number that stands for a file."""
    return int.from_bytes(hashlib.blake2b(f"{client}.{round}".encode(), digest_size=8).digest(), "little")


def _write(path: Path, state: ClientState) -> None:
    """Write a file and wait until it is on disk. One that is half there is of a round that has no checkpoint yet."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    with writing(path), path.open("wb") as file:
        file.write(sealed(save(tensors)))
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Bring a folder's list of files to disk, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
