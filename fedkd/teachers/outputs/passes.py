"""One pass of all images, in all their views, through a teacher."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.core.config import describe
from fedkd.core.errors import FedKDError, in_one_line, is_out_of_memory
from fedkd.teachers.outputs.fingerprint import code_within, fingerprint, own_code
from fedkd.teachers.teacher import Teacher

if TYPE_CHECKING:
    from fedkd.data import ImageSet, Views

_FORMAT = "fedkd teacher cache 1"


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass of all images, in all their views, through a teacher.

    Args:
        teacher: The teacher, prepared.
        data: N images.
        views: The V views of each image; None is one view, the image itself.
        gives_logits: Whether the outputs are logits instead of features.
        batch_size: Images in a batch, where each view counts as an image.
        index: The number of each image in the data set that it is from, int64 (N,), which decides its views; None
            if ``data`` is all of it.
    """

    teacher: Teacher
    data: ImageSet
    views: Views | None
    gives_logits: bool
    batch_size: int
    index: np.ndarray | None = None

    is_slow: ClassVar[bool] = True
    """Whether the pass takes long enough for a progress bar."""

    @property
    def key(self) -> str:
        """Return a hash of everything that the outputs depend on."""
        teacher, views = self.teacher, self.views
        what = f"logits {fingerprint(teacher)}" if self.gives_logits else f"features {teacher.fingerprint()}"
        seen = "the clean image" if views is None else _shown(views)
        if views is not None and self.index is not None:
            seen += f" of images {hashlib.sha256(self.index.tobytes()).hexdigest()}"
        text = f"{_FORMAT}, views: {seen}; {what}; {self.data.fingerprint}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def num_views(self) -> int:
        """Return V."""
        return 1 if self.views is None else self.views.count

    @property
    def step(self) -> int:
        """Return the number of images per batch, each with all its views."""
        return max(1, self.batch_size // self.num_views)

    def outputs(self, start: int) -> Iterator[Tensor]:
        """Yield outputs from image ``start`` on, float32 (B, D) on the CPU: all views of one image, then the next.

        On CUDA the next batch is launched before the last one is awaited, so the device never waits for the disk.
        """
        ahead = 1 if self.teacher.device.type == "cuda" else 0
        launched: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()
        for first in range(start, len(self.data), self.step):
            launched.append(self._launch(first))
            if len(launched) > ahead:
                yield _wait_for(self.teacher, *launched.popleft())
        while launched:
            yield _wait_for(self.teacher, *launched.popleft())

    def _launch(self, first: int) -> tuple[Tensor, torch.cuda.Event | None]:
        """Start a batch. Return its outputs and, on CUDA, the event that marks the end of their copy to the CPU."""
        device = self.teacher.device
        on_cuda = device.type == "cuda"
        images = self.data.images[first : first + self.step]
        # Copies from pageable memory would wait until the device is idle.
        images = images.pin_memory().to(device, non_blocking=True) if on_cuda else images.to(device)
        images = images.contiguous()  # the teacher's own memory format
        pixels = self._views_of(images, first).float() / 255
        try:
            with torch.no_grad():
                outputs = self.teacher(pixels) if self.gives_logits else self.teacher.features(pixels)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise FedKDError(
                f"{type(self.teacher).__name__} runs out of memory on {device} with {len(pixels)} images "
                f"({in_one_line(error)}). Choose a smaller teacher, image_size or dtype."
            ) from error
        if outputs.ndim != 2 or len(outputs) != len(pixels):
            raise FedKDError(
                f"{type(self.teacher).__name__} must return one vector per image, (B, D). For {len(pixels)} images it "
                f"returned {tuple(outputs.shape)}."
            )
        copied = outputs.float().to("cpu", non_blocking=on_cuda)
        if not on_cuda:
            return copied, None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
        return copied, event

    def _views_of(self, images: Tensor, first: int) -> Tensor:
        """Images from number ``first`` on, (b, C, H, W) -> all their views, (b V, C, H, W)."""
        if self.views is None:
            return images
        index, view = self._numbers(first, len(images), images.device)
        shown = self.views.apply(images.repeat_interleave(self.num_views, dim=0), self.views.draw(index, view))
        if not self.views.transforms:
            return shown
        seeds = self.views.transform_seeds(*self._numbers(first, len(images), torch.device("cpu")))
        return self.views.transform(shown, seeds).contiguous()

    def _numbers(self, first: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the numbers of the image and of the view, (count V,) each, of all views of some images."""
        numbers = np.arange(len(self.data)) if self.index is None else self.index
        index = torch.from_numpy(numbers[first : first + count]).to(device).repeat_interleave(self.num_views)
        return index, torch.arange(self.num_views, device=device).repeat(count)


def _shown(views: Views) -> str:
    """Write down what views depend on: their settings, and code and versions behind them."""
    augmentation = views.augmentation.of_images
    parts = [repr(replace(views, augmentation=augmentation)), own_code(type(augmentation))]
    for each in augmentation.transforms:
        parts += [fingerprint(each)] if isinstance(each, nn.Module) else [repr(describe(each)), code_within(each)]
    return " ".join(filter(None, parts))


@dataclass(frozen=True, eq=False)
class JoinedPass(Pass):
    """An ensemble's pass: the cached features of its members, concatenated.

    Args:
        outputs_of: Returns a member's outputs for all images and views, (N, V, D_m), and computes missing ones.
    """

    outputs_of: Callable[[Teacher], np.ndarray] = field(kw_only=True)

    is_slow: ClassVar[bool] = False  # its members show their own progress

    def outputs(self, start: int) -> Iterator[Tensor]:
        """Yield outputs, see `Pass.outputs`."""
        parts = [self.outputs_of(member) for member in self.teacher.teachers]  # type: ignore[union-attr]
        for first in range(start, len(self.data), self.step):
            rows = [part[first : first + self.step].astype(np.float32) for part in parts]
            yield torch.from_numpy(np.concatenate(rows, axis=2)).flatten(0, 1)  # (b, V, D) -> (b V, D)


def _wait_for(teacher: Teacher, outputs: Tensor, event: torch.cuda.Event | None) -> Tensor:
    """Wait until the outputs are on the CPU, and check that they are finite."""
    if event is not None:
        event.synchronize()
    if not outputs.isfinite().all():
        raise FedKDError(f"The outputs of {type(teacher).__name__} are not finite; try dtype float32.")
    return outputs
