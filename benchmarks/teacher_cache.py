"""What the teacher's cache costs: building it against the bare model on the same batches, and opening it when warm.

python benchmarks/teacher_cache.py [--teacher dinov2-s] [--image-size 98] [--dtype bfloat16] [--images 2000] [--views 1]
    [--runs 5] [--device cuda]

Bare model and cache run in turn in one process, each on all images in all views; what is printed is the ratio of
their throughputs, median and spread over the runs. Building includes fingerprints, augmentation and the disk.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import torch

from fedkd.data import Augmentation, ImageSet, Views
from fedkd.teachers import TeacherCache, create


def main() -> None:
    """Time both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", default="digits-tiny", help="a short name, a hub id or a folder")
    parser.add_argument("--image-size", type=int, help="what the teacher resizes to, if not its checkpoint's own size")
    parser.add_argument("--dtype", help="what it computes in, if not the device's default")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=32, help="side of the images")
    parser.add_argument("--views", type=int, default=0, help="0: the images themselves")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    chosen = {"image_size": options.image_size, "dtype": options.dtype}
    teacher = create(options.teacher, **{key: value for key, value in chosen.items() if value}).to(options.device)
    pixels = torch.randint(0, 256, (options.images, 3, options.size, options.size), dtype=torch.uint8)
    data = ImageSet(pixels, torch.zeros(options.images, dtype=torch.int64), ("a",))
    views = Views(options.views, Augmentation(4, True)) if options.views else None
    seen = pixels.repeat(options.views or 1, 1, 1, 1)

    def bare() -> None:
        with torch.no_grad():
            for batch in seen.split(options.batch_size):
                teacher.features(batch.to(options.device).float() / 255)
        if options.device == "cuda":
            torch.cuda.synchronize()

    seconds: dict[str, list[float]] = {"bare": [], "build": [], "warm": []}
    for run in range(options.runs + 1):
        with tempfile.TemporaryDirectory() as folder:
            store = TeacherCache(folder)

            def get(store: TeacherCache = store) -> None:
                store.get(teacher, data, views=views, batch_size=options.batch_size, progress=False)

            for name, function in (("bare", bare), ("build", get), ("warm", get)):
                began = time.perf_counter()
                function()
                if run:  # the first is a warm-up
                    seconds[name].append(time.perf_counter() - began)

    device = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    ratios = [bare / build for bare, build in zip(seconds["bare"], seconds["build"], strict=True)]
    print(f"{options.teacher}, {options.images} images, {options.views or 'no'} views, {device}, {options.runs} runs")
    print(f"bare model: {len(seen) / statistics.median(seconds['bare']):.0f} images/s")
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    print(f"building the cache / bare model: median throughput {statistics.median(ratios):.3f}, {spread}")
    print(f"opening it when warm: {1000 * statistics.median(seconds['warm']):.0f} ms")


if __name__ == "__main__":
    main()
