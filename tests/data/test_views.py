"""V fixed versions of each image: the same in any order, on any number of workers, for every client and run."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedkd.core.errors import FedKDError
from fedkd.data import Augmentation, Batch, BatchLoader, FederatedDataModule, ImageSet, Rows, Views
from fedkd.data.rows import all_features

AUGMENTATION = Augmentation(2, True)
IMAGES = torch.randint(0, 256, (50, 3, 6, 6), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
DATA = ImageSet(IMAGES, torch.arange(50) % 7, tuple("abcdefg"))
V = 4


def loader(indices: list[int] | range = range(50), epoch: int = 0, **arguments) -> BatchLoader:
    options = {"batch_size": 8, "shuffle": True, "seed": 5, "augmentation": Views(V, AUGMENTATION), **arguments}
    outputs = {name: options.pop(name) for name in ("teacher_logits", "teacher_features") if name in options}
    made = BatchLoader(Rows.of(DATA, indices, **outputs), **options)
    made.epoch = epoch
    return made


def by_image(*batches: Batch) -> dict[int, tuple[int, torch.Tensor]]:
    """Return what was shown of each image: its view's number, its pixels."""
    return {int(i): (int(v), image) for b in batches for i, v, image in zip(b.index, b.view, b.images, strict=True)}


def test_a_version_depends_on_image_and_number_alone() -> None:
    for seed in (5, 6):
        for batch in loader(seed=seed):
            expected = AUGMENTATION(IMAGES[batch.index], batch.index, batch.view, 0)
            assert torch.equal(batch.images, expected.float() / 255)


def test_any_order_and_any_number_of_workers_give_the_same() -> None:
    whole = by_image(*loader(epoch=3))
    assert len(whole) == 50
    for workers in (1, 3, 7):
        shares = [list(range(50))[worker::workers][::-1] for worker in reversed(range(workers))]
        parts = [
            batch for share in shares for batch in loader(share, epoch=3, batch_size=workers + 1, shuffle=workers == 3)
        ]
        again = by_image(*parts)
        assert again.keys() == whole.keys()
        for i, (view, image) in whole.items():
            assert again[i][0] == view
            assert torch.equal(again[i][1], image)


def test_epochs_and_seeds_choose_evenly_and_independently() -> None:
    index = torch.arange(20_000)
    views = Views(5, AUGMENTATION)
    one = views.sample(index, 0, 5)[0]
    counts = torch.bincount(one, minlength=5).double()
    assert float(((counts - 4000) ** 2 / 4000).sum()) < 24  # chi-square, mean 4, standard deviation 2.8
    for other in (views.sample(index, 1, 5)[0], views.sample(index, 0, 6)[0]):
        # 1 in 5 agrees by chance: 4000 of 20,000, standard deviation 57
        assert 3700 < int((one == other).sum()) < 4300


def test_every_version_is_shown_some_time_and_no_other() -> None:
    shown = loader()
    seen = {i: set() for i in range(50)}
    for _ in range(40):
        for i, (_, image) in by_image(*shown).items():
            seen[i].add(image.numpy().tobytes())
    index = torch.arange(50)
    versions = [AUGMENTATION(IMAGES, index, torch.tensor(v), 0).float() / 255 for v in range(V)]
    # a view is missed in 40 epochs with probability (3/4)^40 = 1e-5
    assert all(seen[i] == {version[i].numpy().tobytes() for version in versions} for i in range(50))


def test_one_view_is_the_same_in_every_epoch() -> None:
    shown = loader(augmentation=Views(1, AUGMENTATION))
    first, second = by_image(*shown), by_image(*shown)
    assert all(torch.equal(first[i][1], second[i][1]) for i in range(50))
    assert not torch.equal(torch.stack([first[i][1] for i in range(50)]), IMAGES.float() / 255)


@pytest.mark.parametrize("num_views", [1, V])
def test_what_the_teacher_said_follows_image_and_view(num_views: int, tmp_path: Path) -> None:
    logits = torch.randn(50, num_views, 7).half()
    np.save(tmp_path / "features.npy", np.random.default_rng(0).normal(size=(50, num_views, 3)).astype(np.float16))
    features = np.load(tmp_path / "features.npy", mmap_mode="r")
    for batch in loader([40, 3, 17, 8, 25, 0, 49], teacher_logits=logits, teacher_features=features, batch_size=3):
        view = batch.view if num_views > 1 else torch.zeros_like(batch.view)
        assert torch.equal(batch.teacher_logits, logits[batch.index, view].float())
        assert torch.equal(batch.teacher_features, torch.tensor(features[batch.index.numpy(), view.numpy()]).float())
        assert batch.teacher_features.dtype == torch.float32


