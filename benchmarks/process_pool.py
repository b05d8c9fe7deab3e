"""What a pool of processes brings: seconds a round here, with one worker and with two, and a worker's memory.

    python benchmarks/process_pool.py [--student resnet8] [--clients 10] [--images 200] [--runs 7] [--workers 1 2]

All kinds run in turn, a round each, on the same clients; what is printed are ratios of seconds, median and spread over
the runs. The students that they end with must be equal, bit for bit, or the script fails.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import fedkd
from fedkd.core.messages import ClientTask, Weights
from fedkd.data import Augmentation, FederatedDataModule
from fedkd.partition import IID
from fedkd.server.backends.process_pool import PoolWorkers
from fedkd.server.exchange import Exchange

BARE = """
import sys
sys.path.insert(0, "benchmarks")
import lightning.pytorch, torch, torchvision
from process_pool import memory
torch.set_num_threads(1)
print(*(f"{value:.0f}" for value in memory().values()))
student = torch.load(sys.argv[1], weights_only=False).to(memory_format=torch.channels_last)
optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9)
for _ in range(3):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(student(torch.rand(64, 3, 32, 32)), torch.randint(0, 10, (64,))).backward()
    optimizer.step()
print(*(f"{value:.0f}" for value in memory().values()))
"""
"""A process of the libraries alone, before and after it has trained the student for three steps."""


def memory(pid: int | str = "self") -> dict[str, float]:
    """Return what a process adds to the memory in use, and all that it has mapped, in MiB; 0 if the system is silent.

    Files that are mapped and not written to, such as images and the libraries' code, are in memory once for all.
    """
    path = Path(f"/proc/{pid}/smaps_rollup")
    if not path.is_file():
        return {"own": 0.0, "resident": 0.0}
    fields = dict(line.split(":") for line in path.read_text().splitlines()[1:])
    kib = {name: int(value.split()[0]) for name, value in fields.items()}
    return {"own": kib["Anonymous"] / 1024, "resident": kib["Rss"] / 1024}


def main() -> None:
    """Time the backends and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--images", type=int, default=200, help="images of each client, 32x32")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)

    pixels = torch.randint(0, 256, (options.images * options.clients, 3, 32, 32), dtype=torch.uint8)
    pairs = [(image, i % 10) for i, image in enumerate(pixels)]
    data = FederatedDataModule.from_datasets(
        pairs,
        pairs[:100],
        num_clients=options.clients,
        partitioner=IID(),
        batch_size=64,
        augmentation=Augmentation(4, True),
    )
    data.setup()
    module = fedkd.DistillationModule(options.student)
    module.build(data.classes, data.image_shape)
    sites = data.sites(modules=(module.for_clients(),), trainer={"accelerator": "cpu"})
    tasks = [ClientTask(0, client, Weights.of(module.student)) for client in range(options.clients)]

    pools = {f"{count} worker(s)": fedkd.ProcessPool(count) for count in options.workers}
    opened = {"in process": fedkd.InProcess().open(sites)} | {name: pool.open(sites) for name, pool in pools.items()}
    seconds: dict[str, list[float]] = {name: [] for name in opened}
    for run in range(options.runs + 1):
        results = {}
        for name, workers in opened.items():
            began = time.perf_counter()
            results[name] = Exchange(workers)(fedkd.train, tasks)
            if run:  # the first starts the processes
                seconds[name].append(time.perf_counter() - began)
        first, *others = results.values()
        for other in others:
            for one, same in zip(first, other, strict=True):
                assert all(torch.equal(one.delta[key], same.delta[key]) for key in one.delta), "not the same bits"

    print(f"{options.student}, {options.clients} clients of {options.images} images, {options.runs} alternating runs")
    for name, values in seconds.items():
        print(f"{name}: median {statistics.median(values):.3f} s a round, {min(values):.3f} to {max(values):.3f}")
    names = list(pools)
    for fast, slow in [(names[-1], names[0]), (names[-1], "in process"), (names[0], "in process")]:
        if fast != slow:
            ratios = [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)]
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            print(f"throughput of {fast} / {slow}: median {statistics.median(ratios):.2f}, {spread}")
    student = sum(value.nbytes for value in module.student.state_dict().values()) / 2**20
    print(f"all images {pixels.nbytes / 2**20:.0f} MiB, student {student:.1f} MiB")
    with tempfile.TemporaryDirectory() as folder:
        saved = str(Path(folder) / "student.pt")
        torch.save(module.student, saved)
        bare = subprocess.run([sys.executable, "-c", BARE, saved], capture_output=True, text=True, check=True)
    for what, line in zip(("the libraries", "the same, training the student"), bare.stdout.splitlines(), strict=True):
        own, resident = line.split()
        print(f"{what}: {own} MiB of its own, {resident} MiB resident")
    workers = opened[names[-1]]
    assert isinstance(workers, PoolWorkers)
    for process in workers.processes:
        assert process.process is not None
        found = memory(process.process.pid)
        print(f"a worker: {found['own']:.0f} MiB of its own, {found['resident']:.0f} MiB resident")
    for pool in pools.values():
        pool.shutdown()


if __name__ == "__main__":
    main()
