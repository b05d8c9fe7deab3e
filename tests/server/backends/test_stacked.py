"""Clients that are trained at once: each with the update that it has alone, up to the order of addition."""

from __future__ import annotations

import functools
import inspect

import pytest
import torch
from helpers import BrightRowTeacher, datamodule, module, sgd, weights
from torch import nn

import fedkd
from fedkd.client.works import train
from fedkd.core.messages import ClientTask, Weights
from fedkd.data import Augmentation, DeadLeaves, Digits, Subset
from fedkd.losses import KD, DistillationLoss, LabelLoss
from fedkd.partition import Dirichlet
from fedkd.strategies import MOON, SCAFFOLD, Compose, FedBN, FedDyn, FedGKD, FedNova, FedNTD, FedProx, Strategy

GROUP = {"norm": "group"}
TOLERANCE = 2e-5
"""Of weights, beside 1: float32 sums in another order. Two clients' updates differ by 100 times as much.

Rates are small here, for training magnifies differences: at 0.1 a start that is moved by 1e-7 ends 1e-3 to 1e-2 away.
"""


def assert_close(stacked, alone, tolerance=TOLERANCE):
    for name, value in alone.items():
        torch.testing.assert_close(
            stacked[name],
            value,
            rtol=tolerance,
            atol=tolerance,
            msg=f"{name}: {(stacked[name] - value).abs().max()} apart",
        )


def updates(backend, trained, data, trainer=None):
    """Return each client's update."""
    data.prepare_data()
    data.setup()
    trained.build(data.classes, data.image_shape)
    trainer = {"accelerator": "cpu", **(trainer or {})}
    logits = torch.randn(len(data.train), len(data.classes), generator=torch.Generator().manual_seed(5))
    sites = data.sites(modules=(trained.for_clients(),), trainer=trainer, seed=3, teacher_logits=logits)
    tasks = [ClientTask(1, client, Weights.of(trained.student)) for client in range(data.num_clients)]
    with backend.open(sites) as workers:
        return {update.client: update for update in fedkd.Exchange(workers)(train, tasks)}


UNEVEN = Dirichlet(0.3)


@pytest.mark.parametrize("clients", [1, 3])
def test_each_client_has_its_own_update(clients):
    def run(backend):
        return updates(
            backend,
            module("resnet8", student_options=GROUP, optimizer=sgd(0.01)),
            datamodule(5, partitioner=UNEVEN, count=150, augmentation=Augmentation(1)),
            trainer={"max_epochs": 3},
        )

    alone, stacked = run(fedkd.InProcess()), run(fedkd.Stacked(clients))
    assert len({update.num_steps for update in alone.values()}) > 2  # members leave the stack at several steps
    assert stacked.keys() == alone.keys()
    for client, update in alone.items():
        found = stacked[client]
        assert (found.num_steps, found.num_examples) == (update.num_steps, update.num_examples)
        assert_close(found.delta, update.delta)
        assert found.metrics.keys() == update.metrics.keys()
        for name in update.metrics.keys() - {"seconds"}:
            assert found.metrics[name] == pytest.approx(update.metrics[name], abs=1e-4), name
    apart = (alone[0].delta["head.weight"] - alone[1].delta["head.weight"]).abs().max()
    assert apart > 100 * TOLERANCE


OPTIMIZERS = [
    functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=True),
    functools.partial(torch.optim.AdamW, lr=0.001),
    functools.partial(torch.optim.Adam, lr=0.001, amsgrad=True, weight_decay=0.01),
    functools.partial(torch.optim.RMSprop, lr=0.0005, momentum=0.5, eps=1e-3),
    functools.partial(torch.optim.Adagrad, lr=0.01, eps=1e-3),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda each: each.func.__name__)
@pytest.mark.parametrize("clip", [{}, {"gradient_clip_val": 0.3}], ids=["", "clip"])
def test_every_optimizer_that_goes_entry_by_entry(optimizer, clip):
    def run(backend):
        trained = module("cnn", optimizer=optimizer, student_options=GROUP)
        return updates(backend, trained, datamodule(4, partitioner=UNEVEN), trainer={"max_epochs": 2, **clip})

    alone, stacked = run(fedkd.InProcess()), run(fedkd.Stacked(4))
    for client, update in alone.items():
        # Adam divides by the root of a second moment, which magnifies what is almost 0; so do others without an eps
        assert_close(stacked[client].delta, update.delta, 5e-4)


