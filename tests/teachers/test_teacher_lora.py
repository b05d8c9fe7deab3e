"""A backbone that is adapted federatedly is better than the frozen one, and the cache knows it for another."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fedkd.core.errors import FedKDError
from fedkd.core.storage import cache_dir
from fedkd.data import Digits, ImageSet
from fedkd.teachers import EnsembleTeacher, GaussianPrivacy, LoRA, LoRATeacher, RidgeHead, prepare_teacher

pytest.importorskip("peft")

TINY = LoRA(rank=4, rounds=1, lr=1e-2)


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
    loss, signals = [], []
    for lora in (LoRA(rounds=1, lr=1e-12), LoRA(rounds=5, lr=3e-3)):
        teacher = LoRATeacher(checkpoint, lora=lora)
        signals.append(prepare_teacher(teacher, train, test, shards(len(train), 4), cache=tmp_path))
        loss.append(float(F.cross_entropy(signals[-1].test_logits, test.targets)))
    assert loss[1] < 0.85 * loss[0]
    assert signals[1].accuracy > signals[0].accuracy + 0.02


def test_the_mean_of_two_clients_by_hand(checkpoint: str, digits: tuple) -> None:
    """After a round with equal shards the weights are half way between what either client alone would have learnt.

    That needs A to be the same and to stay as it is; and the head is the same, since it is fitted to all.
    """
    train = digits[0].subset(np.arange(60))
    both, teachers = LoRATeacher(checkpoint, lora=TINY), []
    before = weights(both)
    both.adapt(train, [np.arange(0, 30), np.arange(30, 60)])
    head = both.head_method
    for client, shard in enumerate((np.arange(0, 30), np.arange(30, 60))):
        alone = LoRATeacher(checkpoint, lora=TINY)

        class Same(RidgeHead):
            def fit(self, features: np.ndarray, targets: Any, shards: Any, num_classes: int) -> Any:
                frozen = LoRATeacher(checkpoint)
                with torch.no_grad():
                    everything = frozen.features(train.images.float() / 255).numpy()
                return head.fit(everything, targets, [np.arange(60)], num_classes)

        alone.head_method = Same()
        alone.adapt(train, [np.empty(0, np.int64)] * client + [shard])
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
    cost = teacher.adapt(train, shards(40))
    assert list(weights(teacher)) == names  # no trace of adapters
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    after = teacher.fingerprint()
    assert after != before
    assert teacher.adapt(train, shards(40)) == cost  # nothing happens
    assert teacher.fingerprint() == after
    assert teacher.identity() == identity  # a resumed run has not adapted yet when it asks
    assert LoRATeacher(checkpoint, lora=LoRA(seed=1)).identity() != LoRATeacher(checkpoint, lora=LoRA()).identity()

    again = LoRATeacher(checkpoint, lora=TINY)
    with monkeypatch.context() as patch:
        patch.setattr(LoRATeacher, "_train", None)  # it is not needed
        assert again.adapt(train, shards(40)) == cost
    assert again.fingerprint() == after
    for file in cache_dir("adapters").iterdir():
        file.unlink()
    computed = LoRATeacher(checkpoint, lora=TINY)
    computed.adapt(train, shards(40))
    assert computed.fingerprint() == after  # the same seed, the same bits
    with pytest.raises(FedKDError, match="adapted to other clients already"):
        teacher.adapt(train, [np.arange(40)])


def test_bytes_are_counted_by_hand(checkpoint: str, digits: tuple) -> None:
    train = digits[0].subset(np.arange(20))
    teacher = LoRATeacher(checkpoint, lora=LoRA(rank=3, rounds=2, layers=["q_proj", "query"]), head=RidgeHead(0.1))
    dim = teacher.feature_dim
    cost = teacher.adapt(train, shards(20))
    b = 2 * 32 * 3 * 4  # two blocks, (out, r) float32
    head = RidgeHead(0.1).fit(np.zeros((20, dim), np.float32), train.targets, [np.arange(20)], 10)
    assert cost.bytes_up == 2 * 2 * (head.bytes_up + b)  # two rounds, two clients with images
    assert cost.bytes_down == 2 * 2 * (head.bytes_down + b)


def test_in_an_ensemble(checkpoint: str, digits: tuple, tmp_path: Path) -> None:
    train = digits[0].subset(np.arange(40))
    member = LoRATeacher(checkpoint, lora=TINY)
    alone = prepare_teacher(LoRATeacher(checkpoint, lora=TINY), train, train, shards(40), cache=tmp_path)
    signal = prepare_teacher(EnsembleTeacher([member]), train, train, shards(40), cache=tmp_path)
    assert member.adapted is not None
    assert signal.head_bytes == alone.head_bytes > member.adapted[1].bytes_up
    torch.testing.assert_close(signal.logits, alone.logits.log_softmax(1), rtol=1e-3, atol=1e-3)
    assert math.isfinite(signal.accuracy)


def test_errors(checkpoint: str, digits: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FedKDError, match="rank must be >= 1, got 0"):
        LoRA(rank=0)
    with pytest.raises(FedKDError, match="A private head with LoRA protects nothing"):
        LoRATeacher(checkpoint, head=RidgeHead(privacy=GaussianPrivacy(1.0)))
    with pytest.raises(FedKDError, match=r"LoRA cannot adapt ViTModel at layers \['nowhere'\]"):
        LoRATeacher(checkpoint, lora=LoRA(layers=["nowhere"])).adapt(digits[0], shards(9))
    with pytest.raises(FedKDError, match="no client has an image"):
        LoRATeacher(checkpoint, lora=TINY).adapt(digits[0], [np.empty(0, np.int64)])
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(FedKDError, match=r"pip install 'fedkd\[lora\]'"):
        LoRATeacher(checkpoint)
