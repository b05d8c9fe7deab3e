"""The invariants of the house that no single package can hold alone."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import BrightRowTeacher, datamodule, images, module, same, weights
from torch import Tensor, nn

import fedkd
from fedkd.core.messages import ClientTask, ClientUpdate, ServerState, Weights, from_bytes, to_bytes
from fedkd.data import MappedRows, PublicImages
from fedkd.partition import Dirichlet
from fedkd.server.backends.base import ClientError
from fedkd.server.exchange import Exchange
from fedkd.strategies import FedAvg

PACKAGE = Path(fedkd.__file__).parent


def sites(**settings: Any):
    """Return a module and what makes the sites of five clients, with a teacher's outputs and a public pool."""
    data = fedkd.FederatedDataModule.from_datasets(
        images(60),
        images(30, seed=1),
        num_clients=5,
        partitioner=Dirichlet(1.0),
        public_fraction=0.25,
        val_fraction=0.2,
        shared=PublicImages(),
    )
    data.setup()
    trained = module(teacher=BrightRowTeacher())
    trained.build(data.classes, data.image_shape)
    logits = torch.randn(60, 3)
    made = data.sites(
        modules=(trained.for_clients(),),
        teacher_logits=logits,
        pools=data.pools(logits, logits),
        trainer={"accelerator": "cpu"},
        **settings,
    )
    return data, trained, made


def tensors_in(value: Any, seen: set[int] | None = None) -> Iterator[Tensor | np.ndarray | MappedRows]:
    """Walk an object and yield every tensor, array and mapped file that it reaches."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, str | bytes | int | float | type | None):
        return
    seen.add(id(value))
    if isinstance(value, Tensor | np.ndarray | MappedRows):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item, seen)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from tensors_in(item, seen)
    elif hasattr(value, "__dict__"):
        yield from tensors_in(vars(value), seen)


def test_a_site_holds_its_own_rows_and_the_pools_alone():
    data, _, made = sites()
    pools = {"public": len(data.public_indices), "shared": len(data.shared_images)}
    for client, shard in enumerate(data.shards):
        site = made(client)
        assert torch.equal(site.rows.images, data.train.images[torch.from_numpy(shard)])
        assert torch.equal(site.held_out.images, data.train.images[torch.from_numpy(data.val_shards[client])])
        assert {name: len(pool) for name, pool in site.pools.items()} == pools
        # every array of images or of outputs has as many rows as one of these, and no storage is larger than its view
        allowed = {len(shard), len(data.val_shards[client]), *pools.values()}
        student = {value.data_ptr() for value in site.module.state_dict().values()}
        for found in tensors_in(site):
            if isinstance(found, Tensor) and found.data_ptr() not in student:
                assert len(found) in allowed
                assert found.untyped_storage().nbytes() == found.numel() * found.element_size()
        assert site.module.teacher is None
        assert not any(isinstance(part, fedkd.Teacher) for part in site.module.modules())


def test_a_site_pickles_and_its_client_trains_to_the_same_bits():
    _, trained, made = sites()
    site = made(0)
    again = pickle.loads(pickle.dumps(site))
    task = ClientTask(0, 0, Weights.of(trained.student))
    first, second = fedkd.train(site, task), fedkd.train(again, task)
    assert same(dict(first.delta), dict(second.delta))
    # the student itself, this client's images and the pool: nothing near the 60 images of all
    bare = len(pickle.dumps(site.module))
    rows = sum(
        value.nbytes
        for value in (site.rows.images, site.held_out.images, *(p.rows.images for p in site.pools.values()))
    )
    assert len(pickle.dumps(site)) < bare + rows + 20_000


def test_messages_keep_their_bits_as_bytes():
    _, trained, made = sites()
    start = Weights.of(trained.student)
    task = ClientTask(2, 1, start, {"c": torch.randn(3).half()}, {"own": torch.zeros(0)}, {"lr": 0.1, "names": ["a"]})
    update = fedkd.train(made(1), task)
    state = ServerState(3, start, {"m": torch.randn(2, 2, dtype=torch.float64)}, {1: {"v": torch.tensor(7)}}, 45)
    for message in (start, task, update, state):
        assert to_bytes(from_bytes(type(message), to_bytes(message))) == to_bytes(message)
    back = from_bytes(ClientUpdate, to_bytes(update))
    assert same(dict(back.delta), dict(update.delta))
    assert back.metrics == update.metrics
    with pytest.raises(fedkd.FedKDError, match="A ClientTask was expected, got a ClientUpdate"):
        from_bytes(ClientTask, to_bytes(update))
    for damaged in (b"", b"x" * 100, to_bytes(task)[:-1], b"\xff" * 8 + to_bytes(task)[8:]):
        with pytest.raises(fedkd.FedKDError, match="not a message"):
            from_bytes(ClientTask, damaged)


def test_a_message_can_name_no_class_but_a_local_rule():
    content = to_bytes(ClientTask(0, 0)).replace(b"fedkd.core.messages:LocalRule", b"fedkd.core.messages:Exchange.")
    with pytest.raises(fedkd.FedKDError):
        from_bytes(ClientTask, content)


class Stopped(BaseException):
    """As Ctrl-C: not an ordinary exception."""


class Stops(FedAvg):
    """Raises where it is told to, in a round."""

    def __init__(self, where: str, error: type[BaseException], round: int = 2) -> None:
        self.where, self.error, self.in_round = where, error, round

    def _reach(self, where, round):
        if where == self.where and round == self.in_round:
            raise self.error("stop")

    def aggregate(self, state, updates):
        self._reach("aggregate", state.round)
        return super().aggregate(state, updates)

    def refine(self, state, updates, context):
        self._reach("refine", state.round - 1)
        return super().refine(state, updates, context)

    def evaluate(self, state, context):
        found = super().evaluate(state, context)
        self._reach("evaluate", state.round - 1)
        return found

    def local_rule(self, state, client):
        if client == 1:
            self._reach("client", state.round)
        return super().local_rule(state, client)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
@pytest.mark.parametrize("where", ["client", "aggregate", "refine", "evaluate"])
def test_however_fit_ends_the_module_holds_the_last_committed_round(where, error, tmp_path):
    trained = module()
    federation = fedkd.Federation(
        rounds=4, strategy=Stops(where, error), trainer={"accelerator": "cpu"}, run_dir=tmp_path / "run"
    )
    with pytest.raises(error):
        federation.fit(trained, datamodule())
    found = (tmp_path / "run" / "checkpoints" / "round_000002.ckpt").read_bytes()
    assert same(weights(trained), from_bytes(ServerState, found).weights.tensors)
    assert trained._trainer is None  # no client's Trainer has touched it


def test_a_fit_that_ends_before_the_first_round_leaves_the_first_weights(tmp_path):
    trained = module()
    before = weights(trained)
    federation = fedkd.Federation(strategy=Stops("aggregate", KeyboardInterrupt, 0), run_dir=tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        federation.fit(trained, datamodule())
    assert same(weights(trained), before)


def test_a_module_is_whole_before_the_data_are_known():
    made = fedkd.DistillationModule("resnet8")
    assert isinstance(made.student, nn.Module)
    with pytest.raises(fedkd.FedKDError, match="'resnet8' is not built yet"):
        made(torch.rand(1, 3, 32, 32))
    assert list(made.parameters()) == []


def test_no_two_modules_share_a_loss():
    first, second = fedkd.DistillationModule("cnn"), fedkd.DistillationModule("resnet8")
    assert first.loss is not second.loss


def test_a_second_fit_gives_what_a_new_module_gives(tmp_path):
    def fit(trained, data, name):
        fedkd.Federation(rounds=1, trainer={"accelerator": "cpu"}, run_dir=tmp_path / name).fit(trained, data)
        return weights(trained)

    trained, data = fedkd.DistillationModule("cnn"), datamodule()
    first = fit(trained, data, "a")
    assert same(first, fit(trained, data, "b"))
    own = module()
    fit(own, data, "c")
    with pytest.raises(fedkd.FedKDError, match="A federation has trained this module's student already"):
        fit(own, data, "d")


def places(text: str) -> list[str]:
    """Return the files of the package that hold a text in their code, not in a comment or docstring."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == text:
                found.append(str(path.relative_to(PACKAGE)))
    return found