class Scaled(nn.Module):
    """Has a parameter that is a single number."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.head = nn.Linear(64, 3)

    def forward(self, images):
        return self.scale * self.head(images.flatten(1))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adagrad, torch.optim.Adam])
def test_a_parameter_that_is_a_single_number(kind):
    def run(backend):
        torch.manual_seed(0)
        trained = module(Scaled(), optimizer=functools.partial(kind, lr=0.01))
        return updates(backend, trained, datamodule(4, partitioner=UNEVEN), trainer={"gradient_clip_val": 0.1})

    alone, stacked = run(fedkd.InProcess()), run(fedkd.Stacked(4))
    for client, update in alone.items():
        assert_close(stacked[client].delta, update.delta)


def test_clipping_by_value():
    def run(backend):
        trainer = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}
        return updates(backend, module(), datamodule(3), trainer=trainer)

    alone, stacked = run(fedkd.InProcess()), run(fedkd.Stacked(3))
    for client, update in alone.items():
        assert_close(stacked[client].delta, update.delta)


def smooth_student() -> nn.Module:
    """Return a small network without kinks, whose training magnifies little."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Tanh(), nn.Conv2d(8, 8, 3, 2, 1), nn.GELU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 3))


STRATEGIES = [
    FedProx(0.5),
    SCAFFOLD("I"),
    SCAFFOLD("II"),
    FedDyn(1.0),
    FedNTD(),
    FedGKD(),
    FedBN(),
    FedNova(),
    Compose([SCAFFOLD(), FedProx(0.1), FedNTD()]),
]


def federate(backend, run_dir, strategy, data, trained, rounds=3, **trainer):
    federation = fedkd.Federation(
        rounds,
        clients_per_round=3,
        strategy=strategy,
        backend=backend,
        trainer={"accelerator": "cpu", **trainer},
        run_dir=run_dir,
    )
    return federation.fit(trained, data)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_every_strategy_whose_steps_go_entry_by_entry(strategy, tmp_path):
    found = []
    for backend in (fedkd.InProcess(), fedkd.Stacked(2)):
        trained = module(smooth_student(), teacher=BrightRowTeacher(), optimizer=sgd(0.01))
        data = datamodule(4, partitioner=UNEVEN)
        federate(backend, tmp_path / type(backend).__name__, strategy, data, trained, max_epochs=2)
        found.append(weights(trained))
    assert_close(found[1], found[0], 3e-4)  # after three rounds


def test_bfloat16_stays_within_its_rounding(tmp_path):
    found = []
    for backend in (fedkd.InProcess(), fedkd.Stacked(3)):
        trained = module("resnet8", teacher=BrightRowTeacher(), student_options=GROUP, optimizer=sgd(0.01))
        name = type(backend).__name__
        federate(backend, tmp_path / name, Strategy(), datamodule(), trained, rounds=1, precision="bf16-mixed")
        found.append(weights(trained))
    assert_close(found[1], found[0], 2e-3)


LOSSES = [getattr(fedkd.losses, name) for name in fedkd.losses.__all__]
LOSSES = [
    each
    for each in LOSSES
    if inspect.isclass(each)
    and issubclass(each, DistillationLoss | LabelLoss)
    and not inspect.isabstract(each)
    and each not in (DistillationLoss, LabelLoss)
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda each: each.__name__)
def test_every_loss(loss, tmp_path):
    found = []
    for backend in (fedkd.InProcess(), fedkd.Stacked(3)):
        distills = getattr(loss, "distill", DistillationLoss.distill) is not DistillationLoss.distill
        shared = DeadLeaves(20) if distills else None
        data = fedkd.FederatedDataModule(
            Subset(Digits(), 0.1), num_clients=3, partitioner=Dirichlet(1.0), batch_size=16, shared=shared
        )
        given = {"loss": loss()} if issubclass(loss, DistillationLoss) else {"label_loss": loss(), "loss": KD()}
        trained = fedkd.DistillationModule("resnet8", "digits-tiny", student_options=GROUP, **given)
        federate(backend, tmp_path / type(backend).__name__, Strategy(), data, trained, rounds=1)
        found.append(weights(trained))
    assert_close(found[1], found[0])


