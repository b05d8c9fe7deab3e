"""What a loss takes from the teacher beside logits: features, a frozen head, a temperature; in a Trainer and a run."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
import yaml
from helpers import BrightRowTeacher, LinearStudent, datamodule, images, module, sgd, weights
from safetensors import safe_open
from torch import nn
from torch.utils.data import DataLoader
from training.test_module import trainer

import fedkd
from fedkd.cli.main import main
from fedkd.data import Batch
from fedkd.losses import (
    RKD,
    FeatureCosine,
    FeatureMSE,
    FrozenHead,
    feature_moments,
    feature_sums,
    local_facts,
)
from fedkd.partition import ClassSpecific
from fedkd.students import ProjectedStudent
from fedkd.teachers import LinearClassifier


class RidgeTaught(fedkd.Teacher):
    """Features of eight rows' brightness, far from zero, and a head that is fitted."""

    def features(self, images):
        return 30 * images.mean(dim=(1, 3)) + 100


def federate(run_dir, trained, **arguments):
    data = datamodule(partitioner=ClassSpecific(1))  # every client has one class
    arguments = {"rounds": 8, "trainer": {"accelerator": "cpu", "max_epochs": 2}, **arguments}
    return fedkd.Federation(run_dir=run_dir, **arguments).fit(trained, data)


@pytest.mark.parametrize("loss", [FeatureMSE(), FeatureCosine(), FrozenHead(distance="cosine"), RKD()])
def test_a_plain_trainer_distils_features(tmp_path, loss):
    trained = module(teacher=RidgeTaught(), loss=loss)
    fit = trainer(tmp_path, max_epochs=15)
    fit.fit(trained, datamodule=datamodule())
    assert fit.callback_metrics["val/balanced_accuracy"] > 0.9
    assert {"train/loss", "train/ce"} < fit.callback_metrics.keys()
    assert isinstance(trained.student, ProjectedStudent) == (not isinstance(loss, RKD))
    if not isinstance(loss, RKD):
        assert float(fit.callback_metrics["train/feature"]) < 0.3
        scale = trained.loss.resolved()["feature_scale"]
        assert float(fit.callback_metrics["train/feature_scale"]) == pytest.approx(scale)


