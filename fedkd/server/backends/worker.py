"""The process of a `ProcessPool`'s worker, ``python -m fedkd.server.backends.worker FD``: one task at a time."""

from __future__ import annotations

import importlib
import signal
import sys
import traceback
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def main(descriptor: int) -> None:
    """Serve the process that holds the other end of a pipe, until that end is closed.

    Args:
        descriptor: This end of the pipe.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    connection = Connection(descriptor)
    sites: Any = None
    try:
        while True:
            kind, *rest = connection.recv()
            if kind == "stop":
                return
            try:
                if kind == "prepare":
                    _prepare(*rest)
                    reply: tuple[Any, ...] = ("ready",)
                elif kind == "open":
                    sites = None  # let go of the ones before
                    sites = _open(*rest)
                    reply = ("ready",)
                else:
                    reply = ("update", _run(sites, *rest))
            except BaseException as error:
                from fedkd.server.backends.base import said_by

                reply = ("error", said_by(error), traceback.format_exc())
            connection.send(reply)
    except (EOFError, ConnectionError):  # the parent is gone
        return


def _prepare(settings: dict[str, Any]) -> None:
    """Make torch compute here as it does in the parent."""
    import torch

    torch.set_num_threads(settings["threads"])
    torch.set_default_dtype(settings["default_dtype"])
    torch.use_deterministic_algorithms(settings["deterministic"], warn_only=settings["warn_only"])
    torch.set_float32_matmul_precision(settings["matmul_precision"])
    torch.backends.cudnn.benchmark = settings["cudnn_benchmark"]
    torch.backends.cudnn.deterministic = settings["cudnn_deterministic"]


def _open(data: bytes, folder: str) -> Any:
    from fedkd.server.backends.mapped import loads

    return lru_cache(1)(loads(data, Path(folder)))  # a worker's own memory has one client's rows at a time


def _run(sites: Any, work: str, modules: list[str], data: bytes) -> bytes:
    from fedkd.core.messages import ClientTask, from_bytes, to_bytes

    for module in modules:  # of local rules: a message names classes of modules that are there already
        importlib.import_module(module)
    module, _, qualname = work.partition(":")
    function = getattr(importlib.import_module(module), qualname)
    task = from_bytes(ClientTask, data)
    return to_bytes(function(sites(task.client), task))


if __name__ == "__main__":
    main(int(sys.argv[1]))