class PartlyUsed(nn.Module):
    """Has a parameter that no logit depends on, a frozen one, and a buffer."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.full((64,), 0.5), requires_grad=False)
        self.register_buffer("shift", torch.tensor(0.1))
        self.head = nn.Linear(64, 3)

    def forward(self, images):
        return self.head(images.flatten(1) * self.scale + self.shift)


@pytest.mark.parametrize("strategy", [Strategy(), SCAFFOLD(), FedDyn(0.1)], ids=repr)
def test_parameters_without_a_gradient_stay(strategy, tmp_path):
    """Weight decay would move a parameter whose gradient is 0, and leaves one without a gradient."""
    found = []
    for backend in (fedkd.InProcess(), fedkd.Stacked(2)):
        torch.manual_seed(0)
        optimizer = functools.partial(torch.optim.SGD, lr=0.1, weight_decay=0.1, momentum=0.5)
        trained = fedkd.DistillationModule(PartlyUsed(), optimizer=optimizer)
        federate(backend, tmp_path / type(backend).__name__, strategy, datamodule(4), trained)
        found.append(weights(trained))
    assert_close(found[1], found[0])


class LearnsFromState(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, images):
        return self.head(images.flatten(1)) * (1.0 if images.mean().item() > 0 else 2.0)


@pytest.mark.parametrize(
    ("given", "trainer", "message"),
    [
        ({"student": "resnet8"}, {}, r"student's .*norm.* is a BatchNorm2d, which keeps running statistics"),
        ({"student": nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 3))}, {}, r"student's 1 is a Dropout"),
        ({"optimizer": functools.partial(torch.optim.Adafactor, lr=0.1)}, {}, "optimizer Adafactor may mix"),
        ({}, {"precision": "16-mixed"}, "precision is 16-mixed"),
        ({}, {"accumulate_grad_batches": 2}, "accumulate_grad_batches is set"),
        ({}, {"limit_train_batches": 2}, "trainer.limit_train_batches is set"),
    ],
)
def test_what_cannot_be_stacked_is_refused_by_name_before_any_work(given, trainer, message, tmp_path):
    class Untouched(fedkd.Teacher):
        def features(self, images):
            raise AssertionError("work was done")

    trained = module(**given)
    with pytest.raises(fedkd.FedKDError, match=f"Stacked cannot train several clients at once, since .*{message}"):
        federate(fedkd.Stacked(2), tmp_path / "run", Strategy(), datamodule(4), trained, **trainer)
    assert not (tmp_path / "run").exists()


def test_callbacks_and_control_flow_are_refused_by_name(tmp_path):
    trained = module("resnet8", student_options=GROUP)
    with pytest.raises(fedkd.FedKDError, match="with the callback ModelContrast: it does not declare runs_stacked"):
        federate(fedkd.Stacked(2), tmp_path / "moon", MOON(), datamodule(4), trained)
    with pytest.raises(fedkd.FedKDError, match="LearnsFromState with the loss DKD cannot be trained for several"):
        federate(fedkd.Stacked(2), tmp_path / "flow", Strategy(), datamodule(4), module(LearnsFromState()))
    strategy = Compose([FedBN(), FedNTD()])  # its clients compare themselves with students that differ
    trained = fedkd.DistillationModule("resnet8", student_options=GROUP)
    with pytest.raises(fedkd.FedKDError, match="NotTrueOfGlobal if they start from different weights"):
        federate(fedkd.Stacked(3), tmp_path / "bn", strategy, datamodule(3), trained)


def test_an_exchange_by_hand_refuses_too():
    with pytest.raises(fedkd.ClientError, match=r"Clients 0, 1, round 1: Several clients cannot .* BatchNorm2d"):
        updates(fedkd.Stacked(2), module("resnet8"), datamodule(2))


def test_the_module_is_whole_after_an_error_in_the_middle(tmp_path):
    trained = module("resnet8", student_options=GROUP)
    data = datamodule(3)
    data.setup()
    trained.build(data.classes, data.image_shape)
    scratch = trained.for_clients()
    shapes = {name: value.shape for name, value in scratch.student.state_dict().items()}
    sites = data.sites(modules=(scratch,), trainer={"accelerator": "cpu"}, seed=0)
    tasks = [ClientTask(0, client, Weights.of(trained.student)) for client in range(3)]
    found = fedkd.Stacked(3).open(sites).map(train, tasks)
    next(found)
    found.close()
    assert {name: value.shape for name, value in scratch.student.state_dict().items()} == shapes


def test_k_is_at_least_one():
    with pytest.raises(fedkd.FedKDError, match=r"clients must be .*1.*got 0"):
        fedkd.Stacked(0)
