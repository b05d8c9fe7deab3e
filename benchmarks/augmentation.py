"""What transforms cost an image, relative to crop and flip and to a student's step.

python benchmarks/augmentation.py [--runs 9] [--size 32] [--student resnet8] [--device cpu]

Seconds are of the process on a CPU, in one thread, so that busy neighbors matter less; on a GPU they are of the clock.
All are timed in turn, in batches of 64; what is printed are medians and ratios of medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from fedkd import students
from fedkd.data import Augmentation, CutMix, MixUp

BATCH = 64
TRANSFORMS = (
    v2.RandomErasing(),
    v2.ColorJitter(0.4, 0.4, 0.4),
    v2.GaussianBlur(3),
    v2.TrivialAugmentWide(),
    v2.RandAugment(),
    v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
)


def timed(work: Callable[[int], object], number: int, device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    begin = clock()
    work(number)
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - begin


def main() -> None:
    """Time all kinds of augmentation and a training step, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    torch.set_num_threads(1)
    device, shape = torch.device(options.device), (3, options.size, options.size)
    images = torch.randint(0, 256, (BATCH, *shape), dtype=torch.uint8).to(device, memory_format=torch.channels_last)
    index, pixels = torch.arange(BATCH, device=device), images.float() / 255
    student = students.create(options.student, num_classes=10, image_size=options.size).to(device)
    student = student.to(memory_format=torch.channels_last)
    targets = index % 10

    def step(_: int) -> None:
        student.zero_grad()
        F.cross_entropy(student(pixels), targets).backward()

    padding = options.size // 8
    works: dict[str, Callable[[int], object]] = {"crop and flip": augmented(Augmentation(padding, True), images, index)}
    for transform in TRANSFORMS:
        works[type(transform).__name__] = augmented(Augmentation(transforms=[transform]), images, index)
    for mix in (MixUp(), CutMix()):
        draws = mix.draw(options.runs + 1, shape[1:], 0).on(device)
        works[type(mix).__name__] = lambda number, draws=draws: draws.mixed(pixels, number)
    works[f"a step of {options.student}"] = step

    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(options.runs + 1):
        for name, work in works.items():
            took = timed(work, number, options.device)
            if number:  # the first warms up
                seconds[name].append(took / BATCH)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    base, whole = medians["crop and flip"], list(medians.values())[-1]
    for name, each in medians.items():
        print(f"{name:20} {each * 1e6:9.1f} us an image, {each / base:6.1f} crop and flip, {each / whole:5.2f} steps")


def augmented(augmentation: Augmentation, images: torch.Tensor, index: torch.Tensor) -> Callable[[int], object]:
    return lambda number: augmentation(images, index, torch.tensor(number, device=index.device), 0)


if __name__ == "__main__":
    main()
