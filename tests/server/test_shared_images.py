"""Training on shared images: through the teacher alone, with every loss, the same in any order, and what it brings."""

from __future__ import annotations

import csv
import json
from typing import ClassVar

import pytest
import torch
from helpers import BrightRowTeacher, LinearStudent, Reversed, images, module, same, sgd, train_client, weights
from lightning.pytorch import Trainer
from torch import nn

import fedkd
from fedkd.cli.main import main
from fedkd.data import Augmentation, Batch, DeadLeaves, FederatedDataModule, PublicImages
from fedkd.losses import (
    DKD,
    KD,
    RKD,
    BalancedSoftmax,
    CrossEntropy,
    FeatureCosine,
    FrozenHead,
    LogitCalibration,
    NotTrue,
    Outputs,
    kd_divergence,
)
from fedkd.partition import ClassSpecific, Dirichlet
from fedkd.strategies import SCAFFOLD, Compose, FedAvg, FedAvgM, FedDF, ServerDistillation

SKEWED = {"partitioner": Dirichlet(0.3)}


class Recording(fedkd.DistillationModule):
    """Keeps every batch that it, or a client's copy of it, trains on."""

    batches: ClassVar[list] = []

    def training_step(self, batch, batch_idx):
        self.batches.append(batch)
        return super().training_step(batch, batch_idx)


class CountingTeacher(BrightRowTeacher):
    """Counts the images that it sees."""

    not_in_features = BrightRowTeacher.not_in_features | {"seen"}

    def __init__(self):
        super().__init__()
        self.seen = [0]

    def features(self, images):
        self.seen[0] += len(images)
        return super().features(images)


def recording(student=None, **arguments):
    torch.manual_seed(0)
    Recording.batches.clear()
    defaults = {"teacher": BrightRowTeacher(), "loss": KD(0.5, 1.0, 2.0), "optimizer": sgd()}
    return Recording(student or LinearStudent(), **{**defaults, **arguments})


def data(shared=PublicImages(), **arguments):  # noqa: B008
    arguments = {"num_clients": 3, "batch_size": 10, "public_fraction": 0.5, "shared": shared, **arguments}
    return FederatedDataModule.from_datasets(images(60), images(30, seed=1), **arguments)


def fit(run_dir, trained, datamodule, rounds=2, ckpt_path=None, **arguments):
    arguments = {"trainer": {"accelerator": "cpu"}, "strategy": FedAvg(), **arguments}
    summary = fedkd.Federation(rounds=rounds, run_dir=run_dir, **arguments).fit(trained, datamodule, ckpt_path)
    return summary, weights(trained)


def test_the_loss_by_hand():
    trained = recording()
    trained.build("abc", (1, 8, 8))
    torch.manual_seed(1)
    shared = Batch(torch.rand(6, 1, 8, 8), torch.zeros(6, dtype=torch.long), torch.arange(6), torch.randn(6, 3))
    batch = Batch(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]), torch.arange(4), torch.randn(4, 3))
    batch = batch._replace(shared=shared, shared_weight=0.25)
    terms = trained.loss_terms(batch)
    own, others = trained(batch.images), trained(shared.images)
    ce = nn.functional.cross_entropy(own, batch.targets)
    kd, shared_kd = (4 * kd_divergence(s, t, 2.0) for s, t in ((own, batch.teacher_logits), (others, shared[3])))
    torch.testing.assert_close(terms["loss"], 0.5 * ce + kd + 0.25 * shared_kd)
    torch.testing.assert_close(terms["shared_loss"], shared_kd.detach())
    torch.testing.assert_close(terms["shared_kd"], shared_kd.detach())
    assert set(terms) == {"loss", "ce", "kd", "shared_loss", "shared_kd"}


@pytest.mark.parametrize("loss", [DKD(temperature=2.0), NotTrue(ce_weight=3.0)])
def test_the_teachers_own_choice_stands_for_the_class(loss):
    student, teacher = Outputs(torch.randn(9, 4)), Outputs(torch.randn(9, 4))
    labeled = loss(student, teacher.logits.argmax(1), teacher)
    taught = loss.distill(student, teacher)
    torch.testing.assert_close(taught["loss"], labeled["loss"] - loss.ce_weight * labeled["ce"])
    assert "ce" not in taught


