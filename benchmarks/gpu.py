"""Local training on a GPU: images a second, waits for the device, and the device's memory.

    python -m benchmarks.gpu [--json FILE] [--device cuda|cpu] [--runs 7] [--quick]

    images a second   10 clients of 1,000 images of 32x32 train ResNet-8 for an epoch in batches of 64, in float32 and
                      in bfloat16. All kinds run in turn in one process; ratios are of the same turn.
        fedkd         What a round does with its clients: `InProcess` workers, weights and images to the device, lean
                      training, weights back.
        bare loop     The same steps over images and orders that are on the device already.
        CUDA graph    The steps of the bare loop, recorded and replayed: the same kernels at no cost of the host. This
                      is the ceiling.
        Stacked       The clients at once, by the backend of this name.
    waits             How often the host waits for the device in a client's training, by torch's own count, and how much
                      more often with more steps.
    memory            What rounds with a cohort of 10 clients take on the device, with 10, 100 and 1,000 clients in all.

The images are random. After a client's training the weights of all kinds must be those of fedkd to `TOLERANCE`, or the
script fails in the end. With ``--device cpu`` it shows no more than that it runs: waits, memory and CUDA graphs are
left out. ``--quick`` makes everything small.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import fedkd
from benchmarks.simulation import CLASSES, LR, MOMENTUM, Rounds, quartiles
from fedkd.core.messages import ClientTask, Weights
from fedkd.core.seeding import derive_seed
from fedkd.data import FederatedDataModule, ImageSet
from fedkd.data.sources import Datasets
from fedkd.partition import IID
from fedkd.server.exchange import Exchange
from fedkd.training.lean_trainer import LeanTrainer

BATCH_SIZE = 64
COHORT = 10
TOLERANCE = {"32-true": 1e-3, "bf16-mixed": 2e-2}
"""How far apart the changes of a client's weights may be, by precision, relative to the norm of the change."""
MIB = 2**20


def federation_of(clients: int, images: int, batch_size: int = BATCH_SIZE) -> FederatedDataModule:
    """Return random images of 32x32, for each client as many.

    Args:
        clients: How many clients.
        images: Of each client.
        batch_size: Images in a training batch.
    """
    rng = np.random.default_rng(0)

    def random_images(count: int) -> ImageSet:
        pixels = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        return ImageSet(torch.from_numpy(pixels), torch.from_numpy(rng.integers(0, 10, count)), CLASSES)

    data = FederatedDataModule(
        Datasets(random_images(clients * images), random_images(1000)),
        num_clients=clients,
        partitioner=IID(),
        batch_size=batch_size,
    )
    data.setup()
    return data


def student_for(data: FederatedDataModule) -> fedkd.DistillationModule:
    """Return a module with a ResNet-8, always of the same weights."""
    torch.manual_seed(0)
    module = fedkd.DistillationModule("resnet8", student_options={"norm": "group"})  # which `Stacked` takes
    module.build(data.classes, data.image_shape)
    return module


class Federated:
    """A round's local training by fedkd, a call.

    Args:
        data: The clients.
        module: Their student, with the weights that they start from.
        trainer: Arguments of the clients' Trainer.
        backend: Where clients run.
    """

    def __init__(
        self, data: FederatedDataModule, module: fedkd.DistillationModule, trainer: dict[str, Any], backend: Any
    ) -> None:
        self.module = module.for_clients()
        self.workers = backend.open(data.sites(modules=(self.module,), trainer=trainer))
        self.tasks = [ClientTask(0, client, Weights.of(module.student)) for client in range(data.num_clients)]

    def __call__(self) -> None:
        """Train all clients."""
        self.updates = Exchange(self.workers)(fedkd.train, self.tasks)

    def change(self, client: int) -> Tensor:
        """Return what a client's training changed, in one vector."""
        return torch.cat([value.flatten() for value in self.updates[client].delta.values()])


