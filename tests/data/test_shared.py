"""Shared images: where they come from, in what order they join a client's batches, and what a batch then holds."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fedkd.data.images.folder as folder_module
from fedkd.core.errors import FedKDError, MissingResourceError
from fedkd.data import (
    Augmentation,
    BatchLoader,
    DeadLeaves,
    FederatedDataModule,
    FolderImages,
    ImageSet,
    PublicImages,
    Rows,
    Unlabeled,
    Views,
)
from fedkd.data.shared_stream import SharedStream

IMAGES = torch.randint(0, 256, (40, 3, 6, 5), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
DATA = ImageSet(IMAGES, torch.arange(40) % 4, tuple("abcd"))
PUBLIC = np.arange(30, 40)


def datamodule(**arguments) -> FederatedDataModule:
    return FederatedDataModule.from_datasets(DATA, DATA, **{"num_clients": 3, "batch_size": 8, **arguments})


def loader(count: int = 20, batch_size: int = 8, seed: int = 0, **settings) -> BatchLoader:
    stream = SharedStream(Unlabeled.of(IMAGES, DATA.classes, PUBLIC).rows(), PublicImages(**settings), seed=seed)
    return BatchLoader(Rows.of(DATA, range(count)), batch_size=batch_size, shuffle=True, shared=stream)


def test_public_images_keep_their_place_and_lose_their_labels() -> None:
    shared = PublicImages().load(DATA, PUBLIC)
    assert shared.data.images is DATA.images  # no copy
    assert shared.indices.tolist() == PUBLIC.tolist()
    assert shared.data.targets.tolist() == [0] * 40
    relabeled = ImageSet(IMAGES, (DATA.targets + 1) % 4, DATA.classes)
    assert PublicImages().load(relabeled, PUBLIC).fingerprint == shared.fingerprint
    assert PublicImages().load(DATA, PUBLIC[:-1]).fingerprint != shared.fingerprint
    with pytest.raises(FedKDError, match=r"needs a public split: set data\.public_fraction"):
        datamodule(shared=PublicImages()).setup()


@pytest.mark.parametrize(
    ("fraction", "own", "expected"), [(0.5, 8, 8), (0.5, 1, 1), (0.75, 4, 12), (0.2, 8, 2), (0.01, 8, 1), (0.0, 8, 0)]
)
def test_how_many_join_a_batch(fraction: float, own: int, expected: int) -> None:
    assert PublicImages(fraction=fraction).joining(own) == expected


def test_every_batch_is_joined_and_the_clients_own_stay_as_they_were() -> None:
    alone = list(BatchLoader(Rows.of(DATA, range(20)), batch_size=8, shuffle=True))
    mixed = loader(fraction=0.5, weight=3.0)
    assert (mixed.num_examples, len(mixed)) == (20, 3)
    batches = list(mixed)
    assert [len(batch.shared.index) for batch in batches] == [8, 8, 4]
    for batch, own in zip(batches, alone, strict=True):
        assert torch.equal(batch.images, own.images)
        assert torch.equal(batch.class_counts, torch.tensor([5, 5, 5, 5]))
        assert batch.shared_weight == 3.0
        assert torch.equal(batch.shared.images, IMAGES[batch.shared.index].float() / 255)
        assert batch.shared.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.shared.targets.tolist() == [0] * len(batch.shared.index)
    assert all(batch.shared is None for batch in loader(fraction=0.0))


def shown(mixed: BatchLoader) -> list[int]:
    return [i for batch in mixed for i in batch.shared.index.tolist()]


def test_all_are_shown_once_before_any_is_shown_again_over_batches_and_epochs() -> None:
    mixed = loader(count=7, fraction=0.5)  # 7 of the 10 shared images an epoch
    epochs = [shown(mixed) for _ in range(10)]
    assert [len(epoch) for epoch in epochs] == [7] * 10
    stream = [i for epoch in epochs for i in epoch]
    passes = [stream[i : i + 10] for i in range(0, 70, 10)]
    assert all(sorted(order) == PUBLIC.tolist() for order in passes)
    assert len({tuple(order) for order in passes}) == 7
    again = loader(count=7, fraction=0.5)
    again.epoch = 6  # what was resumed goes on
    assert shown(again) == epochs[6]
    assert shown(loader(count=7, fraction=0.5, seed=1)) != epochs[0]


def test_shared_images_are_augmented_anew_in_every_pass() -> None:
    augmentation = Augmentation(2, True)
    images = Unlabeled.of(IMAGES, DATA.classes, PUBLIC)
    stream = SharedStream(images.rows(), PublicImages(), seed=4, augmentation=augmentation)
    mixed = BatchLoader(Rows.of(DATA, range(8)), batch_size=8, shared=stream)
    for epoch in range(3):  # positions 8 e .. 8 e + 7 of the stream, passes of 10
        (batch,) = mixed
        number = torch.arange(8 * epoch, 8 * epoch + 8) // 10
        expected = augmentation(IMAGES[batch.shared.index], batch.shared.index, number, 4)
        assert torch.equal(batch.shared.images, expected.float() / 255)


def test_of_fixed_views_the_very_one_comes_with_its_logits_and_features() -> None:
    views = Views(3, Augmentation(2, True))
    logits, features = torch.randn(40, 3, 4), np.random.default_rng(0).random((40, 3, 6), dtype=np.float32)
    stream = SharedStream(
        Unlabeled.of(IMAGES, DATA.classes, PUBLIC).rows(logits, features),
        PublicImages(fraction=0.75),
        augmentation=views,
    )
    seen = set()
    for batch in BatchLoader(Rows.of(DATA, range(20)), batch_size=8, shared=stream):
        index, view = batch.shared.index, batch.shared.view
        drawn = views.apply(IMAGES[index], views.draw(index, view))
        assert torch.equal(batch.shared.images, drawn.float() / 255)
        assert torch.equal(batch.shared.teacher_logits, logits[index, view])
        assert torch.equal(batch.shared.teacher_features, torch.from_numpy(features[index, view]))
        seen |= set(view.tolist())
    assert seen == {0, 1, 2}


def test_clients_and_rounds_have_orders_of_their_own() -> None:
    data = datamodule(public_fraction=0.5, shared=PublicImages())
    logits = torch.zeros(40, 4)

    def order(client: int, seed: int) -> list[int]:
        pools = data.pools(shared_logits=logits)
        return shown(data.site(client, pools=pools).train_loader(seed))

    data.setup()
    client = int(np.argmax([len(shard) for shard in data.shards]))
    assert order(client, 1) == order(client, 1)
    assert order(client, 1) != order(client, 2)
    assert all(batch.shared is None for batch in data.site(client, pools=data.pools()).train_loader(1))


def test_a_plain_trainers_loader_has_them_too() -> None:
    data = datamodule(public_fraction=0.5, shared=PublicImages(fraction=0.2))
    assert [len(batch.shared.index) for batch in data.train_dataloader()] == [2, 2, 1]  # 20 images: 8, 8, 4
    assert all(batch.shared is None for batch in data.val_dataloader())


@pytest.mark.parametrize(
    ("shape", "digest"),
    [((1, 8, 8), "0d4cb5b3f91e9a73"), ((3, 32, 32), "6e67a288fc875e88"), ((3, 6, 5), "6f86d62911ebf47f")],
)
def test_dead_leaves_are_the_same_everywhere(shape: tuple[int, int, int], digest: str) -> None:
    train = ImageSet(torch.zeros(2, *shape, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))
    shared = DeadLeaves(count=4, seed=3).load(train, PUBLIC)
    images = shared.data.images
    assert (images.dtype, tuple(images.shape), len(shared)) == (torch.uint8, (4, *shape), 4)
    assert hashlib.sha256(images.numpy().tobytes()).hexdigest()[:16] == digest
    assert torch.equal(DeadLeaves(count=2, seed=3).load(train, PUBLIC).data.images, images[:2])
    assert not torch.equal(DeadLeaves(count=4, seed=4).load(train, PUBLIC).data.images, images)


def test_dead_leaves_look_like_leaves() -> None:
    images = DeadLeaves(count=50).load(ImageSet(torch.zeros(1, 3, 32, 32).byte(), torch.tensor([0]), ("a",)), PUBLIC)
    pixels = images.data.images.float()
    assert 60 < pixels.std() < 90  # uniform colors have 73.9
    assert 115 < pixels.mean() < 140
    neighbors = (pixels[:, :, :, 1:] == pixels[:, :, :, :-1]).all(1).float().mean((1, 2))
    assert 0.4 < neighbors.min() <= neighbors.max() < 0.98  # patches of one color, with edges
    colors = [len(image.flatten(1).unique(dim=1)[0]) for image in pixels]
    assert 15 < min(colors) <= max(colors) <= 129


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_of_images_of_any_kind_takes_the_datas_shape(
    tmp_path: Path, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "pool"
    (root / "deep" / "er").mkdir(parents=True)
    color = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(color).save(root / "a.png")
    Image.fromarray(color[..., 0]).save(root / "deep" / "gray.png")
    Image.new("RGB", (50, 12), (255, 0, 0)).save(root / "deep" / "er" / "wide.bmp")
    (root / "notes.txt").write_text("not an image")
    train = ImageSet(torch.zeros(1, channels, 6, 5).byte(), torch.tensor([0]), ("a",))
    shared = FolderImages(str(root)).load(train, PUBLIC)
    images = shared.data.images.numpy()
    assert images.shape == (3, channels, 6, 5)
    first, wide, gray = images  # a.png, deep/er/wide.bmp, deep/gray.png
    assert (gray == color[..., 0]).all()
    if channels == 3:
        assert (first == color.transpose(2, 0, 1)).all()
        assert wide.reshape(3, -1).T.tolist() == [[255, 0, 0]] * 30
    else:
        assert (first[0] == np.asarray(Image.fromarray(color).convert("L"))).all()
        assert (wide == 76).all()  # 0.299 * 255

    def refuse(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(folder_module, "decode_file", refuse)
    assert FolderImages(str(root)).load(train, PUBLIC).fingerprint == shared.fingerprint


def test_what_is_missing_or_out_of_range_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingResourceError, match=r"folder of shared images .*/nowhere does not exist"):
        FolderImages(tmp_path / "nowhere").load(DATA, PUBLIC)
    with pytest.raises(MissingResourceError, match=r"has no image to share. Put \.bmp"):
        FolderImages(tmp_path).load(DATA, PUBLIC)
    with pytest.raises(FedKDError, match=r"fraction must be >= 0 and < 1, got 1\.0"):
        PublicImages(fraction=1.0)
    with pytest.raises(FedKDError, match="weight must be >= 0, got -1"):
        PublicImages(weight=-1)
    with pytest.raises(FedKDError, match="count must be >= 1 and <= 10000000, got 0"):
        DeadLeaves(count=0)
