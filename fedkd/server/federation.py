"""`Federation`: the round loop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from fedkd.client.works import ClientContext, run_client
from fedkd.core.errors import FedKDError, check_range, unknown_name
from fedkd.core.messages import ClientTask, ClientUpdate, Metrics, ServerState
from fedkd.core.progress import progress_bar
from fedkd.core.seeding import seeded
from fedkd.core.storage import cache_dir
from fedkd.core.tensors import load_state, split_state
from fedkd.data import FederatedDataModule
from fedkd.runs.directory import RunDirectory
from fedkd.runs.summary import partition_record, round_row, run_identity, summarise
from fedkd.server.backends import Backend, InProcess
from fedkd.server.context import ServerContext
from fedkd.server.sampling import sample_cohort
from fedkd.strategies import FedAvg, Strategy, default_strategy
from fedkd.teachers import TeacherSignal, prepare_teacher
from fedkd.training.evaluation import Evaluation
from fedkd.training.module import DistillationModule
from fedkd.training.trainer_arguments import as_loggers, check_trainer

TEACHING = ("fixed", "consistent")
Loaded = tuple[ServerState, dict[str, Any], list[Metrics]]  # what a round checkpoint holds


class Federation:
    """Trains a module over the clients of a datamodule: ``Federation(rounds=20).fit(module, datamodule)``.

    Args:
        rounds: Number of rounds in all, those before a resume counted in.
        clients_per_round: Size of each round's cohort; None takes every client that has data.
        strategy: The federated algorithm. None takes the best that is known for what the run has: `ServerDistillation`
            with a teacher and public images, else `FedAvg`.
        backend: Where clients run.
        teaching: What the teacher judges: "fixed" is the image itself, whatever the student sees of it; "consistent"
            is the student's own crop and flip, which takes ``data.views``.
        trainer: Arguments of each client's Lightning Trainer, such as ``{"max_epochs": 2, "precision":
            "bf16-mixed"}``; they reach it unchanged, except ``logger``, which logs the run: a row a round.
        run_dir: Where the run is kept; None takes the next free ``runs/version_N``.
        seed: Cohorts, the student's first weights and all that clients draw come from it.

    Raises:
        FedKDError: For values out of range.
    """

    def __init__(
        self,
        rounds: int = 10,
        clients_per_round: int | None = None,
        strategy: Strategy | None = None,
        backend: Backend = InProcess(),  # noqa: B008  (stateless, and readable by the command line)
        teaching: Literal["fixed", "consistent"] = "fixed",
        trainer: Mapping[str, Any] | None = None,
        run_dir: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        check_range("rounds", rounds, low=1, whole=True)
        if clients_per_round is not None:
            check_range("clients_per_round", clients_per_round, low=1, whole=True)
        if teaching not in TEACHING:
            raise unknown_name("teaching", teaching, TEACHING)
        self.rounds, self.clients_per_round, self.teaching = rounds, clients_per_round, teaching
        self.chosen_strategy, self.backend = strategy, backend
        self.strategy: Strategy = strategy or FedAvg()  # `fit` puts the default here that suits the run
        arguments = dict(trainer or {})
        self.loggers = as_loggers(arguments.pop("logger", None))
        self.trainer = arguments
        self.run_dir, self.seed = run_dir, int(seed)  # jsonargparse has an int of its own
        self.config: str | None = None  # the command line's YAML, kept with the run

    def fit(
        self, module: DistillationModule, datamodule: FederatedDataModule, ckpt_path: str | Path | None = None
    ) -> dict[str, Any]:
        """Run the rounds; each is on disk when it is done.

        Args:
            module: Its student is trained in place and holds the global weights at the end.
            datamodule: The clients' shards and the global test set.
            ckpt_path: ``"last"`` goes on from the run directory's newest round (from the start where there is none);
                the path of another run's round checkpoint branches off it, into a run directory of its own.

        Returns:
            The summary, as in ``summary.json``.
        """
        start = time.perf_counter()
        device = self._set_up(module, datamodule)
        run, identity, found = self._open_run(module, datamodule, ckpt_path)
        signal = self._ask_teacher(module, datamodule, device)
        state, history = self._start(run, module, datamodule, found)
        for row in history:
            self._log(row)
        said = signal.for_clients() if signal else {}
        context = ClientContext(module, datamodule, self.trainer, self.strategy, self.seed, **said)
        evaluate = Evaluation(module, datamodule, self.trainer, device)
        clients = [client for client, shard in enumerate(datamodule.shards) if len(shard)]

        with self._finalised_loggers(), progress_bar("Rounds", self.rounds, done=state.round) as bar:
            while state.round < self.rounds:
                began = time.perf_counter()
                cohort = sample_cohort(clients, self.clients_per_round, seed=self.seed, round=state.round)
                tasks = self._make_tasks(state, cohort)
                updates = self._run_clients(context, tasks)
                server = ServerContext.of(context, start=state)
                state = self.strategy.aggregate(state, updates)
                state = self.strategy.refine(state, updates, server)
                metrics = evaluate(state)
                metrics |= self.strategy.metrics(state, updates, server)
                history.append(round_row(tasks, updates, metrics, seconds=time.perf_counter() - began))
                run.commit(state, self.strategy.state_dict(), history, identity)
                self._log(history[-1])
                bar.advance(note=f"balanced accuracy {metrics['balanced_accuracy']:.1%}")

        assert module.student is not None
        load_state(module.student, state.parameters, state.buffers)
        run.save_student(state, module.describe(), module.constants())
        summary = summarise(module, history, signal, identity, seconds=time.perf_counter() - start, run_dir=run.path)
        summary["client_val_accuracy"] = evaluate.of_clients(state)
        run.write_json("summary.json", summary)
        return summary

    def _set_up(self, module: DistillationModule, datamodule: FederatedDataModule) -> torch.device:
        """Say what is wrong before any work, load the data, build the student; return the device of training."""
        if self.clients_per_round is not None:
            check_range("clients_per_round", self.clients_per_round, low=1, high=datamodule.num_clients, whole=True)
        if self._is_consistent(module) and datamodule.augmentation and datamodule.views is None:
            raise FedKDError(
                "teaching 'consistent' needs views that come back: set data.views to how many (such as 4), or choose "
                "teaching 'fixed'."
            )
        device = check_trainer(self.trainer)
        datamodule.prepare_data()
        datamodule.setup()
        self.strategy = self.chosen_strategy or default_strategy(module, datamodule)
        with seeded(self.seed, "student"):
            module.build(datamodule.classes, datamodule.image_shape)
        module.check_optimizer()
        clients = sum(len(shard) > 0 for shard in datamodule.shards)
        self.strategy.check(module, datamodule, min(self.clients_per_round or clients, clients))
        return device

    def _open_run(
        self, module: DistillationModule, data: FederatedDataModule, ckpt_path: str | Path | None
    ) -> tuple[RunDirectory, dict[str, Any], Loaded | None]:
        """Make or find the run directory; return it, what this run is, and the checkpoint to go on from, if any."""
        run = RunDirectory(self.run_dir, resume=str(ckpt_path) == "last")
        identity = {**self._identity(), **run_identity(module, data, self.trainer)}
        found = run.load(ckpt_path, identity) if ckpt_path is not None else None
        run.write_json("partition.json", partition_record(data))
        if self.config is not None:
            run.write_text("config.yaml", self.config)
        return run, identity, found

    def _ask_teacher(
        self, module: DistillationModule, data: FederatedDataModule, device: torch.device
    ) -> TeacherSignal | None:
        if module.teacher is None:
            return None
        signal = prepare_teacher(
            module.teacher,
            data.train,
            data.test,
            data.shards,
            public=data.public_indices,
            shared=data.shared_images,
            views=data.image_views if self._is_consistent(module) else None,
            features=module.loss.needs_features,
            cache=cache_dir("teachers"),
            device=device,
        )
        module.calibrate_to(signal, data.shards)
        return signal

    def _is_consistent(self, module: DistillationModule) -> bool:
        return module.teacher is not None and self.teaching == "consistent"

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "strategy": repr(self.strategy),
            "clients_per_round": self.clients_per_round,
            "teaching": self.teaching,
        }

    def _start(
        self, run: RunDirectory, module: DistillationModule, data: FederatedDataModule, found: Loaded | None
    ) -> tuple[ServerState, list[Metrics]]:
        """Return the state and the history to go on from: those of the checkpoint that was found, if one was."""
        if found is None:
            assert module.student is not None
            num_examples = sum(len(shard) for shard in data.shards)
            state = ServerState(0, *split_state(module.student), num_examples=num_examples)
            self.strategy.start(state)
            return state, []
        state, strategy_state, history = found
        self.strategy.start(state)
        self.strategy.load_state_dict(strategy_state)
        run.write_metrics(history)
        return state, history

    def _make_tasks(self, state: ServerState, cohort: Sequence[int]) -> list[ClientTask]:
        extras = self.strategy.broadcast(state)
        return [
            ClientTask(
                state.round, client, state.parameters, state.buffers, extras, state.client_states.get(client, {})
            )
            for client in cohort
        ]

    def _run_clients(self, context: ClientContext, tasks: Sequence[ClientTask]) -> list[ClientUpdate]:
        updates = sorted(self.backend.map(run_client, context, tasks), key=lambda update: update.client)
        diverged = [update.client for update in updates if not update.is_finite]
        if diverged:
            raise FedKDError(
                f"Round {tasks[0].round}: the weights of client(s) {diverged} became infinite or NaN. Lower the "
                "learning rate or set trainer.gradient_clip_val. The rounds before are in the run directory."
            )
        return updates

    @contextmanager
    def _finalised_loggers(self) -> Iterator[None]:
        status = "failed"
        try:
            yield
            status = "success"
        finally:
            for logger in self.loggers:
                logger.finalize(status)

    def _log(self, row: Metrics) -> None:
        numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
        for logger in self.loggers:
            logger.log_metrics(numbers, step=row["round"])
            logger.save()