class Bare:
    """The same training with nothing around it: all images and orders are on the device, and weights stay there.

    Args:
        data: The clients.
        module: Their student, with the weights that they start from.
        precision: As for Lightning's Trainer.
        device: Where it runs.
    """

    def __init__(
        self, data: FederatedDataModule, module: fedkd.DistillationModule, precision: str, device: torch.device
    ) -> None:
        self.device, self.mixed = device, precision == "bf16-mixed"
        self.student = copy.deepcopy(module.student).to(device).train()
        self.start = {name: value.clone() for name, value in self.student.state_dict().items()}
        self.clients = [self.rows(data, client) for client in range(data.num_clients)]

    def rows(self, data: FederatedDataModule, client: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return a client's images, float32 (n, H, W, C), its targets, and the images of each batch, as fedkd draws."""
        rows = torch.from_numpy(data.shards[client])
        images = data.train.images[rows].permute(0, 2, 3, 1).contiguous().to(self.device).float().div_(255)
        seed = derive_seed(derive_seed(data.seed, "client", 0, client, "batches"), 0)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).to(self.device)
        return images, data.train.targets[rows].to(self.device), list(order.split(BATCH_SIZE))

    def __call__(self) -> None:
        """Train all clients."""
        for client in range(len(self.clients)):
            self.fit(client)

    def fit(self, client: int) -> None:
        """Train a client."""
        images, targets, batches = self.clients[client]
        self.student.load_state_dict(self.start)
        optimizer = self.optimizer()
        for chosen in batches:
            self.step(optimizer, images, targets, chosen)

    def optimizer(self) -> torch.optim.Optimizer:
        """Return fedkd's default optimizer."""
        return torch.optim.SGD(self.student.parameters(), lr=LR, momentum=MOMENTUM)

    def step(self, optimizer: torch.optim.Optimizer, images: Tensor, targets: Tensor, chosen: Tensor) -> None:
        """Take a step on some of the images."""
        batch = images.index_select(0, chosen).permute(0, 3, 1, 2)  # (B, C, H, W)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            loss = F.cross_entropy(self.student(batch).float(), targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def change(self, client: int) -> Tensor:
        """Train a client and return what that changed, in one vector."""
        self.fit(client)
        changes = [(value.detach() - self.start[name]).cpu() for name, value in self.student.named_parameters()]
        return torch.cat([value.flatten() for value in changes])


class Replayed(Bare):
    """The bare loop's steps as CUDA graphs, one for each size of a batch.

    Args:
        data: The clients, all with as many images.
        module: As for `Bare`.
        precision: As for `Bare`.
        device: A CUDA device.
    """

    def __init__(
        self, data: FederatedDataModule, module: fedkd.DistillationModule, precision: str, device: torch.device
    ) -> None:
        super().__init__(data, module, precision, device)
        images, targets, batches = self.clients[0]
        self.images, self.targets = images.clone(), targets.clone()
        self.kept = self.optimizer()
        self.graphs = {len(chosen): self.record(chosen.clone()) for chosen in batches}

    def record(self, chosen: Tensor) -> tuple[Tensor, Any]:
        """Return a graph of a step, and the tensor that says on which images it is."""

        def step() -> None:
            self.step(self.kept, self.images, self.targets, chosen)

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # torch wants a few steps before it records one, and not on the usual stream
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        self.kept.zero_grad()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return chosen, graph

    def fit(self, client: int) -> None:
        """Train a client."""
        images, targets, batches = self.clients[client]
        self.student.load_state_dict(self.start)
        for state in self.kept.state.values():
            state["momentum_buffer"].zero_()  # the first step then is that of a new optimizer
        self.images.copy_(images)
        self.targets.copy_(targets)
        for batch in batches:
            chosen, graph = self.graphs[len(batch)]
            chosen.copy_(batch)
            graph.replay()


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def training(clients: int, images: int, runs: int, device: torch.device, accelerator: str) -> list[dict[str, Any]]:
    """Time all kinds of local training.

    Args:
        clients: How many.
        images: Of each.
        runs: How often each kind is timed.
        device: Where it runs.
        accelerator: The same for Lightning.

    Returns:
        A row for each precision and kind.
    """
    data, rows = federation_of(clients, images), []
    module = student_for(data)
    for precision in TOLERANCE:
        trainer = {"accelerator": accelerator, "precision": precision}
        fedkd_kind = Federated(data, module, trainer, fedkd.InProcess())
        kinds: dict[str, Any] = {"fedkd": fedkd_kind, "bare loop": Bare(data, module, precision, device)}
        if device.type == "cuda":
            kinds["CUDA graph"] = Replayed(data, module, precision, device)
        kinds[f"Stacked({clients})"] = Federated(data, module, trainer, fedkd.Stacked(clients))
        seconds: dict[str, list[float]] = {name: [] for name in kinds}
        for run in range(runs + 1):
            for name, train in kinds.items():
                wait_for(device)
                began = time.perf_counter()
                train()
                wait_for(device)
                if run:  # the first warms up
                    seconds[name].append(time.perf_counter() - began)
        assert isinstance(fedkd_kind.module._trainer, LeanTrainer), "fedkd did not train with the lean loop"
        reference = fedkd_kind.change(0)
        for name, found in seconds.items():
            change = kinds[name].change(0)
            rows.append(
                {
                    "precision": precision,
                    "kind": name,
                    "images_per_second": quartiles([clients * images / each for each in found]),
                    "speed_to_bare_loop": speed(found, seconds["bare loop"]),
                    "speed_to_ceiling": speed(found, seconds["CUDA graph"]) if "CUDA graph" in seconds else None,
                    "speed_to_fedkd": speed(found, seconds["fedkd"]),
                    "apart_from_fedkd": float((change - reference).norm() / reference.norm()),
                }
            )
    return rows


