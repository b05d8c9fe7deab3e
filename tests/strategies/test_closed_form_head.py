"""The student's head in closed form: central whatever the partition, and no change to how the student is trained."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from helpers import BrightRowTeacher, datamodule, images, module, same, weights
from torch import nn

import fedkd
from fedkd.client import works
from fedkd.data import Augmentation, Rows
from fedkd.losses import RKD, CenteredKD, FeatureCosine, FrozenHead
from fedkd.partition import IID, ClassSpecific, Dirichlet
from fedkd.strategies import (
    SCAFFOLD,
    ClosedFormHead,
    Compose,
    DPFedAvg,
    FedAvg,
    FedBN,
    FedDF,
    ReestimatedBatchNorm,
    ServerDistillation,
)
from fedkd.students import ClosedFormStudent, stages
from fedkd.students.closed_form import pool
from fedkd.teachers import FederatedHead, FittedHead, GaussianPrivacy, LinearHead, RidgeHead
from fedkd.training.unlabeled import predict_features

FIXED = RidgeHead(regularization=0.01)
STILL = functools.partial(torch.optim.SGD, lr=0.0)
BUFFERS = ("solved_weight", "solved_bias", "solved_limit")


def federate(run_dir, strategy, data=None, rounds=1, trained=None, **arguments):
    trained = trained or module("resnet8", student_options={"norm": "group"}, optimizer=STILL)
    federation = fedkd.Federation(
        rounds, strategy=strategy, run_dir=run_dir, trainer={"accelerator": "cpu"}, **arguments
    )
    summary = federation.fit(trained, data or datamodule(3))
    return trained, summary


def head_of(trained):
    return {name: value for name, value in trained.student.state_dict().items() if name in BUFFERS}


def central(student, data, regularization=0.01, balanced=False):
    """Solve the penalized normal equations on the features of all images, or of as many of each class."""
    everybody = np.concatenate(data.shards)
    rows = Rows.of(data.train, everybody)
    x = predict_features(student, rows, {"accelerator": "cpu"}).double().numpy()
    y = np.eye(3)[rows.targets.numpy()]
    if balanced:  # each class as often as all together, so that all have as many rows
        counts = y.sum(0).astype(int)
        times = [np.lcm.reduce(counts) // counts[c] for c in rows.targets.numpy()]
        x, y = np.repeat(x, times, axis=0), np.repeat(y, times, axis=0)
    away, mean = x - x.mean(0), x.mean(0)
    penalty = regularization * x.var(axis=0).sum() * len(x) / x.shape[1]
    weight = np.linalg.solve(away.T @ away + penalty * np.eye(x.shape[1]), away.T @ (y - y.mean(0)))
    return weight.T, y.mean(0) - mean @ weight


@pytest.mark.parametrize("inputs", ["last", "stages"])
@pytest.mark.parametrize(
    ("partitioner", "clients"), [(IID(), 1), (IID(), 4), (ClassSpecific(1), 3), (Dirichlet(0.05), 12)], ids=str
)
def test_the_head_is_the_central_one_for_every_partition(tmp_path, inputs, partitioner, clients):
    data = datamodule(clients, partitioner=partitioner, count=150)
    trained, _ = federate(tmp_path, ClosedFormHead(inputs, head=FIXED), data)
    weight, bias = central(trained.student, data)
    found = head_of(trained)
    scale = found["solved_weight"].double().norm() / np.linalg.norm(weight)
    np.testing.assert_allclose(found["solved_weight"].double() / scale, weight, rtol=1e-4, atol=1e-4 * weight.std())
    np.testing.assert_allclose(found["solved_bias"].double() / scale, bias, rtol=1e-3, atol=1e-3)
    assert scale > 1  # a regression's outputs are too flat


def test_classes_of_unlike_sizes_may_count_alike(tmp_path):
    data = datamodule(3, partitioner=ClassSpecific(1), count=150)
    data.setup()
    data.shards = [shard[: 40 // 2**i] for i, shard in enumerate(data.shards)]  # 40, 20 and 10 images
    head = RidgeHead(0.01, standardize=False, class_balanced=True)
    trained, _ = federate(tmp_path, ClosedFormHead("last", head=head), data)
    assert [len(shard) for shard in data.shards] == [40, 20, 10]
    weight, _ = central(trained.student, data, balanced=True)
    found = head_of(trained)["solved_weight"].double()
    np.testing.assert_allclose(found / found.norm(), weight / np.linalg.norm(weight), rtol=1e-3, atol=1e-5)
    plain, _ = central(trained.student, data)
    assert np.abs(found / found.norm() - plain / np.linalg.norm(plain)).max() > 0.01


def test_what_the_fit_chose_is_in_the_metrics(tmp_path):
    federate(tmp_path, ClosedFormHead("last", every=2), rounds=2)
    rows = [row.split(",") for row in (tmp_path / "metrics.csv").read_text().splitlines()]
    chosen = [[row[rows[0].index(f"head_{name}")] for row in rows[1:]] for name in ("regularization", "scale")]
    assert [first for first, _ in chosen] == ["", ""]
    assert all(float(second) > 0 for _, second in chosen)


def test_it_stands_last_in_a_composition():
    for behind in (ServerDistillation(), ReestimatedBatchNorm(), ClosedFormHead(), Compose([FedDF()])):
        with pytest.raises(fedkd.FedKDError, match=f"cannot stand before {type(behind).__name__} in a Compose"):
            Compose([ClosedFormHead(), behind])
        if not isinstance(behind, ClosedFormHead):
            Compose([behind, SCAFFOLD(), ClosedFormHead()])


def test_batches_of_one_image_are_refused(tmp_path):
    trained = module("cnn", teacher=BrightRowTeacher(), loss="auto")
    rkd = module("cnn", teacher=BrightRowTeacher(), loss=RKD())
    with pytest.raises(fedkd.FedKDError, match=r"data\.batch_size is 2, but RKD compares .*: it must be >= 3"):
        federate(tmp_path, FedAvg(), datamodule(3, batch_size=2), trained=rkd)
    with pytest.raises(
        fedkd.FedKDError, match=r"data\.batch_size is 1, but CenteredDKD compares the images of a batch"
    ):
        federate(tmp_path, ClosedFormHead(), datamodule(3, batch_size=1), trained=trained)
    assert not tmp_path.joinpath("metrics.csv").exists()


def test_training_is_that_without_the_head_bit_for_bit(tmp_path):
    def run(name, strategy):
        trained = module("resnet8", teacher=BrightRowTeacher(), loss=CenteredKD(), student_options={"norm": "group"})
        return federate(tmp_path / name, strategy, datamodule(3, ClassSpecific(1)), 3, trained)[0]

    plain = weights(run("plain", FedAvg()))
    solved = run("solved", ClosedFormHead())
    assert same(plain, {k.removeprefix("student."): v for k, v in weights(solved).items() if k not in BUFFERS})
    corrected = run("corrected", Compose([SCAFFOLD(), ClosedFormHead("last")]))
    alone = weights(run("alone", SCAFFOLD()))
    assert same(alone, {k.removeprefix("student."): v for k, v in weights(corrected).items() if k not in BUFFERS})


def test_it_separates_classes_that_no_client_could_tell_apart(tmp_path):
    trained = module("resnet8", teacher=BrightRowTeacher(), loss=CenteredKD(), student_options={"norm": "group"})
    data = datamodule(3, ClassSpecific(1), count=120)
    _, summary = federate(tmp_path, ClosedFormHead(), data, 2, trained)
    assert summary["balanced_accuracy"] > 0.95
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    own = float(rows[-1].split(",")[rows[0].split(",").index("own_layer_balanced_accuracy")])
    assert own < 0.6


@pytest.mark.parametrize(("inputs", "dim"), [("last", 64), ("stages", 16 * 17 + 32 * 5 + 64 * 2)])
def test_bytes_are_counted(tmp_path, inputs, dim):
    _, without = federate(tmp_path / "a", FedAvg())
    _, summary = federate(tmp_path / "b", ClosedFormHead(inputs, head=FIXED))
    buffers = 3 * 4 * (3 * dim + 3 + 1)
    sums = 3 * 8 * ((dim + 1) * (dim + 2) // 2 + (dim + 1) * 3)
    scales = 8 * 33
    assert summary["bytes_up"] == without["bytes_up"] + buffers + sums + 3 * scales
    student = without["bytes_down"] + buffers
    solution = 8 * (3 * dim + 3 + dim + dim * (dim + 1) // 2 + 1)
    assert summary["bytes_down"] == 3 * student + 3 * (solution + scales)


def test_the_finished_student_is_the_evaluated_one_and_goes_on(tmp_path):
    def trained():
        return module("resnet8", teacher=BrightRowTeacher(), student_options={"norm": "group"})

    strategy = Compose([FedBN(), ClosedFormHead()])
    whole, _ = federate(tmp_path / "whole", strategy, rounds=4, trained=trained())
    federate(tmp_path / "parts", strategy, rounds=2, trained=trained())
    parts, _ = federate_on(tmp_path / "parts", strategy, 4, trained())
    assert same(weights(whole), weights(parts))
    shown = torch.rand(5, 1, 8, 8)
    loaded = fedkd.load_student(tmp_path / "whole")
    assert isinstance(loaded, ClosedFormStudent)
    with torch.no_grad():
        logits = loaded(shown)
        assert torch.equal(logits, whole.student.eval()(shown))
        assert torch.equal(logits, loaded.classify(loaded.features(shown)))
        assert not torch.equal(logits, loaded.student(shown))
        exported = torch.export.export(loaded, (shown,)).module()
        torch.testing.assert_close(exported(shown), logits)


def federate_on(run_dir, strategy, rounds, trained):
    federation = fedkd.Federation(rounds, strategy=strategy, run_dir=run_dir, trainer={"accelerator": "cpu"})
    return trained, federation.fit(trained, datamodule(3), "last")


@pytest.mark.parametrize(("every", "solved"), [(1, [1, 1, 1, 1, 1]), (2, [0, 1, 0, 1, 1]), (None, [0, 0, 0, 0, 1])])
def test_when_the_head_is_solved(tmp_path, every, solved):
    federate(tmp_path, ClosedFormHead("last", every=every, head=FIXED), rounds=5)
    header, *rows = (line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines())
    column = header.index("own_layer_balanced_accuracy")
    assert [int(bool(row[column])) for row in rows] == solved


def test_a_sampled_cohort_gives_its_own_head_and_all_clients_the_last(tmp_path):
    data = datamodule(6)
    trained, summary = federate(tmp_path, ClosedFormHead("last", head=FIXED), data, 2, clients_per_round=2)
    weight, _ = central(trained.student, data)
    found = head_of(trained)["solved_weight"].double()
    np.testing.assert_allclose(found / found.norm(), weight / np.linalg.norm(weight), atol=1e-4)
    per_client = 8 * (65 * 66 // 2 + 65 * 3) + 8 * 33  # sums, then losses: of two clients, then of all six
    assert summary["bytes_up"] > 8 * per_client


@pytest.mark.parametrize("backend", [fedkd.Stacked(3), fedkd.InProcess()], ids=lambda each: type(each).__name__)
def test_it_composes(tmp_path, backend):
    data = datamodule(3)
    data.public_fraction = 0.3
    trained = module("resnet8", teacher=BrightRowTeacher(), student_options={"norm": "group"})
    strategy = Compose([SCAFFOLD(), ServerDistillation(epochs=1), ClosedFormHead()])
    _, summary = federate(tmp_path, strategy, data, 2, trained, backend=backend)
    assert summary["balanced_accuracy"] > 0.8


def test_with_a_loss_on_features(tmp_path):
    trained = module("resnet8", teacher=BrightRowTeacher(), loss=FeatureCosine(), student_options={"norm": "group"})
    federate(tmp_path, ClosedFormHead(), datamodule(3), 2, trained)
    shown = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(fedkd.load_student(tmp_path)(shown), trained.student.eval()(shown))


def test_with_views_the_head_sees_the_images_themselves(tmp_path):
    def run(name, **arguments):
        data = datamodule(3, augmentation=Augmentation(1, True))
        data.views = 3
        trained = module("resnet8", teacher=BrightRowTeacher(), student_options={"norm": "group"}, optimizer=STILL)
        federate(tmp_path / name, ClosedFormHead(head=FIXED), data, 1, trained, **arguments)
        return head_of(trained)

    assert same(run("consistent", teaching="consistent"), run("fixed"))


def test_a_private_head_is_sent_once_and_by_empty_clients_too(tmp_path, monkeypatch):
    private = RidgeHead(privacy=GaussianPrivacy(epsilon=50.0))
    with pytest.raises(fedkd.FedKDError, match="every: 1 would send private sums of the same images"):
        ClosedFormHead(head=private)
    data = datamodule(12, Dirichlet(0.05), count=150)
    told, work = [], works.on_student_features

    def noting(site, task):
        told.append(site.client)
        return work(site, task)

    monkeypatch.setattr("fedkd.strategies.refinement.closed_form_head.on_student_features", noting)
    trained, _ = federate(tmp_path, ClosedFormHead("last", every=None, head=private), data, 2)
    assert any(len(shard) == 0 for shard in data.shards)
    assert told == [*range(12), *range(12)]  # one exchange of sums, one of losses
    assert head_of(trained)["solved_limit"] == 1.0
    shown = torch.rand(4, 1, 8, 8)
    features = trained.student.eval().features(shown)
    unit = features / features.norm(dim=1, keepdim=True).clamp(min=1)
    found = unit @ head_of(trained)["solved_weight"].T + head_of(trained)["solved_bias"]
    torch.testing.assert_close(trained.student(shown), found)


@dataclass(frozen=True)
class Bent(FederatedHead):
    """A head that is no linear map."""

    def fit(self, clients):
        return FittedHead(nn.ReLU())


def test_another_head_serves_as_well(tmp_path):
    trained = module("resnet8", teacher=BrightRowTeacher(), loss=CenteredKD(), student_options={"norm": "group"})
    data = datamodule(3, ClassSpecific(1), count=120)
    _, summary = federate(tmp_path, ClosedFormHead(head=LinearHead(rounds=8)), data, 2, trained)
    assert summary["balanced_accuracy"] > 0.6


class Noting(fedkd.DistillationModule):
    """Notes the last layer that each fit starts from."""

    runs_lean = True
    starts: ClassVar[list] = []

    def on_train_epoch_start(self):
        super().on_train_epoch_start()
        self.starts.append(self.student.student.head.weight.detach().clone())


@pytest.mark.parametrize("on_clients", ["trained", "frozen"])
def test_clients_may_start_from_the_head(tmp_path, on_clients):
    Noting.starts.clear()
    noisy = [(image, (label + number % 2) % 3) for number, (image, label) in enumerate(images(60))]
    data = fedkd.FederatedDataModule.from_datasets(noisy, images(30), num_clients=1, batch_size=10)
    student = fedkd.students.create("resnet8", num_classes=3, in_channels=1, image_size=8, norm="group")
    trained = Noting(student, optimizer=functools.partial(torch.optim.SGD, lr=0.1))
    federate(tmp_path, ClosedFormHead("last", on_clients=on_clients, head=FIXED), data, 2, trained)
    state = trained.student.state_dict()
    assert torch.equal(state["student.head.weight"], state["solved_weight"])
    assert torch.equal(state["student.head.bias"], state["solved_bias"])
    first, second = Noting.starts
    assert not torch.equal(first, second)
    assert trained.student.student.head.weight.requires_grad == (on_clients == "trained")
    weight, _ = central(trained.student, data)
    found = state["solved_weight"].double()
    np.testing.assert_allclose(found / found.norm(), weight / np.linalg.norm(weight), atol=1e-4)


def test_what_cannot_be_is_one_line(tmp_path):
    with pytest.raises(fedkd.FedKDError, match=r"inputs .*'stage'.*stages"):
        ClosedFormHead("stage")
    with pytest.raises(fedkd.FedKDError, match="every"):
        ClosedFormHead(every=0)
    with pytest.raises(fedkd.FedKDError, match="on_clients: frozen needs inputs: last and every: 1, got stages and 1"):
        ClosedFormHead(on_clients="frozen")
    with pytest.raises(fedkd.FedKDError, match="linear in the features"):
        federate(tmp_path / "a", ClosedFormHead(head=Bent()))
    flat = module(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    with pytest.raises(fedkd.FedKDError, match=r"no feature maps .* inputs: last"):
        federate(tmp_path / "b", ClosedFormHead(), trained=flat)
    pytest.importorskip("dp_accounting")
    group = module("resnet8", student_options={"norm": "group"})
    with pytest.raises(fedkd.FedKDError, match="DPFedAvg cannot be composed with ClosedFormHead"):
        federate(tmp_path / "d", Compose([DPFedAvg(), ClosedFormHead()]), trained=group)
    frozen = module("resnet8", teacher=BrightRowTeacher(), loss=FrozenHead(), student_options={"norm": "group"})
    with pytest.raises(fedkd.FedKDError, match="ClosedFormHead and FrozenHead each give the student a head"):
        federate(tmp_path / "c", ClosedFormHead(), trained=frozen)


def test_a_client_that_would_send_much_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr("fedkd.strategies.refinement.closed_form_head.MANY_FEATURES", 63)
    plain = module(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    # 65 * 66 / 2 + 65 * 3
    with pytest.warns(UserWarning, match=r"64 numbers an image here, so each client sends sums of 2,340 numbers"):
        federate(tmp_path, ClosedFormHead(inputs="last"), trained=plain)


@pytest.mark.parametrize(
    ("name", "size", "found"),
    [
        ("resnet8", 32, [("stage1", 16, 32, 32), ("stage2", 32, 16, 16), ("stage3", 64, 8, 8)]),
        ("resnet18", 64, [("layer1", 64, 16, 16), ("layer2", 128, 8, 8), ("layer3", 256, 4, 4), ("layer4", 512, 2, 2)]),
    ],
)
def test_stages_are_the_last_map_of_each_size(name, size, found):
    student = fedkd.students.create(name, num_classes=5, in_channels=3, image_size=size)
    names = [(each.name.rpartition(".")[2], *each[2:]) for each in stages(student, (3, size, size))]
    assert names[-len(found) :] == found


def test_pooling_by_hand():
    image = torch.tensor([[4.0, 0.0], [0.0, -4.0]])
    maps = torch.stack([image, torch.ones(2, 2)])[None]  # (1, 2, 2, 2)
    deviation = 8**0.25  # the root of sqrt((16 + 16) / 4)
    torch.testing.assert_close(pool(maps, 1), torch.tensor([[0.0, 1.0, deviation, 0.0316]]), rtol=0, atol=1e-3)
    corners = [2.0, 0.0, 0.0, -2.0, 1.0, 1.0, 1.0, 1.0]
    torch.testing.assert_close(pool(maps, 2)[0, :8], torch.tensor(corners), rtol=0, atol=1e-3)
    flat = torch.zeros(1, 3, 4, 4, requires_grad=True)
    pool(flat, 2).sum().backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


@pytest.mark.parametrize(
    ("size", "grid", "cells"), [(32, 4, (4, 2, 1)), (32, 1, (1, 1, 1)), (32, 8, (8, 4, 2)), (8, 16, (8, 4, 2))]
)
def test_each_stage_has_half_as_many_cells_along_an_edge(size, grid, cells):
    student = fedkd.students.create("resnet8", num_classes=5, in_channels=3, image_size=size)
    wrapped = ClosedFormStudent.on_stages(student, 5, (3, size, size), grid)
    assert tuple(wrapped.grids) == cells
    dim = sum(channels * (each**2 + 1) for channels, each in zip((16, 32, 64), cells, strict=True))
    assert wrapped.features(torch.rand(2, 3, size, size)).shape == (2, dim) == (2, wrapped.num_features)


class ReusesItsLayers(nn.Module):
    """A network that calls one ReLU and one pooling for every stage, as many tutorials write it."""

    def __init__(self, size=32, channels=3, classes=10):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(channels, 6, 3, padding=1), nn.Conv2d(6, 16, 3, padding=1)
        self.pool, self.relu = nn.MaxPool2d(2, 2), nn.ReLU()
        self.fc = nn.Linear(size**2, classes)

    def maps(self, images):
        first = self.relu(self.conv1(images))
        second = self.relu(self.conv2(self.pool(first)))
        return first, second

    def forward(self, images):
        return self.fc(self.pool(self.maps(images)[1]).flatten(1))


def test_a_module_that_is_called_many_times_gives_each_of_its_outputs():
    student = ReusesItsLayers()
    found = [(each.name, each.call, each.channels, each.height) for each in stages(student, (3, 32, 32))]
    assert found == [("relu", 0, 6, 32), ("relu", 1, 16, 16), ("pool", 1, 16, 8)]
    wrapped = ClosedFormStudent.on_stages(student, 10, (3, 32, 32))
    shown = torch.rand(2, 3, 32, 32)
    first, second = student.maps(shown)
    expected = torch.cat([pool(first, 4), pool(second, 2), pool(student.pool(second), 1)], dim=1)
    assert torch.equal(wrapped.features(shown), expected)
    assert wrapped.num_features == expected.shape[1] == 6 * 17 + 16 * 5 + 16 * 2


@pytest.mark.parametrize("inputs", ["last", "stages"])
def test_a_run_with_a_student_that_reuses_its_layers(tmp_path, inputs):
    trained, _ = federate(tmp_path, ClosedFormHead(inputs), trained=module(ReusesItsLayers(8, 1, 3)))
    shown = torch.rand(2, 1, 8, 8)
    assert torch.equal(fedkd.load_student(tmp_path, ReusesItsLayers(8, 1, 3))(shown), trained.student.eval()(shown))


LAST, TRAINED = {"inputs": "last"}, {"inputs": "last", "on_clients": "trained"}
COMPILED = [({}, True, True), ({}, False, False), (LAST, True, True), (LAST, False, True), (TRAINED, True, True)]


@pytest.mark.parametrize(
    ("arguments", "in_place", "whole"),
    [
        ({}, False, True),
        (TRAINED, False, False),
        ({}, True, False),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in COMPILED),
    ],
)
def test_a_compiled_student_has_the_head_of_the_plain_one(tmp_path, arguments, in_place, whole):
    def made(net):
        if not in_place:
            return torch.compile(net, backend="eager")
        net.compile(backend="eager")
        return net

    def plain():
        torch.manual_seed(0)
        return fedkd.students.create("cnn", num_classes=3, in_channels=1, image_size=8, norm="group")

    def compiled():
        net = plain()
        if whole:
            return made(net)
        net.conv1 = made(net.conv1)
        return net

    heads = []
    for name, student in (("plain", plain()), ("compiled", compiled())):
        trained, _ = federate(tmp_path / name, ClosedFormHead(**arguments), trained=module(student, optimizer=STILL))
        heads.append(head_of(trained))
        shown = torch.rand(2, 1, 8, 8)
        for given in (plain(), compiled()):
            assert torch.equal(fedkd.load_student(tmp_path / name, given)(shown), trained.student.eval()(shown))
    assert same(*heads)


@pytest.mark.parametrize("inputs", ["last", "stages"])
def test_a_compiled_last_layer_is_found_and_a_student_may_be_compiled_later(inputs):
    def plain():
        torch.manual_seed(0)
        return fedkd.students.create("cnn", num_classes=3, in_channels=1, image_size=8, norm="group").eval()

    def wrap(student):
        return ClosedFormHead(inputs).wrap(student, 3, (1, 8, 8))

    shown = torch.rand(2, 1, 8, 8)
    expected = wrap(plain()).features(shown)
    compiled = plain()
    compiled.head = torch.compile(compiled.head, backend="eager")
    assert torch.equal(wrap(compiled).features(shown), expected)
    later = wrap(plain())
    later.student.compile(backend="eager")
    assert torch.equal(later.features(shown), expected)
    whole = wrap(compiled)
    whole.load_state_dict({**whole.state_dict(), "solved_weight": torch.randn_like(whole.solved_weight)})
    assert torch.equal(torch.compile(whole, backend="eager")(shown), whole(shown))


class ChannelsLast(nn.Module):
    """Convolutions with a part between them that sees (B, H, W, C), as in Swin and ConvNeXt."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 12, 4, 4), nn.LayerNorm(12), nn.Conv2d(12, 20, 2, 2)
        self.head = nn.Linear(20, 5)

    def forward(self, images):
        seen = self.norm(self.first(images).permute(0, 2, 3, 1))
        return self.head(self.second(seen.permute(0, 3, 1, 2)).mean((2, 3)))


