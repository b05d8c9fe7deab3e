"""A backbone that is adapted federatedly is better than the frozen one, and the cache knows it for another."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pool_teachers import InvertedTeacher
from protocols import adapt, federation_data, fit_head, prepare

from fedkd.core.errors import FedKDError
from fedkd.core.storage import cache_dir
from fedkd.data import Digits, ImageSet
from fedkd.server.backends import InProcess, ProcessPool
from fedkd.server.exchange import Traffic
from fedkd.server.setup import Connections
from fedkd.teachers import EnsembleTeacher, GaussianPrivacy, LoRA, LoRATeacher, RidgeHead
from fedkd.teachers.lora import load_adapted

pytest.importorskip("peft")

TINY = LoRA(rank=4, rounds=1, lr=1e-2)


@pytest.fixture(autouse=True)
def _own_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start without adapters of the tests before."""
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path / "adapters"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a tiny ViT of random weights, for images of 16 by 16."""
    import transformers as t

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vit")
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    t.ViTModel(t.ViTConfig(**size, image_size=16, patch_size=8)).save_pretrained(folder)
    t.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def digits() -> tuple[ImageSet, ImageSet]:
    """Return digits to train on, and others."""
    return Digits().load()


def shards(count: int, clients: int = 2) -> list[np.ndarray]:
    """Deal images out, and leave the last client without any."""
    return [np.arange(count)[start::clients] for start in range(clients)] + [np.empty(0, np.int64)]


def weights(teacher: LoRATeacher) -> dict[str, torch.Tensor]:
    """Copy the backbone's weights."""
    return {name: value.clone() for name, value in teacher.model.state_dict().items()}


def test_adapted_teaches_better_than_frozen(checkpoint: str, digits: tuple, tmp_path: Path) -> None:
    train, test = digits
    loss, outputs = [], []
    for lora in (LoRA(rounds=1, lr=1e-12), LoRA(rounds=5, lr=3e-3)):
        teacher = LoRATeacher(checkpoint, lora=lora)
        outputs.append(prepare(teacher, train, test, shards(len(train), 4), cache=tmp_path))
        loss.append(float(F.cross_entropy(outputs[-1].test_logits, test.targets)))
    assert loss[1] < 0.85 * loss[0]
    assert outputs[1].accuracy > outputs[0].accuracy + 0.02


def test_the_mean_of_two_clients_by_hand(checkpoint: str, digits: tuple) -> None:
    """After a round with equal shards the weights are half way between what either client alone would have learned.

    That needs A to be the same and to stay as it is; and the head is the same, since it is fitted to all.
    """
    train = digits[0].subset(np.arange(60))
    both, teachers = LoRATeacher(checkpoint, lora=TINY), []
    before = weights(both)
    adapt(both, train, [np.arange(0, 30), np.arange(30, 60)])
    head = both.head_method
    for client, shard in enumerate((np.arange(0, 30), np.arange(30, 60))):
        alone = LoRATeacher(checkpoint, lora=TINY)

        class Same(RidgeHead):
            def fit(self, clients: Any) -> Any:
                frozen = LoRATeacher(checkpoint)
                with torch.no_grad():
                    everything = frozen.features(train.images.float() / 255).numpy()
                return fit_head(head, everything, train.targets, [np.arange(60)], 10)

        alone.head_method = Same()
        adapt(alone, train, [np.empty(0, np.int64)] * client + [shard])
        teachers.append(weights(alone))
    changed = 0
    for name, value in weights(both).items():
        torch.testing.assert_close(value, (teachers[0][name] + teachers[1][name]) / 2, rtol=0, atol=1e-5)
        changed += not torch.equal(value, before[name])
    assert changed == 2 * 6  # the linear layers of two blocks; biases, norms and embeddings stay


