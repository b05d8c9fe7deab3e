"""A run whose clients are SuperNodes has the bits, the bytes and the accuracies of one in one process."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

pytest.importorskip("flwr")

from helpers import same

from fedkd.flower.run_files import load_run
from flower.app import app, fit, nodes, on_grid

IN_THE_SUITE = {
    "the head of a teacher, and the server distills": "",
    "a head in closed form, and held-out images": "--data.public_fraction 0 --model.loss CenteredKD "
    "--federation.strategy ClosedFormHead --data.val_fraction 0.2",
}
FURTHER = {
    "control variates of clients": "--model.teacher null --federation.strategy SCAFFOLD",
    "views, shared images and a temperature": "--federation.teaching consistent --data.views 2 "
    "--data.augmentation.crop_padding 1 --data.shared PublicImages --model.loss.temperature auto "
    "--federation.strategy FedAvg",
    "the teacher's features, and a cohort": "--model.loss FeatureMSE --federation.clients_per_round 2 "
    "--federation.strategy FedAvg",
    "the teacher's frozen head": "--model.loss FrozenHead --federation.strategy FedAvg",
    "students of their own": "--federation.strategy FedMD --federation.strategy.students '[cnn, resnet8]'",
    "several algorithms": "--federation.strategy Compose --federation.strategy.strategies "
    "'[{class_path: SCAFFOLD}, {class_path: FedAdam, init_args: {server_lr: 0.01}}]'",
}
VARIANTS = [
    *(pytest.param(arguments, id=name) for name, arguments in IN_THE_SUITE.items()),
    *(pytest.param(arguments, id=name, marks=pytest.mark.slow) for name, arguments in FURTHER.items()),
]


@pytest.mark.parametrize("arguments", VARIANTS)
def test_the_same_run_on_supernodes(tmp_path: Path, arguments: str):
    config = app(tmp_path, arguments)
    here = load_run(config)
    expected = fit(here, tmp_path / "here")
    there, _ = on_grid(config, nodes(3))  # four clients: one node has two
    found = fit(there, tmp_path / "there")
    for name in ("balanced_accuracy", "per_class_accuracy", "bytes_up", "bytes_down", "client_val_accuracy", "teacher"):
        assert found.get(name) == expected.get(name), name
    students = sorted(path.relative_to(tmp_path / "here") for path in (tmp_path / "here").rglob("student*.safetensors"))
    assert students
    for name in students:
        assert same(load_file(tmp_path / "there" / name), load_file(tmp_path / "here" / name)), name


@pytest.mark.slow
def test_an_adapted_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("peft")
    checkpoint = tiny_vit(tmp_path / "vit")
    lora = "--model.teacher.lora.rounds 1 --model.teacher.lora.rank 2"
    arguments = f"--model.teacher fedkd.teachers.LoRATeacher --model.teacher.checkpoint {checkpoint} {lora}"
    config = app(tmp_path, f"{arguments} --federation.rounds 1 --federation.strategy FedAvg")
    expected = fit(load_run(config), tmp_path / "here")
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path / "cache"))  # where the adapter is not learned yet
    found = fit(on_grid(config, nodes(2))[0], tmp_path / "there")
    assert found["teacher"] == expected["teacher"]
    one, two = (load_file(tmp_path / name / "student.safetensors") for name in ("here", "there"))
    assert same(one, two)


def tiny_vit(folder: Path) -> str:
    """Write a tiny ViT of random weights, for images of 16 by 16."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    t.ViTModel(t.ViTConfig(**size, image_size=16, patch_size=8)).save_pretrained(folder)
    t.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return str(folder)
