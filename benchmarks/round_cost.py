"""What a round costs: fedkd's client against a bare PyTorch loop (the floor), and a cached teacher against none.

python benchmarks/round_cost.py [--runs 7] [--student resnet8] [--images 2000] [--views 4] [--device cpu]

All three run in turn in one process; what is printed are ratios of seconds, median and spread over the runs.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn

import fedkd
from fedkd.core.messages import ClientTask, Weights
from fedkd.data import Augmentation, FederatedDataModule
from fedkd.partition import IID


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Time one client of 10 and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--views", type=int, help="teach consistently, on so many views; the image itself if not given")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    pixels = torch.randint(0, 256, (options.images, 3, 32, 32), dtype=torch.uint8)
    pairs = [(image, i % 10) for i, image in enumerate(pixels)]
    data = FederatedDataModule.from_datasets(
        pairs,
        pairs[:100],
        num_clients=1,
        partitioner=IID(),
        batch_size=64,
        augmentation=Augmentation(4, True),
        views=options.views,
    )
    data.setup()
    module = fedkd.DistillationModule(options.student)
    module.build(data.classes, data.image_shape)
    task = ClientTask(0, 0, Weights.of(module.student))
    accelerator = "gpu" if options.device == "cuda" else "cpu"
    logits = torch.randn(options.images, options.views or 1, 10)
    sites = {
        name: data.site(
            0, modules=(module.for_clients(),), trainer={"accelerator": accelerator}, teacher_logits=outputs
        )
        for name, outputs in (("no teacher", None), ("cached teacher", logits))
    }

    def bare() -> None:
        student = module.student.to(options.device).train()
        optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
        for batch in sites["no teacher"].train_loader(seed=0, device=options.device):
            optimizer.zero_grad()
            nn.functional.cross_entropy(student(batch.images), batch.targets).backward()
            optimizer.step()

    kinds = {"bare loop": bare}
    for name, site in sites.items():
        kinds[name] = lambda site=site: fedkd.train(site, task)
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for run in range(options.runs + 1):
        for name, function in kinds.items():
            synchronize(options.device)
            began = time.perf_counter()
            function()
            synchronize(options.device)
            if run:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - began)

    device = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{options.student}, {options.images} images of 32x32, batch 64, {device}, {options.runs} alternating runs")
    print(f"bare loop: median {statistics.median(seconds['bare loop']):.3f} s")
    for upper, lower in (("no teacher", "bare loop"), ("cached teacher", "no teacher")):
        ratios = [a / b for a, b in zip(seconds[upper], seconds[lower], strict=True)]
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(f"{upper} / {lower}: median {statistics.median(ratios):.3f}, {spread}")


if __name__ == "__main__":
    main()
