"""What a head in closed form adds to a student's inference: with it against the student alone.

python benchmarks/closed_form.py [--runs 15] [--student resnet8] [--image-size 32] [--grid 4]

Both predict in turn, in one process of one thread, in eager PyTorch and in ONNX Runtime. What is printed are ratios of
processor seconds, median and spread over the runs, and the multiply-adds of both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedkd import students
from fedkd.students import ClosedFormStudent

Predict = Callable[[Tensor], Any]


def seconds(predict: Predict, images: Tensor, calls: int) -> float:
    """Return the processor's seconds for some calls."""
    start = time.process_time()
    for _ in range(calls):
        predict(images)
    return time.process_time() - start


def compare(name: str, alone: Predict, headed: Predict, images: Tensor, runs: int) -> None:
    """Print the ratio of the seconds of two functions."""
    seconds(alone, images, 3), seconds(headed, images, 3)
    calls = max(1, 100 // len(images))
    ratios = [seconds(headed, images, calls) / seconds(alone, images, calls) for _ in range(runs)]
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    print(f"{name}, batch of {len(images)}: {statistics.median(ratios):.3f} ({spread})")


def onnx_function(student: nn.Module, shape: tuple[int, int, int]) -> Predict:
    """Return a student as a function that ONNX Runtime evaluates on one thread."""
    import onnxruntime

    batch = {0: torch.export.Dim("batch")}
    program = torch.onnx.export(
        student, (torch.rand(2, *shape),), dynamo=True, input_names=["images"], dynamic_shapes=(batch,), verbose=False
    )
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(None, {"images": images.numpy()})


def multiply_adds(student: nn.Module, image: Tensor) -> float:
    """Return the multiply-adds of one image, in convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        student(image)
    return counter.get_total_flops() / 2


def main() -> None:
    """Time both and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--grid", type=int, default=4)
    options = parser.parse_args()

    torch.set_num_threads(1)
    shape = (3, options.image_size, options.image_size)
    made = {"in_channels": 3, "image_size": options.image_size}
    student = students.create(options.student, num_classes=10, **made).eval().to(memory_format=torch.channels_last)
    headed = ClosedFormStudent.on_stages(student, 10, shape, options.grid).eval()
    headed.load_state_dict({**headed.state_dict(), "solved_weight": torch.randn_like(headed.solved_weight)})
    with torch.no_grad():
        one = torch.rand(1, *shape)
        before, after = multiply_adds(student, one), multiply_adds(headed, one)
        print(f"multiply-adds: {before / 1e6:.3f} M alone, {after / before - 1:.2%} more with the head")
        functions = {"eager": (student, headed)}
        functions["ONNX Runtime"] = (onnx_function(student, shape), onnx_function(headed, shape))
        for name, (alone, with_head) in functions.items():
            for size in (1, 64):
                images = torch.rand(size, *shape)
                if name == "eager":
                    images = images.contiguous(memory_format=torch.channels_last)
                compare(name, alone, with_head, images, options.runs)


if __name__ == "__main__":
    main()
