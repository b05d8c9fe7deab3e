"""What the teacher judges: the image itself (fixed), or what the student sees of it (consistent)."""

from __future__ import annotations

import csv
from typing import ClassVar

import numpy as np
import pytest
import torch
from helpers import BrightRowTeacher, LinearStudent, Reversed, images, module, same, sgd, weights
from torchvision.transforms import v2

import fedkd
from fedkd.data import Augmentation, FederatedDataModule
from fedkd.partition import Dirichlet

AUGMENTATION = Augmentation(2, True)
KD = fedkd.KD(ce_weight=0, kd_weight=1, temperature=2)


class Recording(fedkd.DistillationModule):
    """Keeps every batch that it, or a client's copy of it, trains on."""

    batches: ClassVar[list] = []

    def training_step(self, batch, batch_idx):
        self.batches.append(batch)
        return super().training_step(batch, batch_idx)


def recording(**arguments):
    torch.manual_seed(0)
    Recording.batches.clear()
    return Recording(LinearStudent(), **{"teacher": BrightRowTeacher(), "loss": KD, "optimizer": sgd(), **arguments})


def data(augmentation=AUGMENTATION, views=4, count=60, **arguments):
    return FederatedDataModule.from_datasets(
        images(count),
        images(30, seed=1),
        **{"num_clients": 3, "batch_size": 10, "augmentation": augmentation, "views": views, **arguments},
    )


def fit(run_dir, trained, datamodule, rounds=2, ckpt_path=None, **arguments):
    arguments = {"teaching": "consistent", "strategy": fedkd.FedAvg(), "trainer": {"accelerator": "cpu"}, **arguments}
    return fedkd.Federation(rounds=rounds, run_dir=run_dir, **arguments).fit(trained, datamodule, ckpt_path=ckpt_path)