def test_a_loss_that_knows_no_teaching_is_named():
    class Simple(fedkd.DistillationLoss):
        def forward(self, student, targets, teacher):
            return {"loss": student.logits.sum()}

    with pytest.raises(fedkd.FedKDError, match="Simple cannot learn from shared images"):
        Simple().distill(Outputs(torch.zeros(1, 2)), Outputs(torch.zeros(1, 2)))


def test_no_label_of_a_public_image_is_read(tmp_path):
    def run(name, poison):
        datamodule, trained = data(), recording(loss=DKD(temperature=2.0))
        datamodule.setup()
        if poison:
            labels = datamodule.train.targets
            labels[datamodule.public_indices] = (labels[datamodule.public_indices] + 1) % 3
        return fit(tmp_path / name, trained, datamodule)[1]

    assert same(run("clean", False), run("poisoned", True))


def test_any_order_of_clients_and_a_resume_end_with_the_same_bits(tmp_path):
    def run(name, rounds=3, **arguments):
        datamodule = data(partitioner=Dirichlet(0.3), augmentation=Augmentation(2, True))
        return fit(tmp_path / name, recording(), datamodule, rounds, **arguments)[1]

    whole = run("whole")
    assert same(whole, run("reversed", backend=Reversed()))
    run("parts", rounds=1)
    assert same(whole, run("parts", ckpt_path="last"))


def test_weight_0_is_the_run_without_shared_images(tmp_path):
    found = {}
    cases = {"none": None, "weight": PublicImages(weight=0.0), "fraction": PublicImages(fraction=0.0)}
    for name, shared in cases.items():
        found[name] = fit(tmp_path / name, recording(), data(shared))[1]
    assert same(found["none"], found["fraction"])
    for name, value in found["none"].items():
        torch.testing.assert_close(found["weight"][name], value, rtol=1e-5, atol=1e-7)
    moved = fit(tmp_path / "moved", recording(), data(PublicImages()))[1]
    assert not torch.allclose(moved["net.1.weight"], found["none"]["net.1.weight"], rtol=1e-3)


def test_without_a_teacher_nothing_is_shared_and_the_summary_says_so(tmp_path):
    _, expected = fit(tmp_path / "alone", recording(teacher=None), data(None))
    left_out = recording(teacher=None)
    summary, found = fit(tmp_path / "left_out", left_out, data())
    assert same(expected, found)
    assert summary["teacher"] is None
    assert all(batch.shared is None for batch in left_out.batches)
    taught, _ = fit(tmp_path / "taught", recording(), data())
    assert taught["teacher"]["shared_images"] == 30
    assert json.loads((tmp_path / "taught" / "partition.json").read_text())["shared_images"] == 30
    with open(tmp_path / "taught" / "metrics.csv") as file:
        row = list(csv.DictReader(file))[-1]
    assert {"train/loss", "train/shared_loss", "train/shared_kd"} <= row.keys()
    assert row["num_examples"] == "30"  # the clients' own


@pytest.mark.parametrize("shared", [PublicImages(), DeadLeaves(count=25)])
def test_the_teacher_looks_at_each_image_once(tmp_path, monkeypatch, shared):
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path / "cache"))
    teacher, trained = CountingTeacher(), recording(teacher=CountingTeacher())
    trained = recording(teacher=teacher)
    fit(tmp_path / "run", trained, data(shared), rounds=3)
    apart = 25 if isinstance(shared, DeadLeaves) else 0
    assert teacher.seen == [60 + 30 + apart]  # training set, test set
    for batch in trained.batches:
        torch.testing.assert_close(batch.shared[3], teacher(batch.shared.images), rtol=1e-3, atol=1e-2)
    again = CountingTeacher()
    fit(tmp_path / "again", recording(teacher=again), data(shared), rounds=1)
    assert again.seen == [0]


