"""Whatever people bring as a student: it is taken, or refused in one line."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
import torchvision
from helpers import LinearStudent, datamodule, images, module, same, weights
from torch import nn

import fedkd
from fedkd.runs.student_file import student_path, write_student
from fedkd.strategies import FedMD
from fedkd.students import LogitsStudent, as_student, create, register, students
from fedkd.training.stacked import reason_against_stacking


class Returns(nn.Module):
    """Returns what a function makes of its logits."""

    def __init__(self, make):
        super().__init__()
        self.net, self.make = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), make

    def forward(self, images):
        return self.make(self.net(images))


class Output:
    def __init__(self, logits):
        self.logits = logits


@pytest.mark.parametrize("make", [Output, lambda logits: {"logits": logits, "loss": None}], ids=["object", "mapping"])
def test_the_logits_of_an_output_are_taken(make):
    model = Returns(make)
    student = as_student(model, 3, (1, 8, 8))
    assert isinstance(student, LogitsStudent)
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(student(images), model.net(images))
    plain = LinearStudent()
    assert as_student(plain, 3, (1, 8, 8)) is plain


@pytest.mark.parametrize("make", [lambda logits: (logits, logits), lambda logits: {"scores": logits}, lambda _: None])
def test_an_output_without_logits_is_one_line(make):
    with pytest.raises(fedkd.FedKDError, match=r"must return logits \(B, K\), or an output .* got a (tuple|dict|None)"):
        as_student(Returns(make), 3, (1, 8, 8))


def test_a_classifier_of_transformers_trains_and_comes_back(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    def vit():
        torch.manual_seed(0)
        shape = {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 3}
        size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        return ViTForImageClassification(ViTConfig(**shape, **size))

    trained = module(vit())
    fedkd.Federation(2, run_dir=tmp_path, trainer={"accelerator": "cpu"}).fit(trained, datamodule())
    images = torch.rand(4, 1, 8, 8)
    loaded = fedkd.load_student(tmp_path, vit())
    with torch.no_grad():
        assert torch.equal(loaded(images), trained.student.eval()(images))
        assert not torch.equal(loaded(images), vit().eval()(images).logits)


def test_a_students_name_may_stand_for_a_model_with_more_than_logits(tmp_path):
    @register("more")
    def more(num_classes, in_channels, image_size):
        return Returns(Output)

    for strategy in (fedkd.FedAvg(), FedMD(["more"])):
        data = fedkd.FederatedDataModule.from_datasets(images(60), images(30, seed=1), public_fraction=0.2)
        trained, run_dir = module("more"), tmp_path / type(strategy).__name__
        run = fedkd.Federation(1, strategy=strategy, run_dir=run_dir, trainer={"accelerator": "cpu"})
        run.fit(trained, data)
        loaded = fedkd.load_student(run_dir if isinstance(strategy, fedkd.FedAvg) else run_dir / "clients" / "0")
        assert loaded(torch.rand(2, 1, 8, 8)).shape == (2, 3)


def test_googlenet_returns_more_in_training():
    model = torchvision.models.googlenet(num_classes=3, aux_logits=True, init_weights=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    student = as_student(model, 3, (3, 224, 224))
    assert isinstance(student, LogitsStudent)
    assert student.train()(torch.rand(2, 3, 224, 224)).shape == (2, 3)
    student = as_student(torchvision.models.resnet18(num_classes=3), 3, (3, 32, 32))
    assert all(not value.any() for name, value in student.state_dict().items() if name.endswith("running_mean"))
    assert before.keys() == model.state_dict().keys()


def test_probing_draws_nothing_and_changes_nothing():
    student = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 3))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    torch.manual_seed(5)
    as_student(student, 3, (1, 8, 8))
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert same(before, dict(student.state_dict()))


def test_lazy_parts_get_their_weights_from_the_seed(tmp_path):
    def run(name):
        trained = module(nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3)))
        fedkd.Federation(1, run_dir=tmp_path / name, trainer={"accelerator": "cpu"}).fit(trained, datamodule())
        return weights(trained)

    assert same(run("one"), run("two"))


class OneCycle(fedkd.DistillationModule):
    """A schedule over all steps of a client, which a Trainer alone knows."""

    steps: ClassVar[list[float]] = []

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.student.parameters(), lr=0.1)
        total = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=total)
        self.steps.append(total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class LeanOneCycle(OneCycle):
    runs_lean = True


@pytest.mark.parametrize("kind", [OneCycle, LeanOneCycle])
def test_a_schedule_over_all_steps(tmp_path, kind):
    found = []
    for folder, each in (("one", kind), ("other", OneCycle)):
        torch.manual_seed(0)
        each.steps.clear()
        trained = each(LinearStudent())
        trainer = {"accelerator": "cpu", "max_epochs": 2}
        fedkd.Federation(2, run_dir=tmp_path / folder, trainer=trainer).fit(trained, datamodule())
        assert set(each.steps) == {4}  # 20 images in batches of 10, twice
        found.append(weights(trained))
    assert same(*found)
    assert reason_against_stacking(LeanOneCycle(LinearStudent()), {"accelerator": "cpu"}) is not None


def test_a_batch_of_one_for_a_batch_norm_names_the_client(tmp_path):
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    data = datamodule(num_clients=2, count=42)  # 21 images each: two batches of 10, and one image
    with pytest.raises(fedkd.ClientError, match=r"Client 0, round 0: A BatchNorm .* batch of one image .* norm: batch"):
        fedkd.Federation(1, run_dir=tmp_path, trainer={"accelerator": "cpu"}).fit(module(student), data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: fedkd.DistillationModule(LinearStudent),
            r"student is the class LinearStudent: give .*Student\(",
        ),
        (lambda: fedkd.DistillationModule(loss=fedkd.KD), "loss is the class KD"),
        (lambda: fedkd.Federation(strategy=fedkd.FedAvg), "strategy is the class FedAvg"),
        (lambda: fedkd.Federation(backend=fedkd.InProcess), "backend is the class InProcess"),
        (lambda: fedkd.FederatedDataModule(fedkd.data.Digits), "dataset is the class Digits"),
    ],
)
def test_a_class_in_place_of_an_instance(make, message):
    with pytest.raises(fedkd.FedKDError, match=message):
        make()


@pytest.mark.parametrize("name", [*students, "timm/vit_tiny_patch16_224", "timm/resnet10t"])
def test_oblong_images(name, tmp_path):
    shape = (1, 48, 16) if name in ("cnn", "resnet8") else (3, 16, 48)
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    trained = fedkd.DistillationModule(name)
    trained.build(("a", "b", "c"), shape)
    assert trained.student(torch.rand(2, *shape)).shape == (2, 3)
    write_student(student_path(tmp_path), trained.student.state_dict(), trained.describe())
    loaded = fedkd.load_student(tmp_path)
    assert same(loaded.state_dict(), trained.student.state_dict())


def test_the_cnn_of_oblong_images_has_a_cell_for_every_four_pixels():
    assert create("cnn", 10, image_size=16, image_width=48).hidden.in_features == 64 * 4 * 12


@pytest.mark.parametrize("error", [AssertionError("Wrong image height!\n  Expected 32"), KeyError("x"), IndexError()])
def test_whatever_a_student_raises_for_such_images_is_one_line(error):
    def fail(_):
        raise error

    said = {"AssertionError": "Wrong image height! Expected 32", "KeyError": "'x'", "IndexError": "IndexError"}
    with pytest.raises(fedkd.FedKDError, match=r"does not take images of shape \(2, 1, 8, 8\): (.*)$") as raised:
        as_student(Returns(fail), 3, (1, 8, 8))
    assert str(raised.value).endswith(said[type(error).__name__])


def test_a_student_without_anything_to_train_is_one_line(tmp_path):
    frozen = LinearStudent().requires_grad_(False)
    with pytest.raises(fedkd.FedKDError, match="The student has no parameter to train"):
        fedkd.Federation(1, trainer={"accelerator": "cpu"}, run_dir=tmp_path).fit(module(frozen), datamodule())


@pytest.mark.parametrize("kind", ["lazy", "compiled", "compiled part", "for a compiled"])
def test_a_students_weights_come_back_whatever_holds_them(kind, tmp_path):
    def lazy():
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(3))

    def plain():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 3))

    def compiled():
        return torch.compile(plain(), backend="eager")

    def part():
        return nn.Sequential(compiled())

    pairs = {
        "lazy": (lazy, lazy),
        "compiled": (compiled, plain),
        "compiled part": (part, lambda: nn.Sequential(plain())),
        "for a compiled": (plain, compiled),
    }
    made, given = pairs[kind]
    trained = module(made())
    fedkd.Federation(1, strategy=fedkd.FedAvg(), trainer={"accelerator": "cpu"}, run_dir=tmp_path).fit(
        trained, datamodule()
    )
    shown = torch.rand(4, 1, 8, 8)
    assert torch.equal(fedkd.load_student(tmp_path, given())(shown), trained.student.eval()(shown))
