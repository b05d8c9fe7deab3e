"""Clients in a pool of worker processes."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from fedkd.core.errors import MAX_THREADS, FedKDError, check_range
from fedkd.core.messages import ClientTask, ClientUpdate, LocalRule, Work, from_bytes, to_bytes
from fedkd.core.storage import writing
from fedkd.server.backends.base import Backend, ClientError, Outcome, SiteFactory, Workers
from fedkd.server.backends.mapped import TEMPORARY_ADVICE, MappedStore, unpicklable_part

TRIES = 2
"""A task whose worker dies is run again once."""


class ProcessPool(Backend):
    """Run clients in worker processes, which stay for the whole run. Results are those of `InProcess`, bit for bit.

    Images, teacher outputs and the pools are files that all workers map; a worker's own memory is that of the libraries
    and of the student. A worker that dies is replaced, and its task is run again once. Whatever the sites hold must
    pickle: an optimizer is a class by its path in YAML, or a module-level function or ``functools.partial`` in Python,
    not a lambda.

    Args:
        workers: The number of processes, >= 1. With CUDA, worker i uses device i modulo the number of devices, so one
            worker a GPU, or several.
        threads: PyTorch's threads in each worker, >= 1.
        client_timeout: Seconds that a client may take for a task, > 0; its worker is then ended and replaced, and the
            client counts as failed (see ``min_clients`` of `fedkd.Federation`). None is no limit.

    Raises:
        FedKDError: For values out of range.
    """

    has_processes = True
    threads: int

    def __init__(self, workers: int = 2, threads: int = 1, client_timeout: float | None = None) -> None:
        check_range("workers", workers, low=1, high=MAX_THREADS, whole=True)
        check_range("threads", threads, low=1, high=MAX_THREADS, whole=True)
        if client_timeout is not None:
            check_range("client_timeout", client_timeout, low=0, low_open=True)
        self.workers, self.threads, self.client_timeout = workers, threads, client_timeout
        self._processes: list[WorkerProcess] = []
        self._folder: Path | None = None  # as long as the processes are there
        self._store: MappedStore | None = None  # of one run
        self._release: weakref.finalize | None = None
        self._held = False

    def __enter__(self) -> ProcessPool:
        """Keep the processes for several runs: ``with ProcessPool(2) as pool: ...``."""
        self._held = True
        return self

    def __exit__(self, *error: object) -> None:
        """Stop the processes."""
        self._held = False
        self.shutdown()

    @property
    def num_at_once(self) -> int:
        """Return the number of processes."""
        return self.workers

    def open(self, sites: SiteFactory) -> Workers:
        """Return workers for a site factory; the processes are started if they are not there.

        Raises:
            FedKDError: If the factory does not pickle.
        """
        with writing(tempfile.gettempdir(), TEMPORARY_ADVICE):
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="fedkd-pool-"))
                self._processes = [WorkerProcess(i, self.threads) for i in range(self.workers)]
                self._release = weakref.finalize(self, _release, self._processes, self._folder)
            if self._store is None:
                self._store = MappedStore(Path(tempfile.mkdtemp(dir=self._folder)))
        return PoolWorkers(self._processes, self._dump(sites), str(self._store.folder), self.client_timeout)

    def shutdown(self) -> None:
        """Remove the files, and stop the processes unless a ``with`` block keeps them."""
        if self._held:
            if self._store is not None:
                shutil.rmtree(self._store.folder, ignore_errors=True)
            self._store = None  # the next run writes what its data is then
            return
        if self._release is not None:
            self._release()
        self._processes, self._folder, self._store, self._release = [], None, None, None

    def _dump(self, sites: SiteFactory) -> bytes:
        assert self._store is not None
        try:
            return self._store.dumps(sites)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            name, part = unpicklable_part(sites, "sites")
            raise FedKDError(
                f"ProcessPool cannot send {name}, {part!r}, to its workers: it does not pickle ({error}). A "
                "module-level function or class does, and a functools.partial of one; a lambda or an inner function "
                "does not."
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        """Pickle and copy the settings, not the processes."""
        return {**vars(self), "_processes": [], "_folder": None, "_store": None, "_release": None}


class WorkerProcess:
    """One process, started when it is first needed and again after it died.

    Args:
        number: Its number in the pool.
        threads: As for `ProcessPool`.
    """

    def __init__(self, number: int, threads: int) -> None:
        self.number, self.threads = number, threads
        self.process: subprocess.Popen | None = None
        self.connection: Connection | None = None
        self.opened: bytes | None = None  # the sites that it has
        self.task: ClientTask | None = None
        self.began = 0.0  # with its task

    def start(self, task: ClientTask, work: str, sites: bytes, folder: str) -> None:
        """Give it a task; start it and send the sites before that if need be."""
        if self.connection is None:
            self._spawn()
        if self.opened is not sites:
            self._send("open", sites, folder)
            self.opened = sites
        self.task, self.began = task, time.monotonic()
        self._send_only("run", work, sorted(_rule_modules(task.rule)), to_bytes(task))

    def receive(self) -> tuple[Any, ...]:
        """Return its reply.

        Raises:
            EOFError: If it died.
        """
        assert self.connection is not None
        try:
            return self.connection.recv()
        except ConnectionError as error:
            raise EOFError from error

    def kill(self) -> int | None:
        """End it at once; return its exit status."""
        if self.process is None:
            return None
        self.process.kill()
        status = self.process.wait()
        if self.connection is not None:
            self.connection.close()
        self.process = self.connection = self.opened = self.task = None
        return status

    def stop(self) -> None:
        """Let it end by itself, or end it."""
        if self.connection is not None and self.task is None:
            with contextlib.suppress(ConnectionError):
                self.connection.send(("stop",))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    assert self.process is not None
                    self.process.wait(timeout=5)
        self.kill()

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        environment = worker_environment(self.number, self.threads)
        command = [sys.executable, "-m", "fedkd.server.backends.worker", str(theirs.fileno())]
        self.process = subprocess.Popen(
            command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=False
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self._send("prepare", torch_settings(self.threads))

    def _send(self, *message: Any) -> None:
        """Send a message and wait for the reply.

        Raises:
            FedKDError: If the worker cannot do it.
        """
        self._send_only(*message)
        kind, *rest = self.receive()
        if kind == "error":
            text, trace = rest
            raise FedKDError(
                f"A worker of ProcessPool cannot load the sites: {text}. Classes and functions must be importable "
                "there: define them in a module, not in a notebook or in the script that runs."
            ) from RemoteTraceback(trace)

    def _send_only(self, *message: Any) -> None:
        assert self.connection is not None
        try:
            self.connection.send(message)
        except ConnectionError as error:
            raise EOFError from error


class PoolWorkers(Workers):
    """Gives each process one task after the other.

    Args:
        processes: The pool's.
        sites: The pickled site factory.
        folder: Where its mapped files are.
        timeout: Seconds that a task may take; None is no limit.
    """

    def __init__(
        self, processes: Sequence[WorkerProcess], sites: bytes, folder: str, timeout: float | None = None
    ) -> None:
        self.processes, self.sites, self.folder, self.timeout = processes, sites, folder, timeout

    def map(self, work: Work, tasks: Sequence[ClientTask]) -> Iterator[Outcome]:
        """Yield what comes of the tasks, as it comes."""
        name = name_of(work)
        queue, tries = list(tasks), Counter[int]()
        try:
            while queue or any(process.task is not None for process in self.processes):
                for process in self.processes:
                    if queue and process.task is None:
                        task = queue.pop(0)
                        tries[task.client] += 1
                        try:
                            process.start(task, name, self.sites, self.folder)
                        except EOFError:
                            if (failure := self._died(process, task, queue, tries)) is not None:
                                yield failure
                busy: dict[Any, WorkerProcess] = {each.connection: each for each in self.processes if each.task}
                for connection in wait(list(busy), self._time_left()) if busy else ():
                    outcome = self._reply(busy[connection], queue, tries)
                    if outcome is not None:
                        yield outcome
                        del outcome
                for process in self.processes:
                    if (failure := self._end_if_late(process)) is not None:
                        yield failure
        finally:
            for process in self.processes:  # after an error or an early end: their results are no longer needed
                if process.task is not None:
                    process.kill()

    def _time_left(self) -> float | None:
        """Return the seconds until the first task has taken too long; None if none ever has."""
        if self.timeout is None:
            return None
        began = min(process.began for process in self.processes if process.task is not None)
        return max(0.0, began + self.timeout - time.monotonic())

    def _end_if_late(self, process: WorkerProcess) -> ClientError | None:
        """End a process whose task takes too long; return the failure if it does."""
        task = process.task
        if self.timeout is None or task is None or time.monotonic() < process.began + self.timeout:
            return None
        if process.connection is not None and process.connection.poll():  # it is done, and waits to be heard
            return None
        process.kill()
        return ClientError([task.client], task.round, f"it took longer than client_timeout, {self.timeout:g} s")

    def _reply(self, process: WorkerProcess, queue: list[ClientTask], tries: Counter[int]) -> Outcome | None:
        """Return what came of a process's task; None if it died and its task is to be run again."""
        task = process.task
        assert task is not None
        try:
            kind, *rest = process.receive()
        except EOFError:
            return self._died(process, task, queue, tries)
        process.task = None
        if kind == "error":
            text, trace = rest
            failure = ClientError([task.client], task.round, text)
            failure.__cause__ = RemoteTraceback(trace)
            return failure
        return from_bytes(ClientUpdate, rest[0])

    def _died(
        self, process: WorkerProcess, task: ClientTask, queue: list[ClientTask], tries: Counter[int]
    ) -> ClientError | None:
        """Put a dead process's task back; return a failure if its worker died before."""
        status = process.kill()
        if tries[task.client] >= TRIES:
            how = f"signal {-status}" if status is not None and status < 0 else f"exit status {status}"
            return ClientError([task.client], task.round, f"its worker process died twice, with {how}.")
        queue.insert(0, task)
        return None