@pytest.mark.parametrize("shared", [PublicImages(), DeadLeaves(count=25)])
def test_consistent_teaching_judges_the_very_crop_of_a_shared_image(tmp_path, shared):
    trained = recording()
    datamodule = data(shared, augmentation=Augmentation(2, True), views=3)
    fit(tmp_path / "run", trained, datamodule, teaching="consistent")
    assert {int(view) for batch in trained.batches for view in batch.shared.view} == {0, 1, 2}
    for batch in trained.batches:
        torch.testing.assert_close(batch.shared[3], trained.teacher(batch.shared.images), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("loss", [FeatureCosine, FrozenHead, RKD])
@pytest.mark.parametrize("shared", [PublicImages(), DeadLeaves(count=25)])
def test_losses_on_features_learn_from_shared_images(tmp_path, loss, shared):
    class Teacher(BrightRowTeacher):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 3)

    trained = recording(teacher=Teacher(), loss=loss())
    datamodule = data(shared)
    fit(tmp_path / "run", trained, datamodule, rounds=1)
    name = {RKD: "shared_distance"}.get(loss, "shared_feature")
    with open(tmp_path / "run" / "metrics.csv") as file:
        assert all(float(row[f"train/{name}"]) > 0 for row in csv.DictReader(file))
    seen = datamodule.shared_images.data.images
    for batch in trained.batches:
        features = trained.teacher.features(seen[batch.shared.index].float() / 255)
        torch.testing.assert_close(batch.shared.teacher_features, features, rtol=1e-3, atol=1e-2)


def test_the_loss_is_calibrated_on_the_clients_images_alone(tmp_path):
    temperatures = []
    for name, shared in (("without", None), ("with", DeadLeaves(count=25))):
        trained = recording(loss=KD(temperature="auto"))
        fit(tmp_path / name, trained, data(shared), rounds=1)
        temperatures.append(trained.loss.T)
    assert temperatures[0] == temperatures[1]


def test_a_resume_with_other_shared_images_is_refused(tmp_path):
    fit(tmp_path / "run", recording(), data(DeadLeaves(count=25)), rounds=1)
    for other in (DeadLeaves(count=25, seed=1), DeadLeaves(count=25, weight=2.0), PublicImages(), None):
        with pytest.raises(fedkd.FedKDError, match="shared images"):
            fit(tmp_path / "run", recording(), data(other), ckpt_path="last")


def test_a_resume_with_other_images_for_the_server_alone_is_refused(tmp_path):
    strategy = FedDF(images="shared")
    fit(tmp_path / "run", recording(teacher=None), data(DeadLeaves(count=25)), rounds=1, strategy=strategy)
    other = data(DeadLeaves(count=25, seed=1))
    with pytest.raises(fedkd.FedKDError, match="shared images"):
        fit(tmp_path / "run", recording(teacher=None), other, ckpt_path="last", strategy=strategy)


def composed(*left_out):
    parts = [SCAFFOLD(), FedAvgM(0.5), ServerDistillation(epochs=1)]
    return Compose([part for part in parts if type(part) not in left_out])


@pytest.mark.parametrize("label_loss", [BalancedSoftmax(), pytest.param(LogitCalibration(), marks=pytest.mark.slow)])
def test_they_compose_with_strategies_and_label_losses(tmp_path, label_loss):
    """In any order of clients, across a resume; and whatever is left out is missed."""

    def run(name, strategy, shared=PublicImages(), label_loss=label_loss, rounds=3, **arguments):  # noqa: B008
        trained = recording(label_loss=label_loss)
        return fit(tmp_path / name, trained, data(shared, **SKEWED), rounds, strategy=strategy, **arguments)[1]

    whole = run("whole", composed())
    assert same(whole, run("reversed", composed(), backend=Reversed()))
    run("parts", composed(), rounds=1)
    assert same(whole, run("parts", composed(), ckpt_path="last"))
    for part in (SCAFFOLD, FedAvgM, ServerDistillation):
        assert not same(whole, run(part.__name__, composed(part)))
    assert not same(whole, run("unshared", composed(), shared=None))
    assert not same(whole, run("plain", composed(), label_loss=CrossEntropy()))