def speed(seconds: list[float], others: list[float]) -> dict[str, float]:
    """Return how fast one kind is relative to another, turn by turn."""
    return quartiles([other / own for own, other in zip(seconds, others, strict=True)])


def waits(train: Callable[[], Any]) -> int:
    """Return how often the host waits for the device in a call, by torch's own count."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            train()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(each.message) for each in caught)


def waiting(images: int, device: torch.device, accelerator: str) -> list[dict[str, Any]]:
    """Count the waits in one client's training, with few steps and with many.

    Args:
        images: Of the client.
        device: Where it runs.
        accelerator: The same for Lightning.

    Returns:
        A row for each precision and loss; None where they cannot be counted.
    """
    rows = []
    for precision in TOLERANCE:
        for loss, teacher_logits in (("cross-entropy", None), ("DKD, cached teacher", torch.randn(images, 10))):
            counts, steps = [], []
            for batch_size in (BATCH_SIZE, BATCH_SIZE // 4):
                data = federation_of(1, images, batch_size)
                module = student_for(data)
                trainer = {"accelerator": accelerator, "precision": precision}
                site = data.site(0, modules=(module,), trainer=trainer, teacher_logits=teacher_logits)
                task = ClientTask(0, 0, Weights.of(module.student))
                fedkd.train(site, task)  # warms up
                if device.type == "cuda":
                    counts.append(waits(lambda site=site, task=task: fedkd.train(site, task)))
                steps.append(-(-images // batch_size))
            rows.append(
                {
                    "precision": precision,
                    "loss": loss,
                    "steps": steps,
                    "waits": counts or None,
                    "waits_per_further_step": (counts[1] - counts[0]) / (steps[1] - steps[0]) if counts else None,
                }
            )
    return rows


def memory(numbers: tuple[int, ...], images: int, device: torch.device, accelerator: str) -> list[dict[str, Any]]:
    """Measure what rounds take on the device.

    Args:
        numbers: Of clients in all.
        images: Of each client.
        device: Where it runs.
        accelerator: The same for Lightning.

    Returns:
        A row for each number: MiB above what was taken before, at the peak and after the rounds.
    """
    rows = []
    workload = {"student": lambda: "resnet8", "cohort": COHORT}
    for clients in (numbers[0], *numbers):  # the first is run twice: libraries keep what they take first
        data, on_gpu = federation_of(clients, images), device.type == "cuda"
        gc.collect()
        before = torch.cuda.memory_allocated() if on_gpu else 0
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        with tempfile.TemporaryDirectory(prefix="fedkd-benchmark-") as folder:
            run_round = Rounds(workload, data, {"accelerator": accelerator, "precision": "bf16-mixed"}, Path(folder))
            for _ in range(3):
                run_round()
            found = (torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()) if on_gpu else None
            run_round.prepared.__exit__(None, None, None)
            del run_round
        peak, held = (None, None) if found is None else ((each - before) / MIB for each in found)
        rows.append({"clients": clients, "peak_mib": peak, "held_mib": held})
    return rows[1:]


def about(device: torch.device) -> dict[str, Any]:
    """Return the device and the versions."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())) if on_gpu else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_gpu else None,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,
        "lightning": lightning.__version__,
        "fedkd": fedkd.__version__,
        "float32_convolutions_in_tf32": torch.backends.cudnn.allow_tf32 if on_gpu else None,
    }