class RemoteTraceback(Exception):  # noqa: N818 (it is the cause of another error, as in concurrent.futures)
    """The traceback of an exception in a worker, as text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        """Return the traceback."""
        return f"\n{self.text}"


def worker_environment(number: int, threads: int) -> dict[str, str]:
    """Return a worker's environment: this process's import path, so many threads, and one of its GPUs, if any.

    Args:
        number: The worker's number in the pool.
        threads: As for `ProcessPool`.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    environment |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    if count := torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
        environment["CUDA_VISIBLE_DEVICES"] = visible[number % count]
    return environment


def torch_settings(threads: int) -> dict[str, Any]:
    """Return what makes torch compute in a worker as it does here."""
    return {
        "threads": threads,
        "default_dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
    }


def name_of(work: Work) -> str:
    """Return a work as ``module:name``.

    Raises:
        FedKDError: If it is no module-level function.
    """
    module, name = getattr(work, "__module__", ""), getattr(work, "__qualname__", repr(work))
    if "." in name or "<" in name or module == "__main__":
        raise FedKDError(f"A work is a module-level function that workers can import, got {module}.{name}.")
    return f"{module}:{name}"


def _rule_modules(rule: LocalRule) -> set[str]:
    """Return the modules of a rule's class and of the rules inside it."""
    inner = [each for each in getattr(rule, "rules", ()) if isinstance(each, LocalRule)]
    return {type(rule).__module__}.union(*map(_rule_modules, inner))


def _release(processes: Sequence[WorkerProcess], folder: Path) -> None:
    for process in processes:
        process.stop()
    shutil.rmtree(folder, ignore_errors=True)
