"""What comes before the rounds: checks, the data, the students, the teacher's outputs, and the clients' sites."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fedkd.client.fit_to_teacher import find_facts
from fedkd.core.config import one_line
from fedkd.core.errors import FedKDError, check_range
from fedkd.core.messages import ServerState, Weights
from fedkd.core.seeding import seeded
from fedkd.core.tensors import split_state
from fedkd.data import FederatedDataModule
from fedkd.data.pool import Pool
from fedkd.data.rows import Rows
from fedkd.runs.identity import run_identity
from fedkd.runs.summary import ROUND_COLUMNS
from fedkd.server.backends import Backend, SiteFactory
from fedkd.server.exchange import Exchange, Traffic
from fedkd.server.lr_schedule import LearningRateSchedule, lr_factor
from fedkd.strategies import RoundContext, Strategy, default_strategy
from fedkd.strategies.context import LastTest
from fedkd.students import UnbuiltStudent, trained_part
from fedkd.teachers import TeacherOutputs, prepare_teacher
from fedkd.training.lean_trainer import has_plain_optimizer, reason_for_lightning
from fedkd.training.module import DistillationModule
from fedkd.training.trainer import with_defaults
from fedkd.training.trainer_arguments import check_trainer, with_precision


@dataclass(frozen=True, eq=False)
class Plan:
    """A run that was found sound, before any costly work.

    Attributes:
        strategy: The strategy.
        modules: The built modules: the caller's, or one for each of the strategy's students.
        datamodule: Set up.
        device: Where clients train.
        trainer: Arguments of the clients' Trainers; those that follow from the device are in it.
        consistent: Whether the teacher's outputs are for the student's own views.
    """

    strategy: Strategy
    modules: tuple[DistillationModule, ...]
    datamodule: FederatedDataModule
    device: torch.device
    trainer: Mapping[str, Any]
    consistent: bool


class Connections:
    """Opens a backend for one stage of a run after the other, and counts their traffic together.

    Args:
        backend: Where clients run.

    Attributes:
        traffic: What all exchanges have sent so far.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend, self.traffic = backend, Traffic()

    @contextmanager
    def __call__(self, sites: SiteFactory) -> Iterator[Exchange]:
        """Give an exchange with the clients of a site factory."""
        with self.backend.open(sites) as workers:
            exchange = Exchange(workers, self.traffic)
            try:
                yield exchange
            finally:
                self.traffic = exchange.traffic


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run whose teacher's outputs are there and whose clients can be told to work.

    Attributes:
        plan: The run.
        outputs: The teacher's, None without a teacher.
        head_traffic: What was sent to adapt the teacher, fit its head and fit the loss to it.
        exchange: With the clients.
        server_modules: The server's own copies of the modules.
        pools: Unlabeled images that all may see.
        clients: The clients with training images, with their number.
        held_out: The clients that hold images out, with their number.
        seed: The run's seed.
        rounds: How many rounds the run has in all.
        lr_schedule: How clients' learning rates change from round to round.
        min_clients: How many clients must train in a round; None is the whole cohort.
        trainer: Arguments of the clients' Trainers.
        val_accuracy: The accuracy on what it holds out of each client of the last evaluation.
        last_test: The last test of a global student.
    """

    plan: Plan
    outputs: TeacherOutputs | None
    head_traffic: Traffic
    exchange: Exchange
    server_modules: tuple[DistillationModule, ...]
    pools: dict[str, Pool]
    clients: dict[int, int]
    held_out: dict[int, int]
    test: Rows
    seed: int
    rounds: int
    lr_schedule: LearningRateSchedule
    min_clients: int | None
    trainer: dict[str, Any]
    val_accuracy: dict[int, float] = field(default_factory=dict)
    last_test: LastTest = field(default_factory=LastTest)

    def start(self) -> ServerState:
        """Return the state before the first round."""
        student = self.plan.modules[0].student
        state = ServerState(0, Weights(*split_state(student)), num_examples=sum(self.clients.values()))
        return self.plan.strategy.start(state, self.context(state))

    def context(self, state: ServerState, cohort: Sequence[int] | None = None) -> RoundContext:
        """Return what the strategy works with in the round that starts from ``state``.

        Args:
            state: The state.
            cohort: The clients of the round; None outside of one.
        """
        data = self.plan.datamodule
        return RoundContext(
            exchange=self.exchange,
            num_clients=data.num_clients,
            clients=self.clients,
            held_out=self.held_out,
            modules=self.server_modules,
            classes=data.classes,
            test=self.test,
            pools=self.pools,
            trainer=self.trainer,
            eval_batch_size=data.eval_batch_size,
            seed=self.seed,
            start=state,
            val_accuracy=self.val_accuracy,
            last_test=self.last_test,
            cohort=None if cohort is None else tuple(cohort),
            is_last=state.round + 1 >= self.rounds,
            lr_factor=lr_factor(self.lr_schedule, state.round, max(self.rounds, state.round + 1)),
            min_clients=self.min_clients,
        )


def plan_run(federation: Any, module: DistillationModule, datamodule: FederatedDataModule) -> Plan:
    """Raise what is wrong before any work, load the data and build the students.

    Args:
        federation: The `fedkd.Federation`.
        module: The caller's.
        datamodule: The caller's.

    Raises:
        FedKDError: If something is wrong.
    """
    for name, given, kind, advice in (
        ("module", module, DistillationModule, "give the student to a DistillationModule"),
        ("datamodule", datamodule, FederatedDataModule, "give its datasets, .from_datasets(train, test, ...)"),
    ):
        if not isinstance(given, kind):
            what = given.__name__ if isinstance(given, type) else type(given).__name__
            raise FedKDError(f"fit needs a {kind.__name__} as {name}, got {what}: {advice}.")
    if federation.clients_per_round is not None:
        check_range("clients_per_round", federation.clients_per_round, low=1, high=datamodule.num_clients, whole=True)
    consistent = module.teacher is not None and federation.teaching == "consistent"
    if consistent and datamodule.augmentation and datamodule.views is None:
        raise FedKDError(
            "teaching 'consistent' needs views that come back: set data.views to how many (such as 4), or choose "
            "teaching 'fixed'."
        )
    for callback in federation.callbacks:
        callback.check(has_validation=datamodule.val_fraction > 0)
    plan = build_plan(federation, module, datamodule)
    plan = replace(plan, datamodule=federation.backend.data_of(plan, federation))
    strategy, datamodule = plan.strategy, plan.datamodule
    plan.modules[0].check_optimizer()
    for each in plan.modules:
        federation.backend.check(each, plan.trainer)
    clients = sum(len(shard) > 0 for shard in datamodule.shards)
    cohort_size = min(federation.clients_per_round or clients, clients)
    if federation.min_clients is not None:
        check_range("min_clients", federation.min_clients, low=1, high=cohort_size, whole=True)
    strategy.check(plan.modules[0], datamodule)
    strategy.check_cohort(cohort_size)
    for num_clients in range(federation.min_clients or cohort_size, cohort_size):
        try:
            strategy.check_cohort(num_clients)
        except FedKDError as error:
            few = f"min_clients {federation.min_clients} lets {num_clients} clients end a round"
            raise FedKDError(f"{few}: {error}") from None
    held_out = ("val_accuracy",) if datamodule.val_fraction else ()
    for callback in federation.callbacks:
        callback.check_columns((*ROUND_COLUMNS, *held_out, *strategy.columns))
    return plan


def build_plan(federation: Any, module: DistillationModule, datamodule: FederatedDataModule) -> Plan:
    """Load the data and build the students: what the server of a run and a client on a machine of its own both do.

    Args:
        federation: The `fedkd.Federation`.
        module: Its module.
        datamodule: Its data.

    Raises:
        FedKDError: If something is wrong.
    """
    device = check_trainer(federation.trainer)
    trainer = with_precision(federation.trainer, device)
    consistent = module.teacher is not None and federation.teaching == "consistent"
    named: Strategy | None = None if federation.strategy == "auto" else federation.strategy
    if isinstance(module.student, UnbuiltStudent):
        module.student.check_source()
    datamodule.prepare_data()
    datamodule.setup()
    module.forget_federation()
    names = () if named is None else named.students()
    modules = tuple(module.with_student(name) for name in names) or (module,)
    for each in modules:
        with seeded(federation.seed, "student"):
            each.build(datamodule.classes, datamodule.image_shape)
            each.student = trained_part(each.student)
    strategy = named or default_strategy(module, datamodule.public_fraction > 0)
    for each in modules:
        with seeded(federation.seed, "student"):
            each.use_default_loss(strategy.default_loss())
            each.check_data(datamodule)
            each.student = strategy.wrap(each.student, datamodule.num_classes, datamodule.image_shape)
    return Plan(strategy, modules, datamodule, device, trainer, consistent)


def run_settings(federation: Any, plan: Plan) -> dict[str, Any]:
    """Return what a checkpoint must agree on with the run that goes on from it."""
    return {
        "seed": federation.seed,
        "strategy": one_line(plan.strategy, paths=True),
        "clients_per_round": federation.clients_per_round,
        "teaching": federation.teaching,
        "lr_schedule": one_line(federation.lr_schedule, paths=True),
        **run_identity(plan.modules[0], plan.datamodule, plan.trainer),
    }


def described(federation: Any, plan: Plan) -> dict[str, Any]:
    """Return all settings of a run, one line or number each: for its summary and its loggers.

    What `run_settings` has, and what may differ when a run goes on.

    Args:
        federation: The `fedkd.Federation`.
        plan: The run.
    """
    module, data = plan.modules[0], plan.datamodule
    return {
        **run_settings(federation, plan),
        "rounds": federation.rounds,
        "min_clients": federation.min_clients,
        "backend": one_line(federation.backend),
        "callbacks": ", ".join(map(one_line, federation.callbacks)) or None,
        "device": str(plan.device),
        "architecture": one_line(module.student_spec) if module.student_spec else type(module.student).__name__,
        "data": str(data.dataset),
        "num_clients": data.num_clients,
        "partitioner": one_line(data.partitioner),
        "public_fraction": data.public_fraction,
        "val_fraction": data.val_fraction,
    }


def training_loop(prepared: Prepared, state: ServerState) -> str:
    """Return with which loop clients train, and why if it is Lightning's; see `fedkd.training.trainer.trainer_for`.

    Args:
        prepared: The run.
        state: The state that the next round starts from.
    """
    task = prepared.plan.strategy.tasks(state, list(prepared.clients)[:1])[0]
    module, callbacks = prepared.plan.modules[0], task.rule.callbacks(task)
    reason = reason_for_lightning(module, with_defaults(prepared.trainer), callbacks)
    if reason is None and not has_plain_optimizer(module):
        reason = "the optimizer comes with a scheduler, or takes a closure"
    return "lean" if reason is None else f"Lightning's own, since {reason}"


@contextmanager
def prepare_run(federation: Any, plan: Plan) -> Iterator[Prepared]:
    """Fit the teacher and the loss with the clients' help, and open the exchange for the rounds.

    Args:
        federation: The `fedkd.Federation`.
        plan: The run.

    Yields:
        The prepared run, until the rounds are over.
    """
    data, connect = plan.datamodule, Connections(federation.backend)
    clients = {client: len(shard) for client, shard in enumerate(data.shards) if len(shard)}
    held_out = {client: len(shard) for client, shard in enumerate(data.val_shards) if len(shard)}
    seed, trainer = federation.seed, dict(plan.trainer)
    outputs, pools = None, data.pools()
    teacher = plan.modules[0].teacher
    if teacher is not None:
        needs_features = plan.modules[0].loss.needs_features or plan.strategy.needs_teacher_features
        outputs = prepare_teacher(
            teacher,
            data,
            connect=connect,
            views=data.image_views if plan.consistent else None,
            features=needs_features,
            cache=federation.teacher_cache,
            device=plan.device,
        )
        pools = data.pools(outputs.logits, outputs.shared_logits, outputs.shared_feature_file, outputs.feature_file)
        for module in plan.modules:
            sites = data.sites(
                "loss",
                seed=seed,
                modules=(module.for_clients(),),
                teacher_logits=outputs.logits,
                feature_file=outputs.feature_file,
            )
            with connect(sites) as exchange:
                module.fit_to_teacher(find_facts(module.loss, exchange, list(clients), teacher, data.num_classes))
    head_traffic = connect.traffic
    sites = data.sites(
        "rounds",
        seed=seed,
        teacher_logits=None if outputs is None else outputs.logits,
        feature_file=None if outputs is None else outputs.feature_file,
        pools=pools,
        modules=tuple(module.for_clients() for module in plan.modules),
        trainer=trainer,
    )
    with connect(sites) as exchange:
        yield Prepared(
            plan,
            outputs,
            head_traffic,
            exchange,
            server_modules=tuple(module.for_clients() for module in plan.modules),
            pools=pools,
            clients=clients,
            held_out=held_out,
            test=Rows.of(data.test),
            seed=seed,
            rounds=federation.rounds,
            lr_schedule=federation.lr_schedule,
            min_clients=federation.min_clients,
            trainer=trainer,
        )
