"""Works and sites that the processes of a pool can import, without Lightning: they start in a second."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedkd.core.messages import ClientUpdate


@dataclass(frozen=True, eq=False)
class Holding:
    """Makes sites that are all the same tensor and array."""

    images: Tensor
    numbers: np.ndarray

    def __call__(self, client):
        return self


def total(site, task):
    """Return the sums of what the site holds, and which process computed them with how many threads."""
    sums = torch.tensor([float(site.images.double().sum()), float(site.numbers.sum())], dtype=torch.float64)
    metrics = {"pid": os.getpid(), "threads": torch.get_num_threads(), "parent": os.getppid()}
    return ClientUpdate(task.client, extras={"sums": sums}, metrics=metrics)


def memory(site, task):
    """Return the bytes that are this process's own, before and after all images were read."""
    before = own_bytes()
    read = int(site.images.view(torch.int64).sum() * 0) + int(site.numbers.sum() * 0)
    return ClientUpdate(task.client, metrics={"before": before, "after": own_bytes() + read})


def own_bytes() -> int:
    """Return this process's anonymous memory."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) << 10


def write_into(site, task):
    """Overwrite what the site holds."""
    site.images.zero_()
    site.numbers[:] = 0
    return total(site, task)


def late(site, task):
    """Return the later, the smaller the client's index."""
    time.sleep(1.0 / (1 + task.client))
    return ClientUpdate(task.client)


def waits_for_the_next(site, task):
    """Return half a second after the next client, however late its process has started."""
    folder, is_last = Path(task.settings["folder"]), task.client == task.settings["last"]
    deadline = time.monotonic() + 120
    while not is_last and not (folder / str(task.client + 1)).exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.0 if is_last else 0.5)
    (folder / str(task.client)).touch()
    return ClientUpdate(task.client)


def dies(site, task):
    """Kill its own process: client 1 so often as the settings say, counted in a file."""
    if task.client == 1:
        log = Path(task.settings["log"])
        with log.open("a") as file:
            file.write("x")
        if log.stat().st_size <= task.settings["times"]:
            how = task.settings["how"]
            if how == "exit":
                os._exit(3)
            os.kill(os.getpid(), signal.SIGKILL)
    return ClientUpdate(task.client, metrics={"pid": os.getpid()})


def raises(site, task):
    """Raise at client 1; the others wait."""
    if task.client == 1:
        raise_deep_down(task.client)
    time.sleep(0.2)
    return ClientUpdate(task.client)


def raise_deep_down(client):
    raise ValueError(f"the image of client {client} is blue")
