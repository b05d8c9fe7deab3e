"""What holds for every strategy that is exported, here with nothing but its constructor's arguments to say of it."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from helpers import BrightRowTeacher, Remote, images, module, same, weights
from safetensors.torch import load_file
from torch import nn

import fedkd
import fedkd.strategies
from fedkd.core.config import describe
from fedkd.core.messages import ClientTask, ClientUpdate, from_bytes, to_bytes
from fedkd.partition import Partitioner
from fedkd.runs.summary import ROUND_COLUMNS
from fedkd.server.callbacks.base import Monitor
from fedkd.server.sampling import sample_cohort
from fedkd.strategies import Strategy

# Whatever cannot be made without arguments, or is better tested with others than the defaults, has a line here.
MAKE: dict[str, Callable[[], Strategy]] = {
    "Compose": lambda: fedkd.strategies.Compose([fedkd.strategies.FedNova(), fedkd.strategies.FedAdam()]),
    "FeatureStart": lambda: fedkd.strategies.FeatureStart("public", dim=2, epochs=2),
    "FedMD": lambda: fedkd.strategies.FedMD(["cnn", "resnet8"]),
    "Krum": lambda: fedkd.strategies.Krum(0),
    "MultiKrum": lambda: fedkd.strategies.MultiKrum(0, 2),
}
NEEDS = {"DPFedAvg": "dp_accounting"}
"""Packages of extras."""
OWN_STUDENTS = {"FedMD"}
"""Those in which each client has a student of its own."""
NO_BUFFERS = {"DPFedAvg"}
"""Those that refuse a student with BatchNorm; all others are given one."""

STRATEGIES = [
    name
    for name in fedkd.strategies.__all__
    if inspect.isclass(found := getattr(fedkd.strategies, name))
    and issubclass(found, Strategy)
    and not inspect.isabstract(found)
    and found is not Strategy  # FedAvg states no difference from it
]


def make(name: str) -> Strategy:
    """Return a fresh strategy of an exported name."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    if name in MAKE:
        return MAKE[name]()
    strategy = getattr(fedkd.strategies, name)
    parameters = inspect.signature(strategy).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if required:
        pytest.fail(f"{name} needs {', '.join(required)}: give it a line in MAKE of {__file__}.")
    return strategy()


class Linear(nn.Module):
    """Softmax regression on 8x8 images, after a BatchNorm if so wanted, and a frozen scale."""

    def __init__(self, batch_norm: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1) if batch_norm else nn.Identity()
        self.scale = nn.Parameter(torch.ones(64), requires_grad=False)
        self.head = nn.Linear(64, 3)

    def forward(self, images):
        return self.head(self.scale * self.norm(images).flatten(1))


@dataclass(frozen=True)
class Uneven(Partitioner):
    """Client 1 has no image, client 2 has one; the rest is dealt out to clients 0, 3 and 4, and is skewed."""

    def assign(self, labels, num_clients, rng):
        clients = np.array([0, 3, 4])[np.where(np.arange(len(labels)) % 3, labels, 0)]
        clients[0] = 2
        return clients


EMPTY, ONE_IMAGE = 1, 2
SAMPLED = 3
ROUNDS = 2


def data() -> fedkd.FederatedDataModule:
    """Return 48 images, of which 12 are public, over five clients."""
    train, test = images(48), images(30, seed=1)
    return fedkd.FederatedDataModule.from_datasets(
        train, test, num_clients=5, partitioner=Uneven(), batch_size=8, public_fraction=0.25
    )


def run(name, strategy, run_dir, rounds=ROUNDS, ckpt_path=None, loss="auto", **arguments):
    """Run a federation over five clients with a teacher and public images, and return the student's state."""
    torch.manual_seed(0)  # the student is made before `module` seeds
    trained = module(Linear(batch_norm=name not in NO_BUFFERS), teacher=BrightRowTeacher(), loss=loss)
    federation = fedkd.Federation(rounds=rounds, strategy=strategy, run_dir=run_dir, **arguments)
    before = copy.deepcopy(vars(strategy))
    federation.fit(trained, data(), ckpt_path)
    assert describe(vars(strategy)) == describe(before), "a strategy keeps nothing in itself"
    if name in OWN_STUDENTS:
        files = sorted(run_dir.glob("clients/*/student.safetensors"))
        return {f"{file.parent.name}/{key}": value for file in files for key, value in load_file(file).items()}
    return weights(trained)


