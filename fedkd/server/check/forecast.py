"""`RunForecast`: what a run will take. Lines through the times of two small runs, extended to the whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from fedkd.core.errors import FedKDError
from fedkd.core.notebook import as_html
from fedkd.core.units import format_bytes, format_seconds
from fedkd.server.check.measure import Call, Phase, TeacherPass
from fedkd.server.check.sample import ON_POOL, Amounts


@dataclass(frozen=True)
class RunForecast:
    """What `Federation.check` found. A notebook shows it as a table, ``print`` as text.

    Attributes:
        images: The number of training, public, held-out and test images, by these names.
        image_shape: (C, H, W).
        num_classes: K.
        client_sizes: Training images of the smallest client that has any, of the median one and of the largest.
        num_clients: All clients.
        num_empty: Those without a training image.
        cohort_size: Clients in a round.
        batches: Training batches in a round, all clients of it together; infinite where only a time ends a training.
        settings: What was chosen for the run, a line each: student, loss, strategy, backend, device, training loop.
        teacher: What the teacher has to do, one for each set of images; empty without a teacher.
        rounds: Rounds of the run.
        load_seconds: Reading the data.
        prepare_seconds: What comes before the rounds, the teacher's outputs included.
        round_seconds: A round.
        round_parts: The seconds of a round by the work that clients did, and "server".
        seconds: The whole run.
        bytes_up: What all clients of a round send. Where each round draws a cohort, it is the mean.
        bytes_down: What is sent to them.
        prepare_bytes: What is sent up and down before the rounds.
        memory: Peak bytes of this process.
        worker_memory: Peak bytes of the largest of the backend's processes; 0 without any.
        device_memory: Peak bytes of this process on a CUDA device; 0 without one.
        run_bytes: What the run directory will hold.
        cache_bytes: What the teacher's outputs will add to the cache.
        free_bytes: What is free on the disk of the run directory, and on that of the cache.
        run_dir: The run's folder.
        checked_seconds: What the check took.
    """

    images: Mapping[str, int]
    image_shape: tuple[int, int, int]
    num_classes: int
    client_sizes: tuple[int, int, int]
    num_clients: int
    num_empty: int
    cohort_size: int
    batches: float
    settings: Mapping[str, str]
    teacher: tuple[TeacherPass, ...]
    rounds: int
    load_seconds: float
    prepare_seconds: float
    round_seconds: float
    round_parts: Mapping[str, float]
    seconds: float
    bytes_up: int
    bytes_down: int
    prepare_bytes: tuple[int, int]
    memory: int
    worker_memory: int
    device_memory: int
    run_bytes: int
    cache_bytes: int
    free_bytes: tuple[int, int]
    run_dir: str
    checked_seconds: float

    def check_disk(self) -> None:
        """Raise a `fedkd.FedKDError` if a disk has not the room that the run needs."""
        needs = (("run directory", self.run_bytes), ("teacher outputs in the cache", self.cache_bytes))
        for (what, need), free in zip(needs, self.free_bytes, strict=True):
            if need > free:
                raise FedKDError(
                    f"The {what} needs {format_bytes(need)}, and {format_bytes(free)} are free. Free some space, or "
                    "choose another disk: run_dir, or FEDKD_CACHE for the cache."
                )

    def table(self) -> Table:
        """Return all of it as a table of two columns."""
        table = Table(title=f"the whole run: about {format_seconds(self.seconds)}", title_justify="left")
        table.add_column("what")
        table.add_column("found, or expected")
        for name, text in self.lines().items():
            if name in ("student", "teacher", "reading the data", "sent in a round", "memory"):
                table.add_section()
            table.add_row(name, escape(text))
        return table

    def lines(self) -> dict[str, str]:
        """Return what the table shows, by name."""
        images = ", ".join(f"{count} {name}" for name, count in self.images.items() if count)
        smallest, median, largest = self.client_sizes
        empty = f", and {self.num_empty} without any" if self.num_empty else ""
        lines = {
            "images": f"{images}; {self.num_classes} classes, {'x'.join(map(str, self.image_shape))}",
            "clients": f"{self.num_clients - self.num_empty} with {smallest} to {largest} images, median {median}"
            + empty,
            "a round": f"{self.cohort_size} clients, "
            + (f"{self.batches:.0f} batches" if math.isfinite(self.batches) else "batches until max_time"),
            **self.settings,
        }
        for each in self.teacher[:1]:
            total, missing = sum(p.images for p in self.teacher), sum(p.missing for p in self.teacher)
            lines["teacher"] = (
                f"{each.teacher}: {each.seconds_each * 1000:.3g} ms an image; "
                f"{total - missing} of {total} outputs are in the cache"
            )
        lines |= {
            "reading the data": format_seconds(self.load_seconds),
            "before the rounds": format_seconds(self.prepare_seconds)
            + (
                f", of it {format_seconds(sum(p.seconds for p in self.teacher))} teacher outputs"
                if self.teacher
                else ""
            ),
            "each round": f"{format_seconds(self.round_seconds)} ("
            + ", ".join(f"{name} {format_seconds(value)}" for name, value in self.round_parts.items())
            + ")",
            f"all {self.rounds} rounds, and the rest": format_seconds(
                self.seconds - self.prepare_seconds - self.load_seconds
            ),
            "sent in a round": f"{format_bytes(self.bytes_up)} up, {format_bytes(self.bytes_down)} down",
            "sent before": f"{format_bytes(self.prepare_bytes[0])} up, {format_bytes(self.prepare_bytes[1])} down",
            "memory": format_bytes(self.memory)
            + (f", and up to {format_bytes(self.worker_memory)} in each worker" if self.worker_memory else ""),
        }
        if self.device_memory:
            lines["memory on the device"] = format_bytes(self.device_memory)
        lines["run directory"] = (
            f"{format_bytes(self.run_bytes)}, {format_bytes(self.free_bytes[0])} are free: {self.run_dir}"
        )
        if self.teacher:
            lines["cache"] = f"{format_bytes(self.cache_bytes)} more, {format_bytes(self.free_bytes[1])} are free"
        return lines

    def __str__(self) -> str:
        """Return a line for each thing."""
        return "\n".join(
            f"{name}: {text}" for name, text in {**self.lines(), "the whole run": format_seconds(self.seconds)}.items()
        )

    def _repr_html_(self) -> str:
        return as_html(self.table())


def line(first: tuple[float, float], second: tuple[float, float]) -> Callable[[float], float]:
    """Return the line through two points as a function. Neither its start nor its slope is below 0.

    Args:
        first: (x, y) of the smaller run.
        second: Of the larger one. If both have the same x, the line goes from the origin through this one.
    """
    (x1, y1), (x2, y2) = first, second
    if x2 <= x1:
        return lambda x: y2 * x / x2 if x2 else y2
    slope = min(max(0.0, (y2 - y1) / (x2 - x1)), y2 / x2)
    return lambda x: y2 + slope * (x - x2)


def constant(value: float) -> Callable[[float], float]:
    """Return a function of one value: what a client sends is the same for every number of its images."""
    return lambda x: value


@dataclass(frozen=True)
class Trial:
    """A small run.

    Attributes:
        phases: Before the rounds, each round, and after them.
        amounts: What its works had to do.
        everyone: How many clients it has.
        share: Its share of the test set and of the pools.
        train_share: Its share of the training images.
        fewer_epochs: How many times fewer epochs its clients train than those of the run.
    """

    phases: Sequence[Phase]
    amounts: Amounts
    everyone: int
    share: float
    train_share: float
    fewer_epochs: float

    @property
    def middle(self) -> Phase:
        """Return the round that stands for all but the first and the last, if there are more: the median one."""
        rounds = self.phases[1:-1]
        typical = sorted(rounds[1:-1] or rounds[-1:], key=lambda phase: phase.seconds)
        return typical[len(typical) // 2]


@dataclass(frozen=True)
class Whole:
    """The run itself.

    Attributes:
        amounts: What its works have to do.
        cohorts: The clients of some of its rounds.
        max_time: Seconds after which a client's training ends.
    """

    amounts: Amounts
    cohorts: Sequence[Sequence[int]]
    max_time: float

    @property
    def clients(self) -> list[int]:
        """Return the clients that have training images."""
        return list(self.amounts.rows)

    def doing(self, call: Call, trial: Trial) -> list[list[int]]:
        """Return the clients that will do what the clients of a small run did: all, or the cohort of each round."""
        everyone = len(call.clients) == trial.everyone
        if call.work == "evaluate_held_out":
            known = self.amounts.held_out
            everyone = len(call.clients) == len(trial.amounts.held_out)
        elif len(call.clients) > trial.everyone:  # those without images, too: what they send is private
            return [list(range(self.amounts.num_clients))]
        else:
            known = self.amounts.rows
        groups = [self.clients] if everyone else self.cohorts
        return [[client for client in group if client in known] for group in groups]


@dataclass(frozen=True)
class Cost:
    """What a phase takes.

    Attributes:
        parts: Seconds by work, and "server".
        up: Bytes that clients send.
        down: Bytes that are sent to them.
    """

    parts: Mapping[str, float]
    up: int
    down: int

    @property
    def seconds(self) -> float:
        """Return all seconds."""
        return sum(self.parts.values())


def paired(smaller: Sequence[Call], larger: Sequence[Call]) -> Iterator[tuple[Call, Call]]:
    """Pair the calls of two runs by their works. What only the larger run did, it is paired with itself.

    The runs may differ: a client that holds no image out evaluates none, and some works are not done in each round.
    """
    left = list(smaller)
    for call in larger:
        same = next((each for each in left if each.work == call.work), None)
        if same is not None:
            left.remove(same)
        yield same or call, call


def extended(phases: tuple[Phase, Phase], trials: tuple[Trial, Trial], whole: Whole, x: tuple[float, float]) -> Cost:
    """Return what a phase of the run takes, from the same phase of two small runs.

    Args:
        phases: The phase in the smaller and in the larger run.
        trials: These runs.
        whole: The run.
        x: What the server's time grows with, in either, as a share of that in the run.
    """
    parts: dict[str, float] = {}
    up = down = 0.0
    for small, large in paired(phases[0].calls, phases[1].calls):
        x1, x2 = (t.amounts.of_work(c.work, c.clients) for t, c in zip(trials, (small, large), strict=True))
        seconds_at = line((x1, small.seconds_each), (x2, large.seconds_each))
        sizes_at = [
            line((x1, of_small), (x2, of_large)) if large.work in ON_POOL else constant(of_large)
            for of_small, of_large in ((small.up_each, large.up_each), (small.down_each, large.down_each))
        ]
        groups = whole.doing(large, trials[1])
        for group in groups:
            count, amount = len(group) / len(groups), whole.amounts.of_work(large.work, group)
            seconds = seconds_at(amount) if math.isfinite(amount) else math.inf
            if large.work == "train":  # each epoch has a start of its own
                seconds = min(whole.max_time, seconds + seconds_at(0) * (trials[1].fewer_epochs - 1))
            parts[large.work] = parts.get(large.work, 0.0) + count * seconds
            up, down = up + count * sizes_at[0](amount), down + count * sizes_at[1](amount)
    server_at = line((x[0], phases[0].server_seconds), (x[1], phases[1].server_seconds))
    return Cost({**parts, "server": server_at(1.0)}, round(up), round(down))
