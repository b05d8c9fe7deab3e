"""What a small run takes: time, bytes and disk, by phase and by work."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.core.messages import ClientTask, Work
from fedkd.data import ImageSet
from fedkd.server.backends import Backend, Workers
from fedkd.server.backends.base import Outcome, SiteFactory
from fedkd.server.callbacks import RoundCallback, RoundEvent, RunEvent
from fedkd.teachers import TeacherCache
from fedkd.teachers.outputs.passes import JoinedPass, Pass

TEACHER_SECONDS = 6.0
"""A teacher is measured on more and more images, up to a whole batch, as long as they take no longer than this."""


@dataclass(frozen=True)
class Call:
    """A work that some clients did.

    Attributes:
        work: Its name.
        clients: The clients.
        seconds: Until all were done, what the server did with each update included.
        up: Bytes that all of them sent.
        down: Bytes that were sent to them.
    """

    work: str
    clients: tuple[int, ...]
    seconds: float
    up: int
    down: int

    @property
    def seconds_each(self) -> float:
        """Return the seconds of a client."""
        return self.seconds / max(1, len(self.clients))

    @property
    def up_each(self) -> float:
        """Return the bytes that a client sent."""
        return self.up / max(1, len(self.clients))

    @property
    def down_each(self) -> float:
        """Return the bytes that were sent to a client."""
        return self.down / max(1, len(self.clients))


@dataclass
class Phase:
    """A part of a run: what comes before the rounds, one round, or what comes after them.

    Attributes:
        calls: What clients did.
        seconds: In all, but without the teacher's outputs.
    """

    calls: list[Call] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def server_seconds(self) -> float:
        """Return the seconds in which no client worked."""
        return max(0.0, self.seconds - sum(call.seconds for call in self.calls))


class Stopwatch(RoundCallback):
    """Takes the time of a run's phases: of what comes before its rounds, of each round, and of what comes after.

    Attributes:
        phases: Those that began so far.
        teacher_seconds: What the teacher took in the present phase.
    """

    def __init__(self) -> None:
        self.phases = [Phase()]
        self.teacher_seconds = 0.0
        self.began = time.perf_counter()

    def lap(self) -> None:
        """End a phase, and begin the next."""
        now = time.perf_counter()
        self.phases[-1].seconds = now - self.began - self.teacher_seconds
        self.phases.append(Phase())
        self.began, self.teacher_seconds = now, 0.0

    def on_run_start(self, event: RunEvent) -> None:
        """The rounds begin."""
        self.lap()

    def on_round_end(self, event: RoundEvent) -> None:
        """A round is on disk."""
        self.lap()


class TimedBackend(Backend):
    """Another backend, whose works are noted.

    Args:
        backend: Where clients run.
        stopwatch: Gets a `Call` for each time that clients do a work.
    """

    def __init__(self, backend: Backend, stopwatch: Stopwatch) -> None:
        self.timed, self.stopwatch = backend, stopwatch

    def open(self, sites: SiteFactory) -> Workers:
        """Return the other backend's workers."""
        return TimedWorkers(self.timed.open(sites), self.stopwatch)

    def check(self, module: Any, trainer: Mapping[str, Any]) -> None:
        """Raise what the other backend raises."""
        self.timed.check(module, trainer)

    def shutdown(self) -> None:
        """Do nothing: the other backend's processes stay for the next small run."""


class TimedWorkers(Workers):
    """See `TimedBackend`."""

    def __init__(self, workers: Workers, stopwatch: Stopwatch) -> None:
        self.timed, self.stopwatch = workers, stopwatch
        self.began = 0.0

    def map(self, work: Work, tasks: Sequence[ClientTask]) -> Iterator[Outcome]:
        """Return what the workers yield."""
        self.began = time.perf_counter()
        return self.timed.map(work, tasks)

    def exchanged(self, work: Work, clients: Sequence[int], up: int, down: int) -> None:
        """Note the call."""
        call = Call(work.__name__, tuple(clients), time.perf_counter() - self.began, up, down)
        self.stopwatch.phases[-1].calls.append(call)

    def close(self) -> None:
        """Let go of the sites."""
        self.timed.close()


