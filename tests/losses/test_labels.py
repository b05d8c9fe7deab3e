"""Label losses by hand, their numerics for absent classes, and their place in a federation."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from helpers import BrightRowTeacher, datamodule, images, module, same, sgd, weights
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

import fedkd
from fedkd.losses import (
    DKD,
    KD,
    BalancedSoftmax,
    CrossEntropy,
    DistillationLoss,
    LogitCalibration,
    balanced_softmax,
    logit_calibration,
)
from fedkd.partition import ClassSpecific, Dirichlet

LOGITS = torch.tensor([[math.log(2.0), 0.0, math.log(3.0)]])


def test_balanced_softmax_by_hand():
    # classes weigh 1 * 2, 4 * 1, 2 * 3: the second has 4 of 12
    loss = balanced_softmax(LOGITS, torch.tensor([1]), torch.tensor([1, 4, 2]))
    assert loss == pytest.approx(math.log(12 / 4))
    # without the third class: 4 of 6
    loss = balanced_softmax(LOGITS, torch.tensor([1]), torch.tensor([1, 4, 0]))
    assert loss == pytest.approx(math.log(6 / 4))


def test_logit_calibration_by_hand():
    # 16^(-1/4) = 1/2, 1^(-1/4) = 1, 81^(-1/4) = 1/3
    weights = [2 * math.exp(-0.5), math.exp(-1.0), 3 * math.exp(-1 / 3)]
    loss = logit_calibration(LOGITS, torch.tensor([0]), torch.tensor([16, 1, 81]))
    assert loss == pytest.approx(math.log(sum(weights) / weights[0]))
    # half of it: tau 1/2; and a class without an image is 50 lower
    weights = [2 * math.exp(-0.25), math.exp(-0.5), 3 * math.exp(-50.0)]
    loss = logit_calibration(LOGITS, torch.tensor([0]), torch.tensor([16, 1, 0]), tau=0.5)
    assert loss == pytest.approx(math.log(sum(weights) / weights[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("label_loss", [BalancedSoftmax(), LogitCalibration()])
def test_absent_classes_get_no_gradient_and_nothing_becomes_nan(label_loss, dtype):
    logits = (10 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0))).to(dtype).requires_grad_()
    label_loss(logits, torch.tensor([0, 2, 2, 0, 0, 2]), torch.tensor([3, 0, 3, 0])).backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[:, [1, 3]].float().abs().max() < 1e-30
    assert (logits.grad[:, [0, 2]] != 0).any()


def test_a_single_class_has_nothing_to_learn():
    for label_loss in (BalancedSoftmax(), LogitCalibration()):
        logits = torch.randn(5, 3, requires_grad=True)
        loss = label_loss(logits, torch.full((5,), 1), torch.tensor([0, 5, 0]))
        loss.backward()
        assert loss.item() == 0
        assert logits.grad.abs().max() < 1e-30


@pytest.mark.parametrize("counts", [None, torch.tensor([7, 7, 7])])
def test_equally_frequent_classes_are_the_plain_cross_entropy(counts):
    logits, targets = torch.randn(20, 3), torch.arange(20) % 3
    expected = torch.nn.functional.cross_entropy(logits, targets)
    assert torch.equal(CrossEntropy()(logits, targets, torch.tensor([1, 5, 0])), expected)
    for label_loss in (BalancedSoftmax(), LogitCalibration()):
        torch.testing.assert_close(label_loss(logits, targets, counts), expected)
    torch.testing.assert_close(LogitCalibration(0.0)(logits, targets, torch.tensor([1, 5, 0])), expected)


class Recording(BalancedSoftmax):
    """Keeps what it is given of classes, also in a client's copy of the module."""

    seen: ClassVar[list] = []

    def __init__(self):
        super().__init__()
        self.seen.clear()

    def forward(self, logits, targets, counts=None):
        self.seen.append((targets.tolist(), None if counts is None else counts.tolist()))
        return super().forward(logits, targets, counts)