@pytest.mark.parametrize(
    ("precision", "clients_per_round"),
    [
        ("32-true", SAMPLED),
        ("bf16-mixed", None),
        pytest.param("32-true", None, marks=pytest.mark.slow),
        pytest.param("bf16-mixed", SAMPLED, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", STRATEGIES)
def test_contract(name, precision, clients_per_round, tmp_path):
    arguments = {"trainer": {"accelerator": "cpu", "precision": precision}, "clients_per_round": clients_per_round}
    strategy = make(name)
    before = weights(module(Linear(batch_norm=name not in NO_BUFFERS)))
    whole = run(name, strategy, tmp_path / "whole", **arguments)

    assert all(value.isfinite().all() for value in whole.values())
    if name not in OWN_STUDENTS:
        # a strategy may have put something around the student
        after = {key.removeprefix("student."): value for key, value in whole.items() if not key.startswith("solved_")}
        assert {key: value.dtype for key, value in after.items()} == {key: value.dtype for key, value in before.items()}
        assert not torch.equal(after["head.weight"], before["head.weight"])
        assert torch.equal(after["scale"], before["scale"])  # frozen
    rows = (tmp_path / "whole" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + ROUNDS
    for column in set(rows[0].split(",")) - {"cohort"}:  # those of numbers
        Monitor(column, "max").check_columns((*ROUND_COLUMNS, *strategy.columns))

    # a fresh object goes on from the checkpoint; all travels as bytes, and clients come from last to first
    checkpoint = tmp_path / "whole" / "checkpoints" / "round_000001.ckpt"
    resumed = run(name, make(name), tmp_path / "parts", ckpt_path=checkpoint, backend=Remote(), **arguments)
    assert same(whole, resumed)
    if precision == "32-true" and clients_per_round is None:  # and the same object starts afresh
        assert same(whole, run(name, strategy, tmp_path / "again", backend=Remote(), **arguments))


ALONE = {"Compose", "ClosedFormHead", "FedMD"}
"""Those that are no part of a `Compose` with a head."""
WITH_A_HEAD = {"DPFedAvg", "FeatureStart", "FedAdam", "FedBN", "SCAFFOLD", "ServerDistillation"}
"""One of each kind; the others are slow tests."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in WITH_A_HEAD else pytest.mark.slow)
        for name in STRATEGIES
        if name not in ALONE
    ],
)
def test_a_head_in_closed_form_goes_with_every_strategy(name, tmp_path):
    def both():
        return fedkd.strategies.Compose([make(name), fedkd.strategies.ClosedFormHead("last", every=None)])

    arguments = {"trainer": {"accelerator": "cpu"}, "rounds": 1, "loss": fedkd.losses.KD()}
    if make(name).protects_updates:
        with pytest.raises(fedkd.FedKDError, match="sums over their images for it, which get neither"):
            both()
        return
    alone = run(name, make(name), tmp_path / "alone", **arguments)
    composed = run(name, both(), tmp_path / "both", **arguments)
    assert composed["solved_weight"].any()
    assert same(alone, {key.removeprefix("student."): composed[key] for key in composed if "solved_" not in key})


IN_PROCESSES = {"ClosedFormHead", "FedBN", "FedMD", "SCAFFOLD"}
"""A strategy of each kind of work and memory; that of the others is the same, and a slow test."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in IN_PROCESSES else pytest.mark.slow) for name in STRATEGIES]
)
def test_two_processes_give_the_same_bits(name, pool, tmp_path):
    arguments = {"trainer": {"accelerator": "cpu"}, "clients_per_round": SAMPLED}
    here = run(name, make(name), tmp_path / "here", **arguments)
    assert same(here, run(name, make(name), tmp_path / "there", backend=pool, **arguments))


def test_the_strategies_that_run_in_processes_are_there():
    assert set(STRATEGIES) >= IN_PROCESSES


def test_the_contract_sees_an_empty_client_one_of_one_image_and_both_in_and_out_of_a_cohort():
    dealt = data()
    dealt.setup()
    sizes = [len(shard) for shard in dealt.shards]
    assert [sizes[EMPTY], sizes[ONE_IMAGE]] == [0, 1]
    assert min(sizes[0], sizes[3], sizes[4]) > 4
    clients = [client for client, size in enumerate(sizes) if size]
    cohorts = [sample_cohort(clients, SAMPLED, seed=0, round=round) for round in range(ROUNDS)]
    assert cohorts[0] != cohorts[1]
    assert any(ONE_IMAGE in cohort for cohort in cohorts)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_prints_its_arguments(name):
    strategy = make(name)
    names = inspect.signature(type(strategy)).parameters
    shown = repr(strategy)
    assert shown.startswith(f"{name}(")
    assert all(f"{each}=" in shown for each in names), "a resumed run is checked for them"


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_a_strategy_declares_is_what_it_overrides(name):
    strategy = make(name)
    hooks = ("client_weights", "combine", "combine_buffers", "step")
    if isinstance(strategy, fedkd.strategies.Compose):
        assert strategy.decides == {"combine", "step"}  # FedNova's and FedAdam's
    else:
        assert strategy.decides == {
            hook for hook in hooks if getattr(type(strategy), hook) is not getattr(Strategy, hook)
        }
    assert strategy.has_own_round == (type(strategy).round is not Strategy.round)
    if type(strategy).refine is not Strategy.refine and not isinstance(strategy, fedkd.strategies.Compose):
        assert strategy.changes_student


@pytest.mark.parametrize("name", STRATEGIES)
def test_tasks_and_rules_pickle_and_keep_their_bits_as_bytes(name, tmp_path):
    """The tasks of the second round, where strategies have something to send and to remember."""
    tasks = []

    class Watched(fedkd.InProcess):
        def open(self, sites):
            workers = super().open(sites)
            forward = workers.map

            def watched(work, given):
                updates = list(forward(work, given))
                tasks.extend((work, task, update) for task, update in zip(given, updates, strict=True))
                return iter(updates)

            workers.map = watched
            return workers

    run(name, make(name), tmp_path / "run", backend=Watched())
    trained = [(task, update) for work, task, update in tasks if work is fedkd.train and task.round == 1]
    assert trained
    for task, update in trained:
        rule = pickle.loads(pickle.dumps(task.rule))
        assert rule == task.rule
        back = from_bytes(ClientTask, to_bytes(task))
        assert back.rule == task.rule
        assert to_bytes(back) == to_bytes(task)
        for one, other in ((task.weights.parameters, back.weights.parameters), (task.extras, back.extras)):
            assert same(dict(one), dict(other))
        assert same(dict(task.client_state), dict(back.client_state))
        assert to_bytes(from_bytes(ClientUpdate, to_bytes(update))) == to_bytes(update)
