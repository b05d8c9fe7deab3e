"""`Federation`: the arguments of a run, and the loop of its rounds."""

from __future__ import annotations

import functools
import logging
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from fedkd.core.config import one_line
from fedkd.core.errors import (
    FedKDError,
    check_range,
    in_one_line,
    is_out_of_memory,
    refuse_classes,
    unknown_name,
)
from fedkd.core.messages import Metrics, ServerState
from fedkd.core.notebook import Shown
from fedkd.core.stopping import Terminated, raise_pending, terminable
from fedkd.core.storage import FULL, CannotWriteError
from fedkd.core.tensors import load_state
from fedkd.data import FederatedDataModule
from fedkd.runs.directory import RunDirectory, check_branch
from fedkd.runs.report import write_report
from fedkd.runs.student_file import LAST
from fedkd.runs.summary import Summary, reported, round_row, summarize
from fedkd.server.backends import Backend, InProcess
from fedkd.server.callbacks import RoundCallback, RoundEvent, RunEvent, check_callbacks
from fedkd.server.check.forecast import RunForecast
from fedkd.server.display import show_rounds
from fedkd.server.lr_schedule import LearningRateSchedule, schedule_of
from fedkd.server.run_loggers import RunLoggers, check_loggers, confusion_figure
from fedkd.server.sampling import sample_cohort
from fedkd.server.setup import Prepared, described, plan_run, prepare_run, run_settings, training_loop
from fedkd.strategies import Strategy
from fedkd.teachers import TeacherCache
from fedkd.training.module import DistillationModule

TEACHING = ("fixed", "consistent")


