"""Find out before a run whether all of it works, how long it will take, and how much memory and disk.

A few small runs of the same settings, five at most, go through everything that the run does but its loggers and
callbacks: they load, train, aggregate, evaluate, write checkpoints and reports, in a folder that is deleted. The first
ones warm up, and show how large the others may be. The last two differ in how many batches their clients train and in
how many images are evaluated. A line through the two, for each work, gives the whole. One round stands for all but the
first and the last, so of work that is done in every other round the forecast has too much or none.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import re
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Timer

from fedkd.core.config import one_line
from fedkd.core.errors import FedKDError
from fedkd.core.storage import cache_dir, writing
from fedkd.data import FederatedDataModule
from fedkd.runs.directory import check_branch, check_free, newest_version
from fedkd.runs.layout import round_checkpoints
from fedkd.server.backends.in_process import SITES_KEPT
from fedkd.server.check.forecast import Cost, RunForecast, Trial, Whole, extended
from fedkd.server.check.measure import SampledCache, Stopwatch, TeacherPass, TimedBackend
from fedkd.server.check.sample import Amounts, Size, choose_clients, sample_data, short_trainer
from fedkd.server.run_loggers import RunLoggers
from fedkd.server.sampling import sample_cohort
from fedkd.server.setup import Plan, described, plan_run, run_settings
from fedkd.teachers import TeacherCache
from fedkd.training.module import DistillationModule
from fedkd.training.teacher_link import TeacherLink
from fedkd.training.trainer import with_defaults

FEW_CLIENTS, MORE_CLIENTS = 4, 12
"""Clients of a small run; more where a round takes less than `QUICK` seconds."""
QUICK = 0.5
ROUND_SECONDS = 2.0
"""The larger of the small runs has rounds of about this time."""
TOO_SLOW = 8.0
"""Where the first small run's rounds take so long, it is the only one."""
LONG = 10.0
"""Where the first small run takes so long, it is not run again to find what it took because it was the first."""
FIRST_IMAGES = 64
"""So many images the first small run evaluates."""
MOST_BATCHES = 128
MOST_EPOCHS = 8
COHORTS = 200
"""Of so many rounds the cohorts are counted."""
UNFINISHED = re.compile(r" *\d+ finished round\(s\) are in .*| *The rounds before are in the run directory\.")
"""What an error of a small run says of its run directory, which is deleted."""


def check_run(
    federation: Any, module: DistillationModule, datamodule: FederatedDataModule, ckpt_path: str | Path | None = None
) -> RunForecast:
    """Check a run; see `Federation.check`.

    Args:
        federation: The `fedkd.Federation`. It stays as it is, as does the module.
        module: The caller's.
        datamodule: The caller's. It is set up.
        ckpt_path: As for `Federation.fit`.

    Raises:
        FedKDError: For whatever `Federation.fit` refuses, and for what goes wrong in the small runs.
    """
    began = time.perf_counter()
    teacher = getattr(module, "teacher", None)
    head = None if teacher is None else (teacher.head, teacher.head_is_fitted)
    try:
        return _checked(federation, module, datamodule, ckpt_path, began)
    finally:
        if teacher is not None and head is not None:
            teacher.head, teacher.head_is_fitted = head


