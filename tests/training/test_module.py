"""The module in a plain Trainer, its metrics by hand, and the teacher's place outside of its state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import BrightRowTeacher, LinearStudent, datamodule, images, module, same, weights
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader

import fedkd
from fedkd.data import Batch, Digits, FederatedDataModule, Subset
from fedkd.partition import IID


def trainer(tmp_path, **arguments):
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(default_root_dir=tmp_path, **{**quiet, "enable_checkpointing": False, **arguments})


def test_a_plain_trainer_learns_from_all_the_data(tmp_path):
    trained = module()
    fit = trainer(tmp_path, max_epochs=20)
    fit.fit(trained, datamodule=datamodule())
    validated = float(fit.callback_metrics["val/accuracy"])
    assert fit.callback_metrics["val/balanced_accuracy"] > 0.95
    assert fit.test(trained, datamodule=datamodule(), verbose=False)[0]["test/accuracy"] == validated


def test_an_ordinary_dataloader_and_a_live_teacher_do(tmp_path):
    pairs = [(image.float() / 255, label) for image, label in images(60)]
    trained = module(teacher=BrightRowTeacher(), loss=fedkd.KD(ce_weight=0, kd_weight=1, temperature=1))
    trained.build(["a", "b", "c"], (1, 8, 8))
    fit = trainer(tmp_path, max_epochs=20)
    fit.fit(trained, DataLoader(pairs, batch_size=10, shuffle=True))
    inputs, targets = torch.stack([p[0] for p in pairs]), torch.tensor([p[1] for p in pairs])
    assert (trained(inputs).argmax(-1) == targets).float().mean() > 0.95  # and the labels were not used
    assert {"train/loss", "train/ce", "train/kd"} <= fit.callback_metrics.keys()


def test_the_teacher_is_outside_of_the_state(tmp_path):
    class Big(BrightRowTeacher):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Linear(1000, 10)

    trained = module(teacher=Big())
    fit = trainer(tmp_path, max_epochs=1, enable_checkpointing=True)
    fit.fit(trained, datamodule=datamodule())
    fit.save_checkpoint(tmp_path / "x.ckpt")
    saved = torch.load(tmp_path / "x.ckpt", weights_only=False)["state_dict"]
    names = {"student.net.1.weight", "student.net.1.bias"}
    assert set(saved) == names
    assert {name for name, _ in trained.named_parameters()} == names
    assert (tmp_path / "x.ckpt").stat().st_size < 20_000


def test_cached_logits_stand_for_the_teacher():
    class Absent(BrightRowTeacher):
        def features(self, images):
            raise AssertionError("the teacher ran although its logits were cached")

    trained = module(teacher=Absent(), loss=fedkd.KD(ce_weight=0, kd_weight=1, temperature=1))
    trained.build(["a", "b", "c"], (1, 8, 8))
    trained.log_dict = lambda *args, **kwargs: None
    batch = Batch(torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.long), torch.arange(4), torch.randn(4, 3))
    expected = fedkd.losses.kd_divergence(trained(batch.images), batch.teacher_logits)
    torch.testing.assert_close(trained.training_step(batch, 0), expected)


def test_a_named_student_takes_the_datas_shape():
    trained = fedkd.DistillationModule("cnn", student_options={"norm": "group"})
    trained.build(["a", "b"], (1, 12, 12))
    assert trained(torch.rand(3, 1, 12, 12)).shape == (3, 2)
    before = weights(trained)
    trained.build(["a", "b"], (1, 12, 12))
    assert same(before, weights(trained))


def test_a_student_that_does_not_fit_is_named():
    with pytest.raises(fedkd.FedKDError, match=r"must return logits of shape \(2, 4\) for 2 images, got \(2, 3\)"):
        module().build("abcd", (1, 8, 8))
    with pytest.raises(fedkd.FedKDError, match=r"does not take images of shape \(2, 3, 8, 8\)"):
        module().build("abc", (3, 8, 8))


def test_wrong_arguments_are_named():
    with pytest.raises(fedkd.FedKDError, match=r"Unknown student 'resnt8'\. Did you mean 'resnet8'"):
        fedkd.DistillationModule("resnt8")
    with pytest.raises(fedkd.FedKDError, match="student_options go with a student given by name"):
        fedkd.DistillationModule(nn.Identity(), student_options={"norm": "group"})


def test_lightning_loads_a_checkpoint_of_a_named_student(tmp_path):
    trained = fedkd.DistillationModule("cnn")
    fit = trainer(tmp_path, max_steps=1)
    fit.fit(trained, datamodule=datamodule())
    fit.save_checkpoint(tmp_path / "x.ckpt")
    loaded = fedkd.DistillationModule.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=False)
    assert same(weights(trained), weights(loaded))
    assert loaded.classes == ("0", "1", "2")


@pytest.mark.parametrize("loss", [fedkd.losses.FrozenHead(), fedkd.losses.FeatureMSE(), fedkd.losses.KD()])
def test_lightning_loads_the_student_that_a_federation_trained(loss, tmp_path):
    data = FederatedDataModule(Subset(Digits(), 0.1), num_clients=2, partitioner=IID())
    trained = fedkd.DistillationModule("cnn", teacher="digits-tiny", loss=loss)
    fedkd.Federation(rounds=1, run_dir=tmp_path / "run", trainer={"accelerator": "cpu"}).fit(trained, data)
    save(trained, tmp_path)
    loaded = fedkd.DistillationModule.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=False)
    assert same(weights(trained), weights(loaded))
    pictures = torch.rand(5, 1, 8, 8)
    assert torch.equal(trained.eval()(pictures), loaded.eval()(pictures))


def test_a_students_own_code_is_in_no_checkpoint_so_it_is_passed(tmp_path):
    trained = module(LinearStudent())
    trained.build(["a", "b", "c"], (1, 8, 8))
    save(trained, tmp_path)
    with pytest.raises(fedkd.FedKDError, match=r"pass load_from_checkpoint\(path, student=\)"):
        fedkd.DistillationModule.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=False)
    loaded = fedkd.DistillationModule.load_from_checkpoint(
        tmp_path / "x.ckpt", weights_only=False, student=LinearStudent()
    )
    assert same(weights(trained), weights(loaded))


def save(trained: fedkd.DistillationModule, folder: Path) -> None:
    """Save a module as Lightning does, without training it."""
    fit = trainer(folder, max_steps=0)
    fit.strategy.connect(trained)
    fit.save_checkpoint(folder / "x.ckpt")


def test_a_built_student_is_not_bent_to_other_data():
    trained = fedkd.DistillationModule("cnn")
    trained.build(["a", "b"], (1, 12, 12))
    with pytest.raises(fedkd.FedKDError, match=r"was built for classes \['a', 'b'\].*make a new DistillationModule"):
        trained.build(["a", "b", "c"], (1, 12, 12))


def test_a_plain_trainer_fits_an_ensembles_weights_to_the_public_split():
    data = datamodule()
    data.public_fraction = 0.5
    teacher = fedkd.teachers.EnsembleTeacher([BrightRowTeacher(), Backwards()], weights="fitted")
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(max_epochs=1, enable_checkpointing=False, **quiet).fit(module(teacher=teacher), datamodule=data)
    right, wrong = teacher.head.weights.tolist()
    assert right > 0.9 > 0.1 > wrong


class Backwards(BrightRowTeacher):
    """Wrong on every image."""

    def features(self, images):
        return -super().features(images)
