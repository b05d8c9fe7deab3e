"""The run directory: everything that a run leaves behind, each file whole at every moment.

::

    config.yaml           the command line's configuration, complete
    partition.json        client x class counts, and every client's image indices
    metrics.csv           a row a round
    failures.csv          a row for each client that a round went on without
    checkpoints/          the last two rounds, in clients/ what the strategy remembers for each client, and the lock of
                          the process that writes here
    student.safetensors   the global student, for `fedkd.load_student`
    best.safetensors      the best one so far, with `fedkd.server.callbacks.SaveBest`
    clients.csv           a row a round and client, with `fedkd.server.callbacks.ClientTable`
    clients/K/            client K's own student, where students differ (`fedkd.strategies.FedMD`)
    summary.json          final and best accuracy, confusion matrix, teacher, bytes, seconds, versions
    report.html           a page with all results
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from fedkd.core.client_states import ClientStates
from fedkd.core.errors import FedKDError
from fedkd.core.messages import ClientFailure, Metrics, ServerState, Weights
from fedkd.core.sealed import DamagedFileError, with_checksum
from fedkd.core.storage import take, write_atomically, writing
from fedkd.data import FederatedDataModule
from fedkd.runs import metrics_file
from fedkd.runs.checkpoint import Beside, load_checkpoint, save_checkpoint
from fedkd.runs.client_files import ClientFiles
from fedkd.runs.layout import round_checkpoints
from fedkd.runs.partition import partition_record
from fedkd.runs.student_file import LAST, student_path, write_student

KEEP_CHECKPOINTS = 2  # one would do, since writing is atomic; the second is for disks that lie
NUMBERS = re.compile(r"\[\n([-\d.,eE+nul\s]*)\]")
"""A list of numbers and nulls that JSON's indentation spreads over lines. No JSON text has a line break in it."""
LEFTOVER = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")


