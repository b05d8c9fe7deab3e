"""What a student costs: parameters, multiply-accumulates and time an image."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fedkd.core.modes import evaluating


@dataclass(frozen=True)
class StudentCost:
    """What one image costs a student.

    Attributes:
        parameters: Numbers that are trained.
        macs: Multiply-accumulates of one image's forward pass, in convolutions and products of matrices.
        milliseconds: Of a forward pass of one image on the CPU: the median of some.
    """

    parameters: int
    macs: int
    milliseconds: float


def measure_cost(student: nn.Module, image_shape: Sequence[int], repeats: int = 10) -> StudentCost:
    """Measure what a student costs, in eval mode, on one thread of the CPU.

    Args:
        student: Images (B, C, H, W) in [0, 1] -> logits (B, K).
        image_shape: (C, H, W).
        repeats: How often the pass is timed, >= 1.
    """
    image, threads = torch.rand(1, *image_shape), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        macs, milliseconds = _count_and_time(student, image, repeats)
    finally:
        torch.set_num_threads(threads)
    parameters = sum(each.numel() for each in student.parameters() if each.requires_grad)
    return StudentCost(parameters, macs, milliseconds)


def _count_and_time(student: nn.Module, image: Tensor, repeats: int) -> tuple[int, float]:
    with evaluating(student), torch.inference_mode():
        # The counter counts a multiplication and an addition as two. It does not know the CPU's fused attention.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            student(image)
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            student(image)
            seconds.append(time.perf_counter() - start)
    return counter.get_total_flops() // 2, 1000 * median(seconds)