@pytest.mark.parametrize(
    "transforms", [[], [v2.RandAugment(), v2.ColorJitter(0.9)]], ids=["crop and flip", "transforms"]
)
def test_consistent_the_teacher_judges_the_very_view(transforms, tmp_path):
    trained = recording()
    fit(tmp_path / "run", trained, data(Augmentation(2, True, transforms=transforms)))
    assert sum(len(batch.images) for batch in trained.batches) == 120
    assert {int(view) for batch in trained.batches for view in batch.view} == set(range(4))
    for batch in trained.batches:
        torch.testing.assert_close(batch.teacher_logits, trained.teacher(batch.images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("views", [None, 4])
def test_fixed_the_teacher_judges_the_image_itself(tmp_path, views):
    trained, datamodule = recording(), data(views=views)
    fit(tmp_path / "run", trained, datamodule, teaching="fixed")
    moved = 0.0
    for batch in trained.batches:
        clean = trained.teacher(datamodule.train.images[batch.index].float() / 255)
        torch.testing.assert_close(batch.teacher_logits, clean, rtol=1e-3, atol=1e-3)
        moved += float((clean - trained.teacher(batch.images)).abs().sum())
    assert moved > 10  # the student saw something else


@pytest.mark.parametrize("views", [None, 1, 4])
def test_without_augmentation_both_are_the_same_bits(tmp_path, views):
    def run(teaching):
        trained = recording()
        fit(tmp_path / teaching, trained, data(None, views), teaching=teaching)
        return weights(trained)

    assert same(run("fixed"), run("consistent"))


def test_consistent_without_views_is_refused_before_any_work(tmp_path):
    with pytest.raises(fedkd.FedKDError, match=r"needs views that come back: set data\.views"):
        fit(tmp_path / "run", recording(), data(views=None))
    assert not (tmp_path / "run").exists()
    with pytest.raises(fedkd.FedKDError, match=r"Unknown teaching 'consistant'\. Did you mean 'consistent'"):
        fedkd.Federation(teaching="consistant")
    fit(tmp_path / "run", recording(teacher=None), data(views=None))  # nobody teaches: nothing else to change


class WithFeatures(fedkd.KD):
    """Wants the teacher's features in the batch."""

    needs_features = True


def test_any_order_of_clients_and_a_resume_end_with_the_same_bits(tmp_path):
    def run(name, **arguments):
        trained = recording(loss=WithFeatures())
        fit(tmp_path / name, trained, data(partitioner=Dirichlet(0.3), num_clients=6), **arguments)
        return weights(trained)

    whole = run("whole", rounds=3)
    assert same(whole, run("reversed", rounds=3, backend=Reversed()))
    run("parts", rounds=1)
    assert same(whole, run("parts", rounds=3, ckpt_path="last"))


@pytest.mark.parametrize("teaching", ["fixed", "consistent"])
def test_features_come_along_where_the_loss_needs_them(tmp_path, teaching):
    trained, datamodule = recording(loss=WithFeatures()), data()
    fit(tmp_path / "run", trained, datamodule, rounds=1, teaching=teaching)
    for batch in trained.batches:
        seen = batch.images if teaching == "consistent" else datamodule.train.images[batch.index].float() / 255
        torch.testing.assert_close(batch.teacher_features, trained.teacher.features(seen), rtol=1e-3, atol=1e-3)
    plain = recording()
    fit(tmp_path / "plain", plain, data(), rounds=1, teaching=teaching)
    assert all(batch.teacher_features is None for batch in plain.batches)


class Noting(fedkd.KD):
    """Notes the outputs that its temperature is found on."""

    seen: ClassVar[list] = []

    def __init__(self):
        super().__init__(temperature="auto")

    def softened(self, logits):
        self.seen.append(logits)
        return logits


@pytest.mark.parametrize("teaching", ["fixed", "consistent"])
def test_the_temperature_is_found_on_the_clients_images_alone(tmp_path, teaching):
    Noting.seen.clear()
    trained, datamodule = recording(loss=Noting()), data(public_fraction=0.5)
    fit(tmp_path / "run", trained, datamodule, rounds=1, teaching=teaching)
    rows = np.concatenate(datamodule.shards)
    assert len(rows) == 30
    index = torch.from_numpy(rows)
    pixels = [datamodule.train.images[index]]
    if teaching == "consistent":
        pixels = [datamodule.augmentation(pixels[0], index, torch.tensor(view), 0) for view in range(4)]
    expected = torch.stack([trained.teacher(part.float() / 255) for part in pixels], dim=1).flatten(0, 1)
    clients = sum(len(shard) > 0 for shard in datamodule.shards)
    found = torch.cat(Noting.seen[:clients]).flatten(0, -2)  # each client's, in the first exchange
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


class Sharper(BrightRowTeacher):
    def features(self, images):
        return 2 * super().features(images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": fedkd.KD(temperature=3.0)}, r"its loss is 'KD\(.*temperature=2.*', this run's is 'KD\(.*=3\.0"),
        ({"optimizer": sgd(0.2)}, r"its optimizer is 'SGD\(lr=0\.1\)', this run's is 'SGD\(lr=0\.2\)'"),
        ({"teacher": Sharper()}, r"its teacher is .BrightRowTeacher \w{16}, .*, this run's is .Sharper \w{16}"),
        ({"teacher": None}, r"its teacher is .BrightRowTeacher .*, this run's is None"),
    ],
)
def test_a_module_that_differs_is_refused_on_resume(tmp_path, change, message):
    fit(tmp_path / "run", recording(), data(), rounds=1)
    with pytest.raises(fedkd.FedKDError, match="belongs to another run: " + message) as error:
        fit(tmp_path / "run", recording(**change), data(), ckpt_path="last")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("datamodule", "arguments", "message"),
    [
        ({"views": 5}, {}, r"its batches is .*views=4', this run's is .*views=5"),
        ({"batch_size": 11}, {}, "its batches is 'batch_size=10, .*', this run's is 'batch_size=11"),
        ({}, {"teaching": "fixed"}, "its teaching is 'consistent', this run's is 'fixed'"),
        (
            {},
            {"trainer": {"accelerator": "cpu", "max_epochs": 2}},
            "its trainer is 'max_epochs=1, .*this run's is 'max_epochs=2, ",
        ),
    ],
)
def test_a_run_that_differs_is_refused_on_resume(tmp_path, datamodule, arguments, message):
    fit(tmp_path / "run", recording(), data(), rounds=1)
    with pytest.raises(fedkd.FedKDError, match="belongs to another run: " + message):
        fit(tmp_path / "run", recording(), data(**datamodule), ckpt_path="last", **arguments)


def test_where_it_ran_and_how_far_are_free_to_change_on_resume(tmp_path):
    fit(tmp_path / "run", recording(), data(), rounds=1)
    trainer = {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}
    assert fit(tmp_path / "run", recording(), data(), rounds=3, ckpt_path="last", trainer=trainer)["rounds"] == 3


def test_a_run_of_the_command_line_goes_on(tmp_path):
    from jsonargparse.typing import NonNegativeInt

    fit(tmp_path / "run", recording(), data(), rounds=1, seed=NonNegativeInt(3))  # what --seed_everything gives
    assert fit(tmp_path / "run", recording(), data(), ckpt_path="last", seed=3)["rounds"] == 2


def test_the_public_split_reaches_the_teacher(tmp_path):
    class Weighted(BrightRowTeacher):
        def fit_weights(self, outputs, targets):
            self.__dict__["got"] = (outputs, targets)

    trained, datamodule = recording(teacher=Weighted()), data(public_fraction=0.3)
    fit(tmp_path / "run", trained, datamodule, rounds=1)
    outputs, targets = trained.teacher.got
    public = torch.from_numpy(datamodule.public_indices)
    assert len(public) == 18
    assert torch.equal(targets, datamodule.train.targets[public])
    clean = datamodule.train.images[public].float() / 255
    torch.testing.assert_close(outputs, trained.teacher.features(clean), rtol=1e-3, atol=1e-3)


def test_consistent_teaching_learns(tmp_path):
    trained = module(teacher=BrightRowTeacher(), loss=KD)
    fit(tmp_path / "run", trained, data(Augmentation(0, True)), rounds=6)
    with open(tmp_path / "run" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["balanced_accuracy"]) > 0.9