def test_a_client_is_told_the_counts_of_its_own_images(tmp_path):
    recording, data = Recording(), datamodule(partitioner=Dirichlet(0.3), batch_size=100)
    fedkd.Federation(rounds=1, run_dir=tmp_path / "run", trainer={"accelerator": "cpu"}).fit(
        module(label_loss=recording), data
    )
    clients = [shard for shard in data.shards if len(shard)]
    assert len(recording.seen) == len(clients) > 1
    for shard, (targets, counts) in zip(clients, recording.seen, strict=True):
        assert counts == torch.bincount(data.train.targets[shard], minlength=3).tolist()
        assert sorted(targets) == sorted(data.train.targets[shard].tolist())


def test_a_plain_trainer_counts_all_and_an_ordinary_dataloader_counts_nothing(tmp_path):
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"default_root_dir": tmp_path, "enable_checkpointing": False, "max_epochs": 1, "num_sanity_val_steps": 0}
    recording = Recording()
    Trainer(**quiet).fit(module(label_loss=recording), datamodule=datamodule())
    assert {tuple(counts) for _, counts in recording.seen} == {(20, 20, 20)}
    recording = Recording()
    built = module(label_loss=recording)
    built.build(["a", "b", "c"], (1, 8, 8))
    pairs = [(image.float() / 255, label) for image, label in images(20)]
    Trainer(**quiet).fit(built, DataLoader(pairs, batch_size=10))
    assert [counts for _, counts in recording.seen] == [None, None]


def test_it_is_the_cross_entropy_of_the_loss_with_a_teacher_too():
    trained = module(teacher=BrightRowTeacher(), loss=KD(0.5, 2.0, 3.0), label_loss=BalancedSoftmax())
    trained.build(["a", "b", "c"], (1, 8, 8))
    counts = torch.tensor([1, 2, 0])
    batch = fedkd.data.Batch(
        torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 1]), torch.arange(3), torch.randn(3, 3), class_counts=counts
    )
    terms, logits = trained.loss_terms(batch), trained(batch.images)
    ce = balanced_softmax(logits, batch.targets, counts)
    kd = 9 * fedkd.losses.kd_divergence(logits, batch.teacher_logits, 3.0)
    torch.testing.assert_close(terms["ce"], ce.detach())
    torch.testing.assert_close(terms["loss"], 0.5 * ce + 2 * kd)


def test_clients_of_one_class_do_not_move_by_balanced_labels(tmp_path):
    def run(label_loss):
        trained = module(label_loss=label_loss)
        before = weights(trained)
        data = datamodule(partitioner=ClassSpecific(1))
        fedkd.Federation(rounds=1, run_dir=tmp_path / type(label_loss).__name__, trainer={"accelerator": "cpu"}).fit(
            trained, data
        )
        return same(before, weights(trained))

    assert run(BalancedSoftmax())
    assert not run(CrossEntropy())


def test_what_does_not_go_together_is_said():
    class Simple(DistillationLoss):
        def forward(self, student, targets, teacher):
            return {"loss": student.logits.sum()}

    with pytest.raises(fedkd.FedKDError, match="Simple takes no label_loss but CrossEntropy, got BalancedSoftmax"):
        module(loss=Simple(), label_loss=BalancedSoftmax(), optimizer=sgd())
    with pytest.raises(fedkd.FedKDError, match="tau must be >= 0, got -1"):
        LogitCalibration(-1)


def test_a_label_loss_without_weight_is_refused():
    with pytest.raises(fedkd.FedKDError, match="BalancedSoftmax would do nothing: the ce_weight of DKD is 0"):
        module(teacher=BrightRowTeacher(), label_loss=BalancedSoftmax())
    module(teacher=BrightRowTeacher(), loss=DKD(ce_weight=0.5), label_loss=BalancedSoftmax())
    module(label_loss=BalancedSoftmax())  # without a teacher labels are all there is


def test_a_resume_with_another_label_loss_is_refused(tmp_path):
    def run(label_loss, rounds, **arguments):
        federation = fedkd.Federation(rounds=rounds, run_dir=tmp_path / "run", trainer={"accelerator": "cpu"})
        federation.fit(module(label_loss=label_loss), datamodule(), **arguments)

    run(LogitCalibration(1.0), 1)
    with pytest.raises(fedkd.FedKDError, match="label loss"):
        run(LogitCalibration(2.0), 2, ckpt_path="last")