def calls_of(method: str) -> set[str]:
    """Return the files of the package that call a method of this name on anything."""
    return {
        str(path.relative_to(PACKAGE))
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == method
    }


def test_what_is_done_in_one_place_is_done_in_one_place():
    assert places("Trainer") == ["training/trainer.py"]
    # backends are opened in one place, and their workers are called in one place
    assert {f for f in places("self.workers.map")} == {"server/exchange.py"}
    assert set(places("self.backend.open")) == {"server/setup.py"}
    # but for the wrapper that takes the time of a check's small runs, which passes all on
    assert set(places("self.timed.open")) | set(places("self.timed.map")) == {"server/check/measure.py"}
    # bytes are counted in one place
    reads = {
        str(path.relative_to(PACKAGE))
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "num_bytes" and isinstance(node.ctx, ast.Load)
    }
    assert reads == {"server/exchange.py"}
    # accuracy and entropy are computed in one place
    defined = {
        node.name: str(path.relative_to(PACKAGE))
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        and node.name in ("accuracies", "confusion_matrix", "mean_entropy", "per_class_accuracy")
    }
    assert set(defined.values()) == {"core/metrics.py"}


def test_no_assertion_denies_that_a_student_is_missing():
    asserted = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert) and "student is not None" in ast.unparse(node.test)
    ]
    assert asserted == []


def exits(site, task):
    raise SystemExit(0)


def test_an_exit_within_a_clients_work_ends_no_run():
    data = datamodule()
    data.setup()
    with fedkd.InProcess().open(data.sites()) as workers:
        exchange = Exchange(workers)
        with pytest.raises(ClientError, match="Client 1, round 3: SystemExit: 0"):
            exchange(exits, [ClientTask(3, 1)])
