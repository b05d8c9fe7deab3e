from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from fedkd.core.errors import FedKDError
from fedkd.data import Augmentation, BatchLoader, ImageSet, Rows

IMAGES = torch.randint(0, 256, (50, 3, 6, 6), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
DATA = ImageSet(IMAGES, torch.arange(50) % 7, tuple("abcdefg"))
SHARD = [40, 3, 17, 8, 25, 0, 49]


def order(loader: BatchLoader) -> list[int]:
    return [i for batch in loader for i in batch.index.tolist()]


def test_batches_are_the_shard_in_order_and_keep_the_last_part() -> None:
    loader = BatchLoader(Rows.of(DATA, SHARD), batch_size=3)
    batches = list(loader)
    assert [batch.index.tolist() for batch in batches] == [[40, 3, 17], [8, 25, 0], [49]]
    assert (len(loader), loader.num_examples) == (3, 7)
    for batch in batches:
        assert torch.equal(batch.images, IMAGES[batch.index].float() / 255)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch.targets, batch.index % 7)
        assert batch.teacher_logits is None


def test_shuffle_visits_each_once_in_a_new_order_every_epoch() -> None:
    loader = BatchLoader(Rows.of(DATA, range(50)), batch_size=8, shuffle=True, seed=5)
    epochs = [order(loader) for _ in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    again = BatchLoader(Rows.of(DATA, range(50)), batch_size=3, shuffle=True, seed=5)
    again.epoch = 1  # goes on from there, whatever the batch size
    assert [order(again), order(again)] == epochs[1:]
    assert order(BatchLoader(Rows.of(DATA, range(50)), batch_size=8, shuffle=True, seed=6)) != epochs[0]


def test_an_unused_iterator_costs_no_epoch() -> None:
    loader = BatchLoader(Rows.of(DATA, SHARD), batch_size=3, shuffle=True)
    iter(loader)
    assert order(loader) == order(BatchLoader(Rows.of(DATA, SHARD), batch_size=3, shuffle=True))


@pytest.mark.parametrize("shuffle", [False, True])
def test_augmentation_is_by_index_and_epoch(shuffle: bool) -> None:
    augmentation = Augmentation(2, True)
    loader = BatchLoader(Rows.of(DATA, SHARD), batch_size=4, shuffle=shuffle, seed=11, augmentation=augmentation)
    for epoch in range(2):
        for batch in loader:
            expected = augmentation(IMAGES[batch.index], batch.index, torch.tensor(epoch), 11)
            assert torch.equal(batch.images, expected.float() / 255)
            assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_teacher_logits_follow_their_image(dtype: torch.dtype) -> None:
    logits = torch.randn(50, 7).to(dtype)
    for batch in BatchLoader(Rows.of(DATA, SHARD, teacher_logits=logits), batch_size=3, shuffle=True):
        assert batch.teacher_logits is not None
        assert batch.teacher_logits.dtype == torch.float32
        assert torch.equal(batch.teacher_logits, logits[batch.index].float())


def test_an_empty_shard_has_no_batches() -> None:
    loader = BatchLoader(Rows.of(DATA, []), batch_size=3, shuffle=True, augmentation=Augmentation(1, True))
    assert (list(loader), len(loader), loader.num_examples) == ([], 0, 0)


def test_iterating_leaves_images_and_global_randomness_alone() -> None:
    before, state = IMAGES.clone(), torch.get_rng_state()
    list(BatchLoader(Rows.of(DATA, range(50)), batch_size=8, shuffle=True, augmentation=Augmentation(2, True)))
    assert torch.equal(DATA.images, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"indices": [3, 50]}, r"0\.\.49, got 3\.\.50"),
        ({"indices": [-1]}, r"0\.\.49, got -1\.\.-1"),
        ({"teacher_logits": torch.zeros(7, 7)}, "each of the 50 images, got 7 rows"),
    ],
)
def test_wrong_values_are_named(kwargs: dict, message: str) -> None:
    with pytest.raises(FedKDError, match=message):
        Rows.of(DATA, **{"indices": SHARD, **kwargs})


def test_a_batch_needs_an_image() -> None:
    with pytest.raises(FedKDError, match="batch_size must be >= 1, got 0"):
        BatchLoader(Rows.of(DATA, SHARD), batch_size=0)


@pytest.mark.gpu
def test_cuda_batches_equal_cpu_batches() -> None:
    def batches(device: str) -> list:
        options = {"batch_size": 3, "shuffle": True, "seed": 2, "augmentation": Augmentation(2, True)}
        outputs = {"teacher_logits": torch.ones(50, 7).half(), "teacher_features": np.ones((50, 2), np.float16)}
        return list(BatchLoader(Rows.of(DATA, SHARD, **outputs), device=device, **options))

    for cpu, cuda in zip(batches("cpu"), batches("cuda"), strict=True):
        assert all(tensor.is_cuda for tensor in cuda)
        assert all(torch.equal(a, b.cpu()) for a, b in zip(cpu, cuda, strict=True))


def test_rows_are_copied_to_a_device_once_whatever_a_teacher_says_of_them() -> None:
    device, rows = torch.device("meta"), Rows.of(DATA, SHARD, teacher_logits=torch.ones(50, 7))
    there = rows.on(device)
    assert (there.pixels.device, there.pixels.shape, there.logits.shape) == (device, (7, 6, 6, 3), (7, 1, 7))
    assert rows.on(device) is there
    others = rows.with_outputs(torch.zeros(7, 4, 7))
    assert others.on(device).pixels is there.pixels
    assert others.on(device).logits.shape == (7, 4, 7)
    assert rows.with_outputs(None).on(device).logits is None


def test_what_lies_on_a_device_is_no_part_of_a_pickle() -> None:
    rows = Rows.of(DATA, SHARD)
    before = len(pickle.dumps(rows))
    rows.on(torch.device("cpu"))
    assert len(pickle.dumps(rows)) == before
    again = pickle.loads(pickle.dumps(rows))
    assert torch.equal(again.on(torch.device("cpu")).pixels, rows.on(torch.device("cpu")).pixels)


def test_on_the_cpu_pixels_are_the_rows_own() -> None:
    rows = Rows.of(DATA, SHARD)
    assert rows.on(torch.device("cpu")).pixels.data_ptr() == rows.images.data_ptr()
