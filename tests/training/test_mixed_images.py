"""Training on mixed images, own and shared ones, with the teacher's outputs cached or from a teacher that runs."""

from __future__ import annotations

import pytest
import torch
from helpers import BrightRowTeacher, datamodule, images, module, one_client_with_everything, train_client
from torch import nn
from torchvision.transforms import v2

import fedkd
from fedkd.core.errors import FedKDError
from fedkd.data import Augmentation, CutMix, FederatedDataModule, MixUp, PublicImages
from fedkd.training.objective import Objective
from fedkd.training.trainer import TRAINER_DEFAULTS, make_trainer
from fedkd.training.unlabeled import Distiller


def one_batch(mix, batch_size=8):
    """Return a client's first batch, with shared images and the teacher's logits in views."""
    data = one_client_with_everything(30, batch_size, mix)
    logits = torch.randn(30, 2, 3, generator=torch.Generator().manual_seed(0))
    return data, next(iter(data.site(0, teacher_logits=logits, pools=data.pools(logits, logits)).train_loader(3)))


def single(batch, first: bool):
    """Return a mixed batch as if its images were the first, or the second, of what they are made of."""
    shared = None if batch.shared is None else single(batch.shared, first)
    batch = batch._replace(mix_weight=None, shared=shared)
    if first:
        return batch
    return batch._replace(targets=batch.targets.roll(1, 0), teacher_logits=batch.teacher_logits.roll(1, 0))


def test_own_and_shared_images_are_mixed_each_among_themselves():
    data, batch = one_batch(MixUp())
    trained = module(teacher=BrightRowTeacher(), loss=fedkd.losses.DKD(ce_weight=0.5))
    trained.build(data.classes, data.image_shape)
    own, shared = batch.mix_weight, batch.shared.mix_weight
    assert own != shared
    found = trained.loss_terms(batch)
    first, second = (trained.loss_terms(single(batch, side)) for side in (True, False))
    for name in ("ce", "tckd", "nckd"):
        torch.testing.assert_close(found[name], own * first[name] + (1 - own) * second[name])
        assert first[name] != second[name]
    for name in ("shared_loss", "shared_nckd"):
        torch.testing.assert_close(found[name], shared * first[name] + (1 - shared) * second[name])
    weighted = sum(found[name] * w for name, w in (("ce", 0.5), ("tckd", 1), ("nckd", 2), ("shared_loss", 1)))
    torch.testing.assert_close(found["loss"], weighted)


def test_a_teacher_that_runs_sees_the_mixed_images():
    data = datamodule(augmentation=Augmentation(mix=CutMix()))
    data.setup()
    trained = module(teacher=BrightRowTeacher(), loss=fedkd.losses.KD(ce_weight=0, kd_weight=1))
    trained.build(data.classes, data.image_shape)
    batch = next(iter(data.train_dataloader()))
    assert batch.teacher_logits is None
    student, teacher = trained(batch.images), trained.teacher(batch.images)
    expected = 4 * fedkd.losses.kd_divergence(student, teacher, 2.0)
    torch.testing.assert_close(trained.loss_terms(batch)["loss"], expected)


class Targets(Objective):
    """Reads the targets."""

    name = "targets"

    def term(self, module, batch, student):
        return nn.functional.cross_entropy(student.logits, batch[1])


class Blind(Targets):
    needs_targets = False


@pytest.mark.parametrize("kind", [Targets, Blind])
def test_a_term_that_reads_targets_gets_those_of_both_images(kind, monkeypatch):
    data, batch = one_batch(MixUp())
    trained = module()
    trained.build(data.classes, data.image_shape)
    monkeypatch.setattr(fedkd.DistillationModule, "objectives", [kind(1.0)])
    batch = batch._replace(teacher_logits=None, shared=None)
    found = trained.loss_terms(batch)
    of_first = nn.functional.cross_entropy(trained(batch.images), batch.targets)
    torch.testing.assert_close(found["targets"], of_first.detach() if kind is Blind else found["ce"])
    assert found["ce"] != of_first


def test_the_server_distills_mixed_images():
    _, batch = one_batch(MixUp())
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    distiller, weight = Distiller(student, 0.1, 2.0, 1.0), batch.mix_weight
    first, second = (distiller.training_step(single(batch, side), 0) for side in (True, False))
    torch.testing.assert_close(distiller.training_step(batch, 0), weight * first + (1 - weight) * second)
    assert first != second


class Single(fedkd.losses.KD):
    """Has no meaning for mixed images."""

    can_mix = False


def test_a_loss_that_cannot_mix_is_refused_before_any_work(tmp_path):
    data = datamodule(augmentation=Augmentation(mix=MixUp(0.2)))
    message = (
        r"data.augmentation.mix is MixUp\(alpha=0.2, probability=1.0\), but Single cannot learn from mixed images. Set "
        "mix to None, or choose another loss"
    )
    trained = module(teacher=BrightRowTeacher(), loss=Single())
    with pytest.raises(FedKDError, match=message):
        fedkd.Federation(rounds=1, run_dir=tmp_path / "run").fit(trained, data)
    assert not (tmp_path / "run").exists()
    with pytest.raises(FedKDError, match=message):
        make_trainer({**TRAINER_DEFAULTS, "accelerator": "cpu"}).fit(trained, datamodule=data)
    alone = module(loss=Single())  # without a teacher it is the cross-entropy
    fedkd.Federation(rounds=1, run_dir=tmp_path / "alone").fit(alone, data)


def test_several_clients_at_once_learn_what_they_learn_one_by_one(tmp_path):
    found = []
    for backend in (fedkd.InProcess(), fedkd.Stacked()):
        trained = module(teacher=BrightRowTeacher(), loss=fedkd.losses.CenteredKD(ce_weight=0.1))
        data = FederatedDataModule.from_datasets(
            images(60),
            images(30, seed=1),
            num_clients=3,
            batch_size=10,
            augmentation=Augmentation(1, mix=CutMix()),
            public_fraction=0.2,
            shared=PublicImages(),
        )
        strategy = fedkd.strategies.FedNTD()
        run_dir = tmp_path / type(backend).__name__
        fedkd.Federation(rounds=2, backend=backend, strategy=strategy, run_dir=run_dir).fit(trained, data)
        found.append(trained.student.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-5)


def test_lightnings_own_loops_learn_the_same():
    found = []
    for trainer in ({}, {"limit_train_batches": 1.0}):
        data = datamodule(augmentation=Augmentation(1, True, [v2.ColorJitter(0.9)], MixUp()))
        found.append(train_client(module(), data, trainer=trainer)[1].delta)
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