def shown(value: Any, digits: int = 2) -> str:
    """Return a cell of a table: a median with its range, a number, or "-" for what was not measured."""
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        median, least, greatest = (f"{value[name]:,.{digits}f}" for name in ("median", "min", "max"))
        return f"{median} ({least} to {greatest})"
    return f"{value:,.{digits}f}" if isinstance(value, float) else str(value)


def table(columns: list[str], rows: list[list[str]]) -> None:
    """Print a table in Markdown."""
    print()
    for cells in [columns, ["---"] * len(columns), *rows]:
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Measure, print the tables, and fail if the weights differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--runs", type=int, help="how often each kind is timed; 7 if not given")
    parser.add_argument("--quick", action="store_true", help="small numbers, to try the script")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "No CUDA device is at hand, so nothing is measured. To try the script itself: --device cpu --quick"
        )
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    device, accelerator = torch.device(options.device), "gpu" if options.device == "cuda" else "cpu"
    clients, images, runs = (2, 80, 2) if options.quick else (10, 1000, 7)
    numbers, of_each = ((10, 20), 20) if options.quick else ((10, 100, 1000), 100)

    found: dict[str, Any] = {"about": about(device)}
    print(", ".join(f"{name} {value}" for name, value in found["about"].items() if value is not None), flush=True)
    if device.type == "cpu":
        print("CUDA graph, waits, memory: left out, the device is a CPU")
    found["training"] = training(clients, images, options.runs or runs, device, accelerator)
    table(
        [f"{clients} clients of {images} images", "images a second", "to bare loop", "to ceiling", "to fedkd", "apart"],
        [
            [
                f"{row['kind']}, {row['precision']}",
                shown(row["images_per_second"], 0),
                *(shown(row[f"speed_to_{other}"]) for other in ("bare_loop", "ceiling", "fedkd")),
                f"{row['apart_from_fedkd']:.1e}",
            ]
            for row in found["training"]
        ],
    )
    found["waits"] = waiting(images, device, accelerator)
    table(
        ["one client", "steps", "waits", "further waits a further step"],
        [
            [
                f"{row['loss']}, {row['precision']}",
                " and ".join(map(str, row["steps"])),
                "-" if row["waits"] is None else " and ".join(map(str, row["waits"])),
                shown(row["waits_per_further_step"]),
            ]
            for row in found["waits"]
        ],
    )
    found["memory"] = memory(numbers, of_each, device, accelerator)
    table(
        [f"clients of {of_each} images, {COHORT} a round", "peak, MiB", "held after a round, MiB"],
        [[str(row["clients"]), shown(row["peak_mib"]), shown(row["held_mib"])] for row in found["memory"]],
    )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    for row in found["training"]:
        apart, allowed = row["apart_from_fedkd"], TOLERANCE[row["precision"]]
        assert apart <= allowed, f"{row['kind']}, {row['precision']}: weights are {apart:.1e} apart, over {allowed}"


if __name__ == "__main__":
    main()