def test_a_frozen_head_learns_every_class_from_clients_of_one(tmp_path):
    trained = module(teacher=RidgeTaught(), loss=FrozenHead(), optimizer=sgd(0.3))
    assert federate(tmp_path / "run", trained, rounds=6)["balanced_accuracy"] > 0.95

    # the head is what ridge regression gave, and no round has moved it
    head = trained.teacher.head
    everything = torch.stack([image.float() / 255 for image, _ in images(60)])
    features = trained.teacher.features(everything)
    weight, bias = trained.loss.classifier(head, feature_moments(feature_sums(features)))
    torch.testing.assert_close(trained.student.head_weight, weight, rtol=1e-2, atol=1e-2)  # cached in float16
    torch.testing.assert_close(trained.student.head_bias, bias, rtol=1e-2, atol=1e-2)
    # and clients send the student and its projector alone
    with open(tmp_path / "run" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert int(rows[0]["bytes_up"]) == 3 * 4 * (64 * 3 + 3 + 64 * 8 + 8)


def test_a_frozen_head_is_saved_with_the_student(tmp_path):
    trained = fedkd.DistillationModule("cnn", RidgeTaught(), FrozenHead(distance="cosine"))
    federate(tmp_path / "run", trained, rounds=1)
    loaded = fedkd.load_student(tmp_path / "run")
    batch = torch.rand(4, 1, 8, 8)
    assert torch.equal(loaded(batch), trained.student.eval()(batch))
    assert not torch.allclose(loaded(batch), loaded.student(batch))
    again = fedkd.load_student(tmp_path / "run", loaded.student)
    assert torch.equal(again(batch), loaded(batch))


def test_a_projector_is_saved_with_the_student(tmp_path):
    trained = module(teacher=RidgeTaught(), loss=FeatureMSE())
    federate(tmp_path / "run", trained, rounds=1, strategy=fedkd.FedAvg())
    loaded = fedkd.load_student(tmp_path / "run", LinearStudent())
    assert isinstance(loaded, ProjectedStudent)
    assert loaded.state_dict().keys() == weights(trained).keys()
    batch = torch.rand(4, 1, 8, 8)
    assert torch.equal(loaded.features_and_logits(batch)[0], trained.student.features_and_logits(batch)[0])


def test_resuming_with_a_frozen_head_ends_with_the_same_bits(tmp_path):
    def run(name, rounds, **arguments):
        trained = module(teacher=RidgeTaught(), loss=FrozenHead())
        data = datamodule(partitioner=ClassSpecific(1))
        federation = fedkd.Federation(rounds=rounds, run_dir=tmp_path / name, trainer={"accelerator": "cpu"})
        federation.fit(trained, data, **arguments)
        return {**weights(trained), **trained.constants()}

    run("parts", 1)
    whole, resumed = run("whole", 2), run("parts", 2, ckpt_path="last")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_an_automatic_temperature_is_found_logged_and_saved(tmp_path):
    trained = module(teacher=BrightRowTeacher(), loss=fedkd.KD(temperature="auto", target_entropy=0.2))
    federate(tmp_path / "run", trained, rounds=1)
    everything = torch.stack([image.float() / 255 for image, _ in images(60)])
    expected = local_facts(trained.loss, trained.teacher(everything)).temperature
    found = trained.loss.T
    assert found == pytest.approx(expected, rel=1e-3)
    with open(tmp_path / "run" / "metrics.csv") as file:
        row = next(csv.DictReader(file))
    assert float(row["train/temperature"]) == pytest.approx(found, rel=1e-5)
    with safe_open(tmp_path / "run" / "student.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["fedkd"])["loss"] == {"temperature": found}


def test_without_all_images_calibration_is_asked_for(tmp_path):
    pairs = DataLoader([(image.float() / 255, label) for image, label in images(60)], batch_size=20)
    trained = module(teacher=BrightRowTeacher(), loss=fedkd.KD(ce_weight=0, kd_weight=1, temperature="auto"))
    trained.build(["a", "b", "c"], (1, 8, 8))
    with pytest.raises(fedkd.FedKDError, match=r"KD takes something.*call module\.fit_to_teacher\(facts\) first"):
        trainer(tmp_path, max_epochs=1).fit(trained, pairs)
    logits = torch.cat([trained.teacher(batch) for batch, _ in pairs])
    trained.fit_to_teacher(local_facts(trained.loss, logits))
    trainer(tmp_path, max_epochs=1).fit(trained, pairs)

    frozen = module(teacher=BrightRowTeacher(), loss=FrozenHead())
    frozen.build(["a", "b", "c"], (1, 8, 8))
    features = torch.cat([frozen.teacher.features(batch) for batch, _ in pairs])
    frozen.fit_to_teacher(local_facts(frozen.loss, features, features, frozen.teacher.head))
    trainer(tmp_path, max_epochs=1).fit(frozen, pairs)


def test_cached_features_stand_for_the_teacher():
    class Absent(BrightRowTeacher):
        def features(self, images):
            assert len(images) == 1, "the teacher ran although its outputs were cached"  # 1: to ask for its size
            return torch.zeros(1, 3)

    trained = module(teacher=Absent(), loss=FeatureMSE(ce_weight=0))
    trained.build(["a", "b", "c"], (1, 8, 8))
    trained.log_dict = lambda *args, **kwargs: None
    pixels, targets, answers = torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.long), torch.randn(4, 3)
    batch = Batch(pixels, targets, torch.arange(4), answers, teacher_features=answers + 1)
    expected = (trained.student.features_and_logits(pixels)[0] - answers - 1).square().mean()
    torch.testing.assert_close(trained.training_step(batch, 0), expected)
    with pytest.raises(fedkd.FedKDError, match="needs the teacher's features, and the batch has its logits alone"):
        trained.training_step(Batch(pixels, targets, torch.arange(4), answers), 0)


def test_without_a_teacher_nothing_is_added():
    trained = module(loss=FrozenHead())
    trained.build(["a", "b", "c"], (1, 8, 8))
    assert isinstance(trained.student, LinearStudent)
    assert trained.describe()["projection"] is None


def test_a_teacher_of_logits_alone_has_no_head_to_freeze():
    class Whole(BrightRowTeacher):
        def forward(self, images):
            return self.features(images)

    trained = module(teacher=Whole(), loss=FrozenHead())
    trained.build(["a", "b", "c"], (1, 8, 8))
    facts = local_facts(trained.loss, torch.zeros(5, 3), np.random.default_rng(0).normal(size=(5, 3)))
    with pytest.raises(fedkd.FedKDError, match="FrozenHead needs a teacher with a head on its features"):
        trained.fit_to_teacher(facts)


def test_a_second_build_wraps_once():
    trained = module(teacher=BrightRowTeacher(), loss=FeatureMSE())
    trained.build(["a", "b", "c"], (1, 8, 8))
    first = trained.student
    trained.build(["x", "y", "z"], (1, 8, 8))
    assert trained.student is first
    assert isinstance(first.student, LinearStudent)
    assert isinstance(first.projector, nn.Linear)


def test_a_head_given_is_used_as_it_is():
    teacher = BrightRowTeacher()
    teacher.head = LinearClassifier(torch.eye(3), torch.ones(3), 2.0)
    trained = module(teacher=teacher, loss=FrozenHead())
    trained.build(["a", "b", "c"], (1, 8, 8))
    features = torch.randn(9, 3)
    trained.fit_to_teacher(local_facts(trained.loss, teacher.head(features), features, teacher.head))
    mean, scale = feature_moments(feature_sums(features))
    z = (features - mean) / scale
    found = z @ trained.student.head_weight.T + trained.student.head_bias
    torch.testing.assert_close(found.softmax(1), teacher.head(features).softmax(1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.loss", "DKD", "--model.loss.temperature", "auto"], None),
        (["--model.loss", "FrozenHead", "--model.loss.distance", "cosine"], None),
        (["--model.loss", "DKKD"], "model.loss: Unknown class 'DKKD'. Did you mean 'DKD'? Choose one of: "),
        (["--model.loss", "DKD", "--model.loss.temperature", "automatic"], "automatic"),
        (["--model.loss", "DKD", "--model.loss.kd_weight", "1"], "Unknown option 'kd_weight'"),
    ],
)
def test_a_loss_is_named_on_the_command_line(capsys, arguments, message):
    quiet = ["fit", "--model.teacher", "null", *arguments, "--print_config"]
    with pytest.raises(SystemExit) as stop:
        main(quiet)
    printed = capsys.readouterr()
    if message is None:
        loss = yaml.safe_load(printed.out)["model"]["loss"]
        assert loss["class_path"].endswith(arguments[1])
        assert loss["init_args"][arguments[2].split(".")[-1]] == arguments[3]
    else:
        assert stop.value.code == 2
        assert message in printed.err
        assert len(printed.err.splitlines()) == 1