def test_a_control_variate_is_the_gradient_of_own_and_shared_images():
    trained, datamodule = recording(), data(PublicImages(weight=0.7), num_clients=1, batch_size=30)
    datamodule.setup()
    trained.build(datamodule.classes, datamodule.image_shape)
    answers = trained.teacher(datamodule.train.images.float() / 255)
    pools = datamodule.pools(answers, answers)
    _, update = train_client(trained, datamodule, SCAFFOLD("I"), teacher_logits=answers, pools=pools)
    (batch,) = trained.batches  # all 30 own images, and all 30 that are public
    start = module(teacher=BrightRowTeacher(), loss=KD(0.5, 1.0, 2.0))
    start.build(datamodule.classes, datamodule.image_shape)
    loss = start.loss_terms(batch)["loss"]
    names, parameters = zip(*start.student.named_parameters(), strict=True)
    for name, expected in zip(names, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(update.client_state[name], expected, rtol=1e-4, atol=1e-6)


def test_a_batchnorm_sees_own_and_shared_images(tmp_path):
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.BatchNorm2d(1, momentum=1.0), nn.Linear(64, 3)

        def forward(self, images):
            return self.linear(self.norm(images).flatten(1))

    trained = recording(Norm())
    trained.build("abc", (1, 8, 8))
    batch, *_ = data().train_dataloader()
    trained.student.train()
    trained.loss_terms(batch._replace(teacher_logits=torch.randn(10, 3)))
    both = torch.cat([batch.images, batch.shared.images])
    torch.testing.assert_close(trained.student.norm.running_mean, both.mean().reshape(1))


def test_a_plain_trainer_asks_a_live_teacher_about_shared_images(tmp_path):
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    for teacher, judged in ((BrightRowTeacher(), True), (None, False)):
        fit_all = Trainer(max_epochs=1, default_root_dir=tmp_path, enable_checkpointing=False, **quiet)
        fit_all.fit(recording(teacher=teacher), datamodule=data())
        assert ("train/shared_kd" in fit_all.callback_metrics) == judged


def test_one_class_clients_learn_the_others_from_shared_images(tmp_path):
    def run(name, shared):
        torch.manual_seed(0)
        student = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        trained = fedkd.DistillationModule(student, "digits-tiny", KD(0.1, 0.9, 4.0), sgd(0.2))
        one_class = {"num_clients": 10, "partitioner": ClassSpecific(1), "batch_size": 16}
        datamodule = FederatedDataModule(public_fraction=0.3, shared=shared, **one_class)
        return fit(tmp_path / name, trained, datamodule, rounds=3)[0]["balanced_accuracy"]

    assert run("with", PublicImages()) > run("without", None) + 0.25  # 4 rounds: 0.73 and 0.23


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data.shared DeadLeves", "data.shared: Unknown class 'DeadLeves'. Did you mean 'DeadLeaves'?"),
        ("--data.shared DeadLeaves --data.shared.cout 3", "data.shared: Unknown option 'cout'. Did you mean 'count'?"),
        ("--data.shared FolderImages", "data.shared.root must be set."),
        ("--data.shared PublicImages --data.shared.fraction 1", "fraction must be >= 0 and < 1, got 1.0"),
        ("--model.label_loss BalancedSofmax", "model.label_loss: Unknown class 'BalancedSofmax'. Did you mean"),
        ("--model.label_loss LogitCalibration --model.label_loss.tau -1", "tau must be >= 0, got -1.0"),
    ],
)
def test_the_command_line_says_what_is_wrong(capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(["fit", *arguments.split()])
    assert message in capsys.readouterr().err


def test_the_command_line_shares_images(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = "--data.shared DeadLeaves --data.shared.count 7 --data.shared.fraction 0.2 --data.num_clients 2"
    main(["partition", *arguments.split()])
    assert "partition_report.json" in capsys.readouterr().out