@dataclass(frozen=True)
class TeacherPass:
    """What a run needs of a teacher for one set of images.

    Attributes:
        teacher: The name of its class.
        images: The images, each view counted.
        missing: Those among them that no file of the cache holds.
        seconds_each: Time for an image, measured on this device.
        start_seconds: Time that is spent whatever the number of images: hashing the teacher, checking the file.
        bytes_each: Bytes of an image in the cache.
    """

    teacher: str
    images: int
    missing: int
    seconds_each: float
    start_seconds: float
    bytes_each: int

    @property
    def seconds(self) -> float:
        """Return what the missing ones take, and the start."""
        return self.start_seconds + self.missing * self.seconds_each


class SampledCache(TeacherCache):
    """Runs a teacher on a few images only, and repeats their outputs for the others of a small run.

    Args:
        folder: Of the small run; it is deleted after it.
        real: What the run itself will read and complete.
        whole: From the `id` of a small run's set of images to that of the run.
        stopwatch: Is told how long the teacher took.
        rates: Outputs of a few images, seconds an image, and seconds in any case, known from other small runs, by
            teacher and its use.
    """

    def __init__(
        self,
        folder: Path,
        real: TeacherCache,
        whole: Mapping[int, ImageSet],
        stopwatch: Stopwatch,
        rates: dict[Any, tuple[np.ndarray, float, float]],
    ) -> None:
        super().__init__(folder)
        self.real, self.whole, self.stopwatch, self.rates = real, whole, stopwatch, rates
        self.passes: list[TeacherPass] = []
        self._made = 0

    def _read(self, work: Pass, progress: bool) -> np.memmap:
        """Return outputs (N, V, D) of the right kind and size; those of the first images are the teacher's own."""
        if isinstance(work, JoinedPass):
            return super()._read(work, progress=False)
        began, num_views = time.perf_counter(), work.num_views
        known = (work.teacher.fingerprint(), work.views is None, work.gives_logits, work.data.image_shape)
        if known not in self.rates:
            self.rates[known] = self._measure(work)
        outputs, seconds_each, start_seconds = self.rates[known]
        images = self.whole[id(work.data)]
        done = self.real.images_done(replace(work, data=images))
        self.passes.append(
            TeacherPass(
                type(work.teacher).__name__,
                len(images) * num_views,
                (len(images) - done) * num_views,
                seconds_each / num_views,
                start_seconds,
                outputs[0].nbytes // num_views,
            )
        )
        path = self.folder / f"{self._made}.npy"
        self._made += 1
        np.save(path, outputs[np.resize(np.arange(len(outputs)), len(work.data))])
        self.stopwatch.teacher_seconds += time.perf_counter() - began
        mapped = np.load(path, mmap_mode="r")
        assert isinstance(mapped, np.memmap)
        return mapped

    def _measure(self, work: Pass) -> tuple[np.ndarray, float, float]:
        """Return the outputs of a few images, seconds an image, and seconds in any case. A first batch warms up."""
        step, data = work.step, work.data

        def run(count: int) -> tuple[np.ndarray, float]:
            some = ImageSet(data.images[:count], data.targets[:count], data.classes)
            began = time.perf_counter()
            outputs = TeacherCache._read(self, replace(work, data=some), progress=False)
            return np.asarray(outputs), time.perf_counter() - began

        run(1)
        count = min(4, step, len(data))
        outputs, seconds = run(count)
        each, start = seconds / count, 0.0
        while (more := min(4 * count, max(step, count), len(data))) > count:
            if seconds * more / count > TEACHER_SECONDS:
                break
            outputs, longer = run(more)
            # between few images, noise is all that differs: a slope below half of the mean is not believed
            each = max((longer - seconds) / (more - count), longer / more / 2)
            start = max(0.0, longer - each * more)
            count, seconds = more, longer
        return outputs, each, start