def _checked(federation: Any, module: Any, data: Any, ckpt_path: str | Path | None, began: float) -> RunForecast:
    if federation.backend.is_remote:
        raise FedKDError(f"{one_line(federation.backend)} cannot be checked: the clients' data are on other machines.")
    plan = plan_run(federation, own_copy(module), data)
    load_seconds = time.perf_counter() - began
    settings = run_settings(federation, plan)
    described(federation, plan)
    check_free(federation.run_dir, str(ckpt_path) == "last")
    check_checkpoint(federation.run_dir, ckpt_path, settings, federation.rounds)
    goes_on = newest_version(Path("runs")) if str(ckpt_path) == "last" else None
    given = federation.run_dir if federation.run_dir is not None else goes_on or "runs/version_N"
    run_dir = Path(given).expanduser()
    home = existing_parent(run_dir)
    RunLoggers(federation.logger, run_dir)
    if plan.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(plan.device)

    with writing(home, "Choose another run_dir"):
        folder = tempfile.TemporaryDirectory(prefix=".fedkd-check-", dir=home)
    with quiet(), folder as name:
        small_runs = SmallRuns(federation, module, plan, Path(name))
        trials, cold = small_runs.run()
    amounts = Amounts.of(data, plan.trainer)
    clients = list(amounts.rows)
    cohorts = [
        sample_cohort(clients, federation.clients_per_round, seed=federation.seed, round=number)
        for number in range(min(federation.rounds, COHORTS))
    ]
    whole = Whole(amounts, cohorts, max_seconds(plan.trainer))

    def cost(phase: int, by_share: bool = True) -> Cost:
        small, large = trials
        x = (small.share, large.share) if by_share else (small.train_share, large.train_share)
        return extended((small.phases[phase], large.phases[phase]), trials, whole, x)

    middle = extended((trials[0].middle, trials[1].middle), trials, whole, (trials[0].share, trials[1].share))
    before, first, last, after = cost(0, by_share=False), cost(1), cost(-2), cost(-1)
    teacher_seconds = sum(each.seconds for each in small_runs.passes)
    prepare = before.seconds + teacher_seconds + cold
    rounds = federation.rounds
    in_rounds = first.seconds + (rounds > 1) * last.seconds + max(0, rounds - 2) * middle.seconds
    sizes = sorted(amounts.rows.values())
    cohort_size = len(cohorts[0])
    return RunForecast(
        images={
            "private training": sum(sizes),
            "public": len(data.public_indices),
            "held-out": sum(amounts.held_out.values()),
            "test": len(data.test),
        },
        image_shape=data.image_shape,
        num_classes=data.num_classes,
        client_sizes=(sizes[0], sizes[len(sizes) // 2], sizes[-1]),
        num_clients=data.num_clients,
        num_empty=data.num_clients - len(sizes),
        cohort_size=cohort_size,
        batches=float(np.mean([sum(amounts.batches[client] for client in cohort) for cohort in cohorts])),
        settings={
            "student": students_line(plan),
            "loss": one_line(plan.modules[0].loss) if teacher_of(plan) is not None else "cross-entropy, no teacher",
            "strategy": one_line(plan.strategy),
            "where": f"{one_line(federation.backend)}, {plan.device}",
        },
        teacher=tuple(small_runs.passes),
        rounds=rounds,
        load_seconds=load_seconds,
        prepare_seconds=prepare,
        round_seconds=middle.seconds,
        round_parts=middle.parts,
        seconds=load_seconds + prepare + in_rounds + after.seconds,
        bytes_up=middle.up,
        bytes_down=middle.down,
        prepare_bytes=(before.up, before.down),
        memory=peak_memory(resource.RUSAGE_SELF) + small_runs.further_memory(cohort_size),
        worker_memory=peak_memory(resource.RUSAGE_CHILDREN) if federation.backend.has_processes else 0,
        device_memory=torch.cuda.max_memory_allocated(plan.device) if plan.device.type == "cuda" else 0,
        run_bytes=small_runs.run_bytes(len(clients)),
        cache_bytes=sum(each.missing * each.bytes_each for each in small_runs.passes),
        free_bytes=(shutil.disk_usage(home).free, shutil.disk_usage(cache_dir()).free),
        run_dir=str(run_dir),
        checked_seconds=time.perf_counter() - began,
    )


class SmallRuns:
    """The small runs of a check, each with a module and data of its own, in a folder that is deleted after them.

    Args:
        federation: The `fedkd.Federation`.
        module: The caller's.
        plan: The run.
        folder: Where they write.
    """

    def __init__(self, federation: Any, module: DistillationModule, plan: Plan, folder: Path) -> None:
        self.federation, self.module, self.plan, self.folder = federation, module, plan, folder
        self.passes: list[TeacherPass] = []
        self._rates: dict[Any, Any] = {}
        self._number = 0
        self._stored = (0, 0.0, 0)
        data = plan.datamodule
        self.most_images = max(1, len(data.test), len(data.public_indices), len(data.shared_images or ()))
        self.epochs = with_defaults(plan.trainer)["max_epochs"]

    def run(self) -> tuple[tuple[Trial, Trial], float]:
        """Run them.

        Returns:
            The two that the forecast is made of, and the seconds that a run takes longer when it is a process's first.
        """
        try:
            rounds = min(self.federation.rounds, 3)  # one that is neither the first nor the last
            size = Size(FEW_CLIENTS, 1, 1, min(1.0, FIRST_IMAGES / self.most_images), rounds)
            began = time.perf_counter()
            first = self.trial(size)
            cold = time.perf_counter() - began
            seconds = first.middle.seconds
            if seconds > TOO_SLOW:
                return (first, first), 0.0
            if cold > LONG:  # what a process's first run takes longer is then little of it
                return self._pair(size, max(seconds, 1e-3)), 0.0
            began = time.perf_counter()
            warm = self.trial(size)
            cold = max(0.0, cold - (time.perf_counter() - began))
            seconds = max(warm.middle.seconds, 1e-3)
            return self._pair(size, seconds), cold
        finally:
            self.federation.backend.shutdown()

    def _pair(self, size: Size, seconds: float) -> tuple[Trial, Trial]:
        """Run a smaller and a larger one, after one of a size whose rounds take some seconds."""
        is_quick = seconds < QUICK
        clients = MORE_CLIENTS if is_quick else size.clients
        steps = max(2, int(ROUND_SECONDS / seconds))  # at least as many as fit: half of the time is not the training's
        epochs = min(self.epochs if self.epochs > 0 else 1, MOST_EPOCHS, max(1, steps // 2))
        batches = min(MOST_BATCHES, max(2, steps // epochs))
        share = min(1.0, size.share * steps)
        large = Size(clients, batches, epochs, share, min(self.federation.rounds, 5 if is_quick else 3))
        pair = self.trial(replace(large, batches=max(1, batches // 4), share=share / 4)), self.trial(large)
        growth = int(ROUND_SECONDS / max(pair[1].middle.seconds, 1e-3))
        if growth < 2 or (large.batches == MOST_BATCHES and large.share == 1.0):
            return pair
        epochs = min(epochs * growth, MOST_EPOCHS, self.epochs if self.epochs > 0 else 1)
        batches = min(MOST_BATCHES, max(batches, batches * large.epochs * growth // epochs))
        larger = replace(large, epochs=epochs, batches=batches, share=min(1.0, share * growth))
        return pair[1], self.trial(larger)

    def trial(self, size: Size) -> Trial:
        """Run one."""
        federation, plan, data = self.federation, self.plan, self.plan.datamodule
        amounts = Amounts.of(data, plan.trainer)
        clients = [client for client in amounts.rows]
        cohort_size = min(federation.clients_per_round or len(clients), len(clients))
        chosen, count = self._clients(size, cohort_size)
        small, whole = sample_data(data, chosen, size)
        stopwatch, folder = Stopwatch(), self.folder / str(self._number)
        self._number += 1
        trial = copy.copy(federation)
        trial.rounds, trial.callbacks, trial.logger, trial.config = size.rounds, (stopwatch,), None, None
        trial.clients_per_round = count if count < len(chosen) else None
        trial.min_clients, trial.is_shown, trial.run_dir = None, False, folder / "run"
        trial.trainer = short_trainer(federation.trainer, size)
        trial.backend = TimedBackend(federation.backend, stopwatch)
        trial.teacher_cache = cache = SampledCache(folder / "cache", TeacherCache(), whole, stopwatch, self._rates)
        module = own_copy(self.module)
        if getattr(module.teacher, "adapt", None) is not None:  # it would be adapted to a few images for good
            module.teacher_link = TeacherLink(copy.deepcopy(module.teacher))
        stopwatch.began = time.perf_counter()
        try:
            with own_cache(folder):
                trial.fit(module, small)
        except FedKDError as error:
            if (text := UNFINISHED.sub("", str(error))) == str(error):
                raise
            raise FedKDError(text) from error
        stopwatch.lap()
        self.passes = cache.passes
        self._note_files(folder / "run", len(chosen))
        taken = Amounts.of(small, trial.trainer)
        return Trial(
            phases=stopwatch.phases[:-1],
            amounts=taken,
            everyone=len(chosen),
            share=size.share,
            train_share=len(small.train) / len(data.train),
            fewer_epochs=self.epochs / trial.trainer["max_epochs"] if self.epochs > 0 else 1.0,
        )

    def _clients(self, size: Size, cohort_size: int) -> tuple[list[int], int]:
        """Return clients for a small run, and how many of them are a cohort: as few as the strategy takes."""
        plan, data = self.plan, self.plan.datamodule
        at_once = self.federation.backend.num_at_once
        count = min(cohort_size, max(size.clients, len(plan.modules), 2 * at_once))
        num_clients = sum(len(shard) > 0 for shard in data.shards)
        while True:
            chosen = choose_clients(data.shards, len(plan.modules), count + (cohort_size < num_clients))
            small, _ = sample_data(data, chosen, size)
            try:
                plan.strategy.check(plan.modules[0], small)
                plan.strategy.check_cohort(count)
            except FedKDError:
                if count >= cohort_size:
                    raise
                count = min(2 * count, cohort_size)
            else:
                return chosen, min(count, len(chosen))

    def _note_files(self, run_dir: Path, clients: int) -> None:
        """Remember the bytes of a checkpoint, of what is kept for a client, and of all else."""
        files = {path: path.stat().st_size for path in run_dir.rglob("*") if path.is_file()}
        checkpoint = max(files[path] for path in round_checkpoints(run_dir).values())
        states = [size for path, size in files.items() if path.parent == run_dir / "checkpoints" / "clients"]
        rest = sum(size for path, size in files.items() if "checkpoints" not in path.parts)
        self._stored = (checkpoint, max(states, default=0), rest)

    def run_bytes(self, clients: int) -> int:
        """Return what a run directory holds: two checkpoints, two states of each client, and the rest."""
        checkpoint, state, rest = self._stored
        return round(2 * checkpoint + 2 * clients * state + rest)

    def further_memory(self, cohort_size: int) -> int:
        """Return bytes of the run's process that no small run needed: the rows of clients, logits and updates."""
        plan, data = self.plan, self.plan.datamodule
        image = math.prod(data.image_shape)
        largest = sorted(map(len, data.shards))[-SITES_KEPT:]  # so many clients' rows are kept; the data set is there
        rows = sum(largest) + len(data.test) + len(data.public_indices)
        logits = 0 if teacher_of(plan) is None else 4 * data.num_classes * (len(data.train) + len(data.test))
        views = data.views if plan.consistent and data.views else 1
        weights = sum(4 * value.numel() for value in plan.modules[0].student.parameters())
        updates = 0 if plan.strategy.streams else (cohort_size - min(cohort_size, FEW_CLIENTS)) * weights
        return rows * image + 2 * logits * views + updates


def own_copy(module: Any) -> Any:
    """Return a copy of a module, with the very teacher."""
    if not isinstance(module, DistillationModule):
        return module  # `plan_run` refuses it
    return copy.deepcopy(module, {id(module._trainer): None, id(module.teacher_link): module.teacher_link})


def teacher_of(plan: Plan) -> Any:
    """Return the run's teacher, None without one."""
    return plan.modules[0].teacher


def students_line(plan: Plan) -> str:
    """Return the student and its number of parameters; of each kind if there are several."""
    return ", ".join(
        f"{(module.student_spec or {}).get('name', type(module.student).__name__)}, "
        f"{sum(value.numel() for value in module.student.parameters()):,} parameters"
        for module in plan.modules
    )


def check_checkpoint(
    run_dir: str | Path | None, ckpt_path: str | Path | None, settings: Mapping[str, Any], rounds: int
) -> None:
    """Raise if a run cannot go on from a checkpoint."""
    if ckpt_path is None:
        return
    check_branch(ckpt_path, settings, rounds)
    folder = newest_version(Path("runs")) if run_dir is None else Path(run_dir).expanduser()
    if str(ckpt_path) == "last" and folder is not None:
        for newest in list(round_checkpoints(folder).values())[-1:]:
            check_branch(newest, settings, rounds)


def existing_parent(path: Path) -> Path:
    """Return the nearest folder above a path, or at it, that is there."""
    path = path.absolute()
    while not path.is_dir():
        if path.exists():
            raise FedKDError(f"run_dir {str(path)!r} cannot be made: it is a file.")
        path = path.parent
    return path


def max_seconds(trainer: Mapping[str, Any]) -> float:
    """Return after how many seconds a client's Trainer ends; infinite without ``max_time``."""
    given = trainer.get("max_time")
    return math.inf if given is None else float(Timer(given)._duration or math.inf)


def peak_memory(who: int) -> int:
    """Return the largest number of bytes that a process, or the largest of its children, has had in memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(who).ru_maxrss * unit


@contextmanager
def own_cache(folder: Path) -> Iterator[None]:
    """Let everything that is cached go to a folder while the block runs."""
    before = os.environ.get("FEDKD_CACHE")
    os.environ["FEDKD_CACHE"] = str(folder / "cache")
    try:
        yield
    finally:
        if before is None:
            del os.environ["FEDKD_CACHE"]
        else:
            os.environ["FEDKD_CACHE"] = before


@contextmanager
def quiet() -> Iterator[None]:
    """Silence notices and warnings: the small runs would repeat them, and tell of classes that only they lack."""
    logger = logging.getLogger("lightning.pytorch")
    children = [logger, logging.getLogger("lightning.pytorch.utilities.rank_zero")]
    levels = [each.level for each in children]
    try:
        for each in children:
            each.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(children, levels, strict=True):
            each.setLevel(level)