def test_adaptation_is_frozen_merged_kept_and_in_the_fingerprint(
    checkpoint: str, digits: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = digits[0].subset(np.arange(40))
    teacher = LoRATeacher(checkpoint, lora=TINY)
    names, before, identity = list(weights(teacher)), teacher.fingerprint(), teacher.identity()
    assert adapt(teacher, train, shards(40)).up > 0
    assert list(weights(teacher)) == names  # no trace of adapters
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    after = teacher.fingerprint()
    assert after != before
    assert adapt(teacher, train, shards(40)) == Traffic()  # nothing happens
    assert teacher.fingerprint() == after
    assert teacher.identity() == identity  # a resumed run has not adapted yet when it asks
    assert LoRATeacher(checkpoint, lora=LoRA(seed=1)).identity() != LoRATeacher(checkpoint, lora=LoRA()).identity()

    again = LoRATeacher(checkpoint, lora=TINY)
    with monkeypatch.context() as patch:
        patch.setattr(LoRATeacher, "_train", None)  # it is not needed
        assert adapt(again, train, shards(40)) == Traffic()
    assert again.fingerprint() == after
    (kept,) = cache_dir("adapters").glob("*.safetensors")
    content = kept.read_bytes()
    kept.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    computed = LoRATeacher(checkpoint, lora=TINY)
    with pytest.warns(UserWarning, match=rf"{kept.name}' is damaged.*The adapter is learned again"):
        adapt(computed, train, shards(40))
    assert kept.read_bytes() == content
    assert computed.fingerprint() == after  # the same seed, the same bits
    with pytest.raises(FedKDError, match="adapted to other clients already"):
        adapt(teacher, train, [np.arange(40)])


def test_bytes_are_counted_by_hand(checkpoint: str, digits: tuple) -> None:
    train = digits[0].subset(np.arange(20))
    teacher = LoRATeacher(checkpoint, lora=LoRA(rank=3, rounds=2, layers=["q_proj", "query"]), head=RidgeHead(0.1))
    dim = teacher.feature_dim
    cost = adapt(teacher, train, shards(20))
    b = 2 * 32 * 3 * 4  # two blocks, (out, r) float32
    head = fit_head(RidgeHead(0.1), np.zeros((20, dim), np.float32), train.targets, [np.arange(20)], 10)
    classifier = 4 * (dim * 10 + 10 + 1)  # weight, bias and scale, which the adapter is trained through
    # two rounds; the two clients with images have ten each, so each sends what one with all would
    two = fit_head(RidgeHead(0.1), np.zeros((20, dim), np.float32), train.targets, np.split(np.arange(20), 2), 10)
    assert two.bytes_up == 2 * head.bytes_up
    assert cost.up == 2 * (two.bytes_up + 2 * b)
    assert cost.down == 2 * (two.bytes_down + 2 * (b + classifier))


@pytest.mark.slow
def test_workers_load_the_teachers_own_class(
    checkpoint: str, digits: tuple, pool: ProcessPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = digits[0].subset(np.arange(40))

    def adapted(kind: type[LoRATeacher], backend: Any) -> dict[str, torch.Tensor]:
        folder = tmp_path / f"{kind.__name__}-{type(backend).__name__}"
        monkeypatch.setenv("FEDKD_CACHE", str(folder))  # no adapter is kept there yet
        teacher = kind(checkpoint, lora=TINY)
        connect = Connections(backend)
        teacher.adapt(federation_data(train, train, shards(40)), connect)
        assert connect.traffic.up > 0
        return weights(teacher)

    here, there = (adapted(InvertedTeacher, backend) for backend in (InProcess(), pool))
    assert all(torch.equal(here[name], there[name]) for name in here)
    plain = adapted(LoRATeacher, InProcess())
    assert not all(torch.equal(here[name], plain[name]) for name in here)


def test_a_class_that_a_worker_cannot_load(checkpoint: str) -> None:
    class Local(LoRATeacher):
        pass

    for name, message in (
        (
            Local(checkpoint, lora=TINY).recipe()["class"],
            "cannot import the teacher's class '.*Local'.*at the top level of a module",
        ),
        ("fedkd.teachers:RidgeHead", "must be a LoRATeacher, got 'fedkd.teachers:RidgeHead'"),
    ):
        with pytest.raises(FedKDError, match=message):
            load_adapted({**LoRATeacher(checkpoint, lora=TINY).recipe(), "class": name}, "cpu")


def test_in_an_ensemble(checkpoint: str, digits: tuple, tmp_path: Path) -> None:
    train = digits[0].subset(np.arange(40))
    member = LoRATeacher(checkpoint, lora=TINY)
    alone = prepare(LoRATeacher(checkpoint, lora=TINY), train, train, shards(40), cache=tmp_path)
    outputs = prepare(EnsembleTeacher([member]), train, train, shards(40), cache=tmp_path)
    assert member.adapted is not None
    assert 0 < outputs.head_bytes <= alone.head_bytes  # an adaptation that is on disk sends nothing
    torch.testing.assert_close(outputs.logits, alone.logits.log_softmax(1), rtol=1e-3, atol=1e-3)
    assert math.isfinite(outputs.accuracy)


def test_errors(checkpoint: str, digits: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FedKDError, match="rank must be >= 1, got 0"):
        LoRA(rank=0)
    with pytest.raises(FedKDError, match="A private head with LoRA protects nothing"):
        LoRATeacher(checkpoint, head=RidgeHead(privacy=GaussianPrivacy(1.0)))
    with pytest.raises(FedKDError, match=r"LoRA cannot adapt ViTModel at layers \['nowhere'\]"):
        adapt(LoRATeacher(checkpoint, lora=LoRA(layers=["nowhere"])), digits[0], shards(9))
    with pytest.raises(FedKDError, match="no client has an image"):
        adapt(LoRATeacher(checkpoint, lora=TINY), digits[0], [np.empty(0, np.int64)])
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(FedKDError, match=r"pip install 'fedkd\[lora\]'"):
        LoRATeacher(checkpoint)