@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
def test_maps_with_channels_last_are_no_stages(size):
    found = stages(ChannelsLast(), (3, *size))
    assert [(each.name, each.channels) for each in found] == [("first", 12), ("second", 20)]


class Attends(nn.Module):
    """Convolutions with attention on the map between them, whose matrix is square, and mixed over the heads."""

    def __init__(self):
        super().__init__()
        self.first, self.qk, self.second = nn.Conv2d(3, 12, 8, 8), nn.Conv2d(12, 24, 1), nn.Conv2d(12, 20, 2, 2)
        self.softmax, self.drop, self.mix = nn.Softmax(-1), nn.Dropout(0.1), nn.Conv2d(2, 2, 1)
        self.head = nn.Linear(20, 5)

    def forward(self, images):
        seen = self.first(images)
        query, key = self.qk(seen).reshape(len(images), 2, 12, -1).chunk(2, dim=2)  # (B, heads, 6, N) each
        matrix = self.drop(self.mix(self.softmax(query.transpose(2, 3) @ key)))  # (B, heads, N, N)
        seen = seen + (matrix @ key.transpose(2, 3)).transpose(2, 3).reshape(seen.shape)
        return self.head(self.second(seen).mean((2, 3)))


@pytest.mark.parametrize("size", [(16, 16), (32, 32), (64, 64)])  # matrices of 4, 16 and 64 positions
def test_attention_matrices_are_no_stages(size):
    found = [(each.name, each.channels, each.height) for each in stages(Attends(), (3, *size))]
    assert found[-1][:2] == ("second", 20) or size == (16, 16)  # a second map of one pixel does not count
    assert ("qk", 24, size[0] // 8) in found
    assert not {"softmax", "drop", "mix"} & {name for name, *_ in found}


def test_attention_on_a_transformers_map_is_no_stage():
    timm = pytest.importorskip("timm")
    student = timm.create_model("visformer_tiny", img_size=64, num_classes=4).eval()
    assert [each.name for each in stages(student, (3, 64, 64))] == ["stem", "stage1", "stage2", "norm"]


@pytest.mark.parametrize(
    ("size", "found"),
    [
        ((16, 64), [(8, 32), (4, 16), (2, 8), (1, 4), (1, 2)]),
        ((64, 16), [(32, 8), (16, 4), (8, 2), (4, 1), (2, 1)]),
        ((40, 64), [(20, 32), (10, 16), (5, 8), (3, 4), (2, 2)]),
        ((8, 128), [(4, 64), (2, 32), (1, 16), (1, 8), (1, 4)]),
    ],
)
def test_narrow_images_have_stages_too(size, found):
    widths = [3, 8, 12, 16, 20, 24]
    parts = [
        part
        for before, after in itertools.pairwise(widths)
        for part in (nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU())
    ]
    student = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5))
    names = [(each.name, each.height, each.width) for each in stages(student, (3, *size))]
    assert names == [(str(3 * i + 2), *each) for i, each in enumerate(found)]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precisions(tmp_path, precision):
    trained = module("resnet8", teacher=BrightRowTeacher(), loss=CenteredKD(), student_options={"norm": "group"})
    federation = fedkd.Federation(
        2, strategy=ClosedFormHead(), run_dir=tmp_path, trainer={"accelerator": "cpu", "precision": precision}
    )
    summary = federation.fit(trained, datamodule(3, ClassSpecific(1), count=120))
    assert summary["balanced_accuracy"] > 0.9
    assert head_of(trained)["solved_weight"].dtype == torch.float32


def test_a_timm_network_has_stages():
    timm = pytest.importorskip("timm")
    student = timm.create_model("test_resnet", num_classes=4).eval()
    wrapped = ClosedFormStudent.on_stages(student, 4, (3, 64, 64))
    assert wrapped.features(torch.rand(2, 3, 64, 64)).shape == (2, wrapped.num_features)
    assert len(wrapped.layers) == 3


def test_the_head_adds_next_to_no_work():
    student = fedkd.students.create("resnet8", num_classes=10, in_channels=3, image_size=32, norm="group")
    wrapped = ClosedFormStudent.on_stages(student, 10, (3, 32, 32))
    shown = torch.rand(1, 3, 32, 32)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as plain:
        student(shown)
    wrapped.solved_weight.normal_()
    wrapped.has_head = True
    with torch.utils.flop_counter.FlopCounterMode(display=False) as more:
        wrapped(shown)
    assert 0 < more.get_total_flops() - plain.get_total_flops() <= 2 * 560 * 10
    assert more.get_total_flops() < 1.001 * plain.get_total_flops()