class RunDirectory:
    """One run's files.

    Args:
        path: The folder, made if absent. None takes the next free ``runs/version_N`` of the working directory, or, to
            resume, the newest.
        resume: Whether the folder may hold a run already.

    Attributes:
        path: The folder.
        num_rounds: The finished rounds that were written or loaded.

    Raises:
        FedKDError: If the folder holds a run and ``resume`` is False: finished work is never overwritten.
    """

    def __init__(self, path: str | Path | None = None, resume: bool = False) -> None:
        check_free(path, resume)
        if path is None:
            path = (newest_version(Path("runs")) if resume else None) or next_version(Path("runs"))
        self.path = Path(path).expanduser()
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FedKDError(f"run_dir {str(self.path)!r} cannot be made: {error.strerror}.") from error
        self.metrics = metrics_file.MetricsFile(self.path / "metrics.csv")
        self.clients_folder = self.path / "checkpoints" / "clients"
        self.num_rounds = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from writing to the folder; the operating system ends it with the process.

        Raises:
            FedKDError: If another process does.
        """
        lock = FileLock(self.path / "checkpoints" / ".lock")
        try:
            take(lock, wait=False)
        except Timeout:
            raise FedKDError(
                f"{str(self.path)!r} is in use by another process: wait for it, or choose another run_dir."
            ) from None
        except OSError:
            with writing(self.path, "Choose another run_dir"):
                raise
        try:
            for folder in (self.path, self.path / "checkpoints"):
                for leftover in folder.glob(".*.tmp"):
                    if LEFTOVER.fullmatch(leftover.name):
                        leftover.unlink()  # of a process that was killed while it wrote
            yield
        finally:
            lock.release()

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write ``name`` as JSON, with a checksum; what is not a number (a class without test images) becomes null.

        A list of numbers is one line.
        """
        text = json.dumps(with_checksum(nan_to_none(content)), indent=2, allow_nan=False)
        lines = NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)
        write_atomically(self.path / name, lines + "\n")

    def write_text(self, name: str, content: str) -> None:
        """Write ``name`` as text."""
        write_atomically(self.path / name, content)

    def checkpoints(self, newest: int | None = None) -> list[Path]:
        """Return the round checkpoints, oldest first.

        Args:
            newest: The number of finished rounds of the newest; None is any.
        """
        found = round_checkpoints(self.path)
        return [path for number, path in found.items() if newest is None or number <= newest]

    def start(self, datamodule: FederatedDataModule, config: str | None) -> None:
        """Write what is known before the first round: the partition, and the command line's configuration."""
        self.write_json("partition.json", partition_record(datamodule))
        if config is not None:
            self.write_text("config.yaml", config)

    def commit(self, state: ServerState, row: Metrics, identity: Mapping[str, Any]) -> ServerState:
        """Put a finished round on disk, at a cost of what the round changed.

        The round counts from the moment that its checkpoint is there. What was written for it before, the states of its
        cohort and its row of metrics, does not count without it.

        Args:
            state: The state after the round.
            row: Its metrics.
            identity: What the run is.

        Returns:
            The state, whose client states are now read from disk.
        """
        states = ClientStates.of(state.client_states)
        files = states.committed
        if not (isinstance(files, ClientFiles) and files.folder == self.clients_folder):  # the run's first commit
            files = ClientFiles(self.clients_folder, discard=True)
            states = ClientStates(files, dict(states))
        files.write(states.changes, state.round)
        self.metrics.append(row)
        path = self.path / "checkpoints" / f"round_{state.round:06d}.ckpt"
        save_checkpoint(path, state, identity, Beside(files.fingerprint, self.metrics.fingerprint))
        self.num_rounds = state.round
        for old in self.checkpoints(state.round)[:-KEEP_CHECKPOINTS]:
            old.unlink()
        files.discard(states.changes, keep=state.round - KEEP_CHECKPOINTS + 1)
        return replace(state, client_states=ClientStates(files))

    def note_failures(self, failures: Sequence[ClientFailure]) -> None:
        """Add rows to ``failures.csv``."""
        if not failures:
            return
        path = self.path / "failures.csv"
        with writing(path), path.open("a", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            if not file.tell():
                rows.writerow(["round", "client", "reason"])
            rows.writerows([failure.round, failure.client, failure.reason] for failure in failures)

    def load(
        self, ckpt_path: str | Path, identity: Mapping[str, Any], rounds: int | None = None
    ) -> tuple[ServerState, list[Metrics]] | None:
        """Load a round checkpoint, with the metrics and client states that belong to it; this run goes on from there.

        Args:
            ckpt_path: A file in another run's directory, or ``"last"`` for this run's newest.
            identity: What this run is.
            rounds: How many rounds this run has in all; None is any number.

        Returns:
            ``(state, history)``; None for ``"last"`` before the first round was finished.

        Raises:
            FedKDError: If the checkpoint is damaged, of another run or of a round after this run's last, or the rows of
                metrics before it or the client states that belong to it are not there or are others. With "last" a
                damaged one is named in a warning, and the one before it is taken.
        """
        if str(ckpt_path) == "last":
            newest = self._newest(identity, rounds)
            if newest is None:
                return None
            path, (state, beside) = newest
        else:
            path = Path(ckpt_path).expanduser()
            state, beside = load_checkpoint(path, identity, rounds)
        history = metrics_file.read(path.parent.parent / "metrics.csv", state.round, beside.metrics)
        files = ClientFiles(path.parent / "clients", state.round)
        files.check(beside.client_files)
        if path.parent != self.path / "checkpoints":
            files.copy_to(self.clients_folder)
        self.metrics.write(history)
        own = ClientFiles(self.clients_folder, state.round, discard=True)
        self.num_rounds = state.round
        return replace(state, client_states=ClientStates(own)), history

    def _newest(
        self, identity: Mapping[str, Any], rounds: int | None
    ) -> tuple[Path, tuple[ServerState, Beside]] | None:
        """Return the newest whole checkpoint and what it holds; None if no round was ever finished."""
        found = self.checkpoints()
        for path in reversed(found):
            try:
                whole = load_checkpoint(path, identity, rounds)
            except DamagedFileError as error:
                rank_zero_warn(f"{error} It is left as it is, and not used.")
                continue
            return path, whole
        rows = metrics_file.read(self.path / "metrics.csv") if (self.path / "metrics.csv").exists() else []
        if found or len(rows) > 1:  # the first row comes shortly before the first checkpoint
            raise FedKDError(
                f"{str(self.path)!r} holds the rows of {len(rows)} rounds, and no whole checkpoint to go on from. Put "
                "one back, or choose another run_dir."
            )
        return None

    def save_student(
        self,
        weights: Weights,
        spec: Mapping[str, Any],
        constants: Mapping[str, Tensor] | None = None,
        client: int | None = None,
        which: str = LAST,
    ) -> None:
        """Write a student.

        Args:
            weights: The student's.
            spec: What is needed to build the student again: see `fedkd.runs.student_file.write_student`.
            constants: Tensors that belong to the student and never travel, such as a frozen head's.
            client: Whose student it is, for a folder of its own; None is the global one.
            which: "last" for ``student.safetensors``, or a name.
        """
        folder = self.path if client is None else self.path / "clients" / str(client)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_student(student_path(folder, which), {**weights.tensors, **(constants or {})}, spec)


def check_free(path: str | Path | None, resume: bool) -> None:
    """Raise if a folder cannot be a run's, before anything is written; arguments as for `RunDirectory`.

    Raises:
        FedKDError: If it holds a run and ``resume`` is False, or the path is empty.
    """
    if str(path) == "":
        raise FedKDError("run_dir is empty: give a folder, or leave it out for the next free runs/version_N.")
    try:
        if path is not None and not resume and (Path(path).expanduser() / "metrics.csv").exists():
            raise FedKDError(
                f"run_dir {str(Path(path).expanduser())!r} already holds a run. Choose another, or go on with it: "
                "ckpt_path: last."
            )
    except OSError as error:
        raise FedKDError(f"run_dir {str(path)!r} cannot be made: {error.strerror}.") from error


def check_branch(ckpt_path: str | Path, identity: Mapping[str, Any], rounds: int | None = None) -> None:
    """Raise if the path of a round checkpoint is not that of a whole one of the same run, before anything is written.

    Args:
        ckpt_path: As for `RunDirectory.load`; "last" is left to it.
        identity: Likewise.
        rounds: Likewise.

    Raises:
        FedKDError: If it is not.
    """
    if str(ckpt_path) == "":
        raise FedKDError("ckpt_path is empty: give 'last' or the path of a round checkpoint, or leave it out.")
    if str(ckpt_path) != "last":
        try:
            load_checkpoint(Path(ckpt_path).expanduser(), identity, rounds)
        except FedKDError as error:
            raise type(error)(f"ckpt_path: {error}") from error


def nan_to_none(value: Any) -> Any:
    """Replace NaN by None at any depth: JSON knows no NaN."""
    if isinstance(value, Mapping):
        return {key: nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [nan_to_none(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def next_version(root: Path) -> Path:
    """Make and return the next free ``version_N`` below ``root``, also when several processes call this at once."""
    root.mkdir(parents=True, exist_ok=True)
    number = max(versions(root), default=-1) + 1
    while True:
        try:
            (root / f"version_{number}").mkdir()
        except FileExistsError:
            number += 1
        else:
            return root / f"version_{number}"


def newest_version(root: Path) -> Path | None:
    """Return the newest ``version_N`` below ``root``, if there is one."""
    found = versions(root)
    return root / f"version_{max(found)}" if found else None


def versions(root: Path) -> list[int]:
    """Return the numbers N of the folders ``version_N`` below ``root``."""
    return [int(path.name[8:]) for path in root.glob("version_*") if path.name[8:].isdigit()]