@pytest.mark.parametrize("augmentation", [None, AUGMENTATION])
def test_outputs_on_the_images_themselves_serve_whatever_is_shown(augmentation: Augmentation | None) -> None:
    features = np.arange(100, dtype=np.float16).reshape(50, 2)
    for batch in loader(augmentation=augmentation, teacher_features=features):
        assert batch.teacher_features.tolist() == [[2 * i, 2 * i + 1] for i in batch.index.tolist()]


@pytest.mark.parametrize("shape", [(50, 3), (50, 1, 3), (50, V, 3)])
@pytest.mark.parametrize("in_file", [False, True])
def test_features_that_are_on_the_device_are_those_that_are_read(in_file: bool, shape: tuple, tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    np.save(tmp_path / "features.npy", features)
    indices = [40, 3, 17, 8, 25, 0, 49]
    settings = {"teacher_features": tmp_path / "features.npy" if in_file else features, "batch_size": 3}
    there = loader(indices, **settings)
    rows = there._own.rows
    there._own.rows = replace(rows, features=all_features(rows.features))  # as on a GPU
    for read, kept in zip(loader(indices, **settings), there, strict=True):
        assert torch.equal(read.teacher_features, kept.teacher_features)
        assert kept.teacher_features.dtype == torch.float32


def test_features_are_read_a_batch_at_a_time(tmp_path: Path) -> None:
    # 800 MB that take no room on the disk
    features = np.lib.format.open_memmap(tmp_path / "f.npy", "w+", np.float16, (50, V, 2_000_000))
    shown = loader(teacher_features=features, batch_size=2)
    tracemalloc.start()
    batch = next(iter(shown))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert batch.teacher_features.shape == (2, 2_000_000)
    assert peak < 50e6


def test_an_empty_shard_has_no_batches() -> None:
    outputs = torch.zeros(50, V, 7)
    assert list(loader([], teacher_logits=outputs, teacher_features=outputs.numpy())) == []


def test_wrong_values_are_named() -> None:
    with pytest.raises(FedKDError, match="views must be >= 1 and <= 10000, got 0"):
        FederatedDataModule(views=0)
    with pytest.raises(FedKDError, match=r"teacher_logits must be of 1 view or 4, as the images are, got 3 views"):
        loader(teacher_logits=torch.zeros(50, 3, 7))
    with pytest.raises(FedKDError, match=r"teacher_features must be of 1 view, as the images are, got 4 views"):
        loader(augmentation=AUGMENTATION, teacher_features=np.zeros((50, V, 7)))
    with pytest.raises(FedKDError, match="teacher_features must have a row for each of the 50 images, got 7"):
        loader(teacher_features=np.zeros((7, V, 7)))


def test_the_datamodule_deals_views_out() -> None:
    pairs = [(image, int(label)) for image, label in zip(IMAGES, DATA.targets, strict=True)]
    data = FederatedDataModule.from_datasets(pairs, pairs, num_clients=2, augmentation=AUGMENTATION, views=3)
    data.setup()
    assert data.image_views == Views(3, AUGMENTATION)
    shards = [data.site(client).train_loader(1) for client in (0, 1)]
    shown = by_image(*(batch for shard in shards for batch in shard))
    central = by_image(*data.train_dataloader())
    assert set(shown) == set(central) == set(range(50))
    for i, (view, image) in [*shown.items(), *central.items()]:
        expected = AUGMENTATION(IMAGES[i][None], torch.tensor([i]), torch.tensor([view]), 0)
        assert torch.equal(image, expected[0].float() / 255)
    assert all(batch.view is None for batch in data.val_dataloader())
    assert FederatedDataModule(views=3).image_views is None  # nothing is done to images


@pytest.mark.gpu
def test_cuda_equals_cpu() -> None:
    cpu = by_image(*loader())
    cuda = by_image(*loader(device="cuda"))
    assert all(cpu[i][0] == cuda[i][0] and torch.equal(cpu[i][1], cuda[i][1].cpu()) for i in range(50))


def test_one_view_is_what_the_views_draw_of_that_number() -> None:
    views = Views(V, AUGMENTATION, seed=3)
    index = torch.arange(50)
    for number in range(V):
        shown = torch.cat(
            [batch.images for batch in BatchLoader(Rows.of(DATA), batch_size=8, augmentation=views.only(number))]
        )
        drawn = views.apply(IMAGES, views.draw(index, torch.full_like(index, number)))
        assert torch.equal(shown, drawn.float() / 255)