class Federation(Shown):
    """Trains a module over the clients of a datamodule: ``Federation(rounds=20).fit(module, datamodule)``.

    Args:
        rounds: Number of rounds in all; a resumed run counts those before.
        clients_per_round: Size of each round's cohort; None takes every client that has data.
        min_clients: How many clients of a cohort must train for a round to count, >= 1; None is all. A round goes on
            without a client that fails: it raises, sends NaN, or takes too long (`fedkd.ProcessPool`). A warning and
            ``failures.csv`` name client, round and reason.
        strategy: The federated algorithm. "auto" is the best one known for what the run has; see
            `fedkd.strategies.default_strategy`.
        backend: Where clients run.
        teaching: What the teacher's outputs are for: "fixed" is the image itself, whatever the student sees of it;
            "consistent" is the student's own crop, flip and transforms, which needs ``data.views``.
        lr_schedule: How the clients' learning rate changes from round to round: "cosine" lets it fall from the
            optimizer's to 0 over the run's rounds. A run that goes on to more rounds follows the longer cosine from
            there on. See `fedkd.server.lr_schedule` for others.
        callbacks: Watch the rounds, and may stop the run: see `fedkd.server.callbacks`. Callbacks of the clients'
            Trainers are another thing, given in ``trainer``.
        trainer: Arguments of each client's Lightning Trainer, such as ``{"max_epochs": 2, "precision":
            "bf16-mixed"}``. They reach it unchanged, except ``logger``, which logs the run: a row a round.
        run_dir: Where the run is kept; None takes the next free ``runs/version_N``.
        seed: Cohorts, the student's first weights and all that clients draw follow from it.

    Raises:
        FedKDError: For values out of range.
    """

    def __init__(
        self,
        rounds: int = 10,
        clients_per_round: int | None = None,
        min_clients: int | None = None,
        strategy: Strategy | Literal["auto"] = "auto",
        backend: Backend = InProcess(),  # noqa: B008  (stateless, and readable by the command line)
        teaching: Literal["fixed", "consistent"] = "fixed",
        lr_schedule: LearningRateSchedule | Literal["constant", "cosine"] = "constant",
        callbacks: list[RoundCallback] | RoundCallback | None = None,
        trainer: Mapping[str, Any] | None = None,
        run_dir: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        refuse_classes(strategy=strategy, backend=backend, lr_schedule=lr_schedule)
        self.callbacks = check_callbacks(callbacks)
        check_range("rounds", rounds, low=1, whole=True)
        if clients_per_round is not None:
            check_range("clients_per_round", clients_per_round, low=1, whole=True)
        if min_clients is not None:
            check_range("min_clients", min_clients, low=1, high=clients_per_round, whole=True)
        if teaching not in TEACHING:
            raise unknown_name("teaching", teaching, TEACHING)
        self.lr_schedule = schedule_of(lr_schedule)
        if not isinstance(strategy, Strategy) and strategy != "auto":
            raise unknown_name("strategy", strategy, ("auto",))
        self.rounds, self.clients_per_round, self.teaching = rounds, clients_per_round, teaching
        self.min_clients = min_clients
        self.strategy, self.backend = strategy, backend
        arguments = dict(trainer or {})
        self.logger = check_loggers(arguments.pop("logger", None))
        self.trainer = arguments
        self.run_dir, self.seed = run_dir, int(seed)  # jsonargparse has an int of its own
        self.config: str | None = None  # the command line's YAML, kept with the run
        self.teacher_cache: TeacherCache | None = None  # where a check keeps the teacher's outputs; None is fedkd's own
        self.is_shown = True  # whether the rounds are shown as they end

    def fit(
        self, module: DistillationModule, datamodule: FederatedDataModule, ckpt_path: str | Path | None = None
    ) -> Summary:
        """Run the rounds; each is on disk when it is done.

        However this ends, by a return, an exception or Ctrl-C, the module holds the global student of the last round
        that is on disk.

        Args:
            module: Gets the global student. A student by name starts from fresh weights whenever `fit` is called.
            datamodule: The clients' images and the global test set.
            ckpt_path: ``"last"`` goes on from the run directory's newest round (from the start if there is none); the
                path of another run's round checkpoint branches off it, into a run directory of its own.

        Returns:
            The summary, as in ``summary.json``.

        Raises:
            FedKDError: For whatever the caller can mend, before any work where that is possible.
        """
        start = time.perf_counter()
        plan = plan_run(self, module, datamodule)
        if self.strategy == "auto":
            rank_zero_info(f"strategy auto: {plan.strategy!r}")
        if module.has_default_loss and module.teacher is not None:
            rank_zero_info(f"loss auto: {one_line(module.loss)}")
        # both before the teacher sees the data, which changes how it describes itself
        settings, record = run_settings(self, plan), described(self, plan)
        if ckpt_path is not None:
            check_branch(ckpt_path, settings, self.rounds)
        run = RunDirectory(self.run_dir, resume=str(ckpt_path) == "last")
        loggers = RunLoggers(self.logger, run.path)
        with terminable(), run.held():
            found = run.load(ckpt_path, settings, self.rounds) if ckpt_path is not None else None
            run.start(plan.datamodule, self.config)
            try:
                with prepare_run(self, plan) as prepared:
                    state, history = found or (prepared.start(), [])
                    rank_zero_info(f"training loop: {training_loop(prepared, state)}")
                    if found:
                        self._give(module, state)
                    with loggers.finalized():
                        loggers.start(record, history)
                        loggers.log_figure(
                            "partition", lambda: plan.datamodule.partition_report().figure(), state.round
                        )
                        event = start_event = self._event(run, prepared, state, history)
                        for callback in self.callbacks:
                            callback.on_run_start(event)
                        for event in self._rounds(run, prepared, start_event, history, settings, loggers):
                            self._give(module, event.state)
                        self._log_confusion(loggers, prepared, event)
                    for callback in self.callbacks:
                        callback.on_run_end(event)
                    return self._finish(run, prepared, event, history, record, start)
            except (KeyboardInterrupt, Terminated):
                # a warning: a client's fit that was ended may have left Lightning's notices silenced
                logging.getLogger("lightning.pytorch").warning(
                    f"stopped: {run.num_rounds} finished round(s) are in {str(run.path)!r}; the same run with this "
                    "run_dir and ckpt_path 'last' goes on from there"
                )
                raise
            except Exception as error:
                if (told := _lacking(error, run)) is None:
                    raise
                raise told from error
            finally:
                module.was_federated = True
                self.backend.shutdown()

    def check(
        self, module: DistillationModule, datamodule: FederatedDataModule, ckpt_path: str | Path | None = None
    ) -> RunForecast:
        """Find out before a run whether all of it works, how long it will take and how much memory.

        What `fit` refuses, this refuses. Small runs of the same settings, with a few batches of a few clients, then go
        through everything that the run does; see `fedkd.server.check.check_run`. No run directory is written, and the
        module stays as it was.

        Args:
            module: As for `fit`.
            datamodule: As for `fit`.
            ckpt_path: As for `fit`. The forecast is for a whole run, also where one goes on.

        Raises:
            FedKDError: As for `fit`.
        """
        from fedkd.server.check.check import check_run

        return check_run(self, module, datamodule, ckpt_path)

    def _rounds(
        self,
        run: RunDirectory,
        prepared: Prepared,
        event: RunEvent,
        history: list[Metrics],
        settings: dict[str, Any],
        loggers: RunLoggers,
    ) -> Iterator[RunEvent]:
        """Run the rounds that are left, and yield the event of each once it is on disk; rows join the history."""
        strategy, clients, state = prepared.plan.strategy, list(prepared.clients), event.state
        with show_rounds(self.rounds, history, run.path) if self.is_shown else nullcontext() as display:
            while state.round < self.rounds and not (history and event.reasons):
                began = time.perf_counter()
                # the first round counts what the strategy sent before it
                sent = prepared.exchange.traffic if state.round else prepared.head_traffic
                cohort = sample_cohort(clients, self.clients_per_round, seed=self.seed, round=state.round)
                context = prepared.context(state, cohort)
                try:
                    state, updates = strategy.round(state, cohort, context)
                finally:
                    failed = record_failures(run, prepared)
                context = context.without(failed)
                if not state.weights.is_finite:
                    raise FedKDError(
                        f"Round {context.start.round}: the global student became infinite or NaN in the server's step, "
                        f"by {one_line(strategy)}: what the clients sent is finite. Lower its learning rate. The "
                        "rounds before are in the run directory."
                    )
                metrics = strategy.evaluate(state, context)
                metrics |= strategy.metrics(state, updates, context)
                context = context.without(record_failures(run, prepared))
                val_accuracy = dict(context.val_accuracy) if "val_accuracy" in metrics else {}
                traffic = prepared.exchange.traffic - sent
                seconds = time.perf_counter() - began
                history.append(
                    round_row(
                        state.round - 1,
                        updates,
                        metrics,
                        val_accuracy=val_accuracy,
                        bytes_up=traffic.up,
                        bytes_down=traffic.down,
                        seconds=seconds,
                    )
                )
                state = run.commit(state, history[-1], settings)
                event = self._event(run, prepared, state, history)
                yield event
                raise_pending()
                loggers.log(history[-1])
                if display is not None:
                    display.add(history[-1])
                told = reported(updates, val_accuracy)
                round_event = RoundEvent(**vars(event), row=history[-1], clients=told)
                for callback in self.callbacks:
                    callback.on_round_end(round_event)

    def _finish(
        self,
        run: RunDirectory,
        prepared: Prepared,
        event: RunEvent,
        history: list[Metrics],
        settings: dict[str, Any],
        start: float,
    ) -> Summary:
        """Write the students, the summary and, once these are on disk, the report."""
        state = event.state
        plan, context = prepared.plan, prepared.context(state)
        _save_students(run, prepared, state, LAST, {})
        stopped = event.reasons[0] if event.reasons and state.round < self.rounds else None
        if stopped is not None:
            rank_zero_info(f"stopped after {state.round} of {self.rounds} rounds: {stopped}")
            if plan.strategy.needs_last_round:
                rank_zero_warn(
                    f"{one_line(plan.strategy)} has work to do in a run's last round, and the run stopped before it: "
                    "the student is as the last round's row of metrics.csv says."
                )
        summary = summarize(
            plan.modules[0],
            history,
            settings,
            outputs=prepared.outputs,
            head_bytes=(prepared.head_traffic.up, prepared.head_traffic.down),
            seconds=time.perf_counter() - start,
            run_dir=run.path,
            stopped=stopped,
            confusion=context.confusion(state.weights) if state.weights.parameters else None,
        )
        summary |= plan.strategy.summary(state, history[-1], context)
        # after a sampled cohort there are those of its clients; a resumed run that had no round left has none
        last = history[-1]
        if prepared.held_out and (self.clients_per_round is not None or not context.val_accuracy):
            sent = prepared.exchange.traffic
            last = plan.strategy.evaluate(state, context)
            record_failures(run, prepared)
            summary["bytes_up"] += (prepared.exchange.traffic - sent).up
            summary["bytes_down"] += (prepared.exchange.traffic - sent).down
        clients = range(plan.datamodule.num_clients)
        each = [context.val_accuracy.get(client) for client in clients]
        summary["client_val_accuracy"] = each if prepared.held_out else None
        summary["val_accuracy"] = last.get("val_accuracy")
        run.write_json("summary.json", summary)
        self._report(run)
        return summary

    def _event(self, run: RunDirectory, prepared: Prepared, state: ServerState, history: Sequence[Metrics]) -> RunEvent:
        """Return what callbacks are given about a finished round."""
        return RunEvent(
            state=state,
            history=tuple(history),
            rounds=self.rounds,
            run_dir=run.path,
            save=functools.partial(_save_students, run, prepared, state),
        )

    def _report(self, run: RunDirectory) -> None:
        """Write ``report.html``. The run is finished and on disk, so it does not fail by its report."""
        try:
            write_report(run.path)
        except Exception as error:
            rank_zero_warn(
                f"{str(run.path / 'report.html')!r} was not written: {type(error).__name__}: {error}. The run itself "
                f"is finished; fedkd report {shlex.quote(str(run.path))} --debug tries again."
            )

    def _give(self, module: DistillationModule, state: ServerState) -> None:
        """Put the global student into the caller's module; a strategy without one leaves the module as it is."""
        if state.weights.parameters:
            load_state(module.student, state.weights.parameters, state.weights.buffers)

    def _log_confusion(self, loggers: RunLoggers, prepared: Prepared, event: RunEvent) -> None:
        """Give the loggers the confusion matrix of the final global student, where there is one."""
        if event.state.weights.parameters and event.history:
            context, classes = prepared.context(event.state), prepared.plan.datamodule.classes
            loggers.log_figure(
                "confusion",
                lambda: confusion_figure(context.confusion(event.state.weights), classes),
                event.state.round,
            )


def record_failures(run: RunDirectory, prepared: Prepared) -> set[int]:
    """Return the clients that failed since the last call; warn of each and add its row to ``failures.csv``."""
    failures = list(prepared.exchange.failures)
    prepared.exchange.failures.clear()
    for failure in failures:
        rank_zero_warn(f"Client {failure.client}, round {failure.round} failed: {failure.reason}")
    run.note_failures(failures)
    return {failure.client for failure in failures}


def _save_students(
    run: RunDirectory, prepared: Prepared, state: ServerState, which: str, note: Mapping[str, Any]
) -> None:
    """Write the students of a state into the run directory."""
    context = prepared.context(state)
    for client, weights in prepared.plan.strategy.models(state).items():
        trained = context.module(client)
        run.save_student(weights, {**trained.describe(), **note}, trained.constants(), client=client, which=which)


def _lacking(error: Exception, run: RunDirectory) -> FedKDError | None:
    """Return in one line that disk or memory ran out, and how the run goes on; None for another error."""
    if isinstance(error, CannotWriteError):
        told = str(error)
    elif isinstance(error, OSError) and error.errno in FULL:
        told = f"{in_one_line(error)}. Free some space."
    elif is_out_of_memory(error):
        told = f"The server is out of memory ({in_one_line(error)}). Lower data.eval_batch_size, or take less data."
    else:
        return None
    return FedKDError(
        f"{told} {run.num_rounds} finished round(s) are in {str(run.path)!r}; the same run with this run_dir and "
        "ckpt_path 'last' goes on from there."
    )
