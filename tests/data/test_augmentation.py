from __future__ import annotations

import pytest
import torch

from fedkd.core.errors import FedKDError
from fedkd.data import Augmentation
from fedkd.data.images.augmentation import splitmix64

N = 20_000


def slow_reference(images: torch.Tensor, tops: list[int], lefts: list[int], flips: list[bool], p: int) -> torch.Tensor:
    out = torch.zeros_like(images)
    _, _, height, width = images.shape
    for b, (top, left, flip) in enumerate(zip(tops, lefts, flips, strict=True)):
        for y in range(height):
            for x in range(width):
                source_y, source_x = y + top - p, (width - 1 - x if flip else x) + left - p
                if 0 <= source_y < height and 0 <= source_x < width:
                    out[b, :, y, x] = images[b, :, source_y, source_x]
    return out


@pytest.mark.parametrize(("channels", "padding", "flip"), [(3, 2, True), (1, 4, True), (3, 3, False), (1, 0, True)])
def test_equals_a_slow_reference_image_by_image(channels: int, padding: int, flip: bool) -> None:
    images = torch.randint(1, 256, (12, channels, 5, 6)).to(torch.uint8)
    augmentation, index, view = Augmentation(padding, flip), torch.arange(100, 112), torch.arange(12)
    draw = augmentation.draw(index, view, 7)
    got = augmentation(images, index, view, 7)
    assert got.dtype == torch.uint8
    assert torch.equal(got, slow_reference(images, *(part.tolist() for part in draw), padding))
    assert not torch.equal(got, images)


def test_splitmix64_gives_the_published_sequence() -> None:
    # Vigna's splitmix64.c from state 1234567: the counters are state, state + gamma, ...
    gamma = 0x9E3779B97F4A7C15
    states = [(1234567 + k * gamma + 2**63) % 2**64 - 2**63 for k in range(3)]
    got = [int(z) % 2**64 for z in splitmix64(torch.tensor(states))]
    assert got == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def chi_square(values: torch.Tensor, bins: int) -> float:
    counts = torch.bincount(values, minlength=bins).double()
    assert len(counts) == bins
    expected = len(values) / bins
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(
    ("index", "view"),
    [(torch.arange(N), torch.zeros(N).long()), (torch.zeros(N).long(), torch.arange(N)), (torch.arange(N), None)],
    ids=["over images", "over views", "along the diagonal"],
)
@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_draws_are_uniform_and_independent(index: torch.Tensor, view: torch.Tensor | None, seed: int) -> None:
    top, left, flip = Augmentation(2, True).draw(index, index if view is None else view, seed)
    # 50 cells of (top, left, flip): mean 49 and standard deviation 10, so 100 is 5 sigma away.
    cells = (top * 5 + left) * 2 + flip
    assert chi_square(cells, 50) < 100
    # Neighbors: pairs of tops, 25 cells, mean 24, standard deviation 7.
    assert chi_square(top[:-1] * 5 + top[1:], 25) < 60
    assert chi_square(flip[:-1].long() * 2 + flip[1:].long(), 4) < 25


def test_seeds_and_views_differ() -> None:
    index, view = torch.arange(N), torch.zeros(N).long()
    augmentation = Augmentation(2, True)

    def cells(view: torch.Tensor, seed: int) -> torch.Tensor:
        top, left, flip = augmentation.draw(index, view, seed)
        return (top * 5 + left) * 2 + flip

    one = cells(view, 0)
    for other in (cells(view + 1, 0), cells(view, 1)):
        # 1 in 50 agrees by chance: 400 of 20,000, standard deviation 20.
        assert 300 < int((one == other).sum()) < 500


def test_any_order_and_any_split_into_batches_gives_the_same() -> None:
    images = torch.randint(0, 256, (40, 3, 8, 8)).to(torch.uint8)
    index, view = torch.randperm(1000)[:40], torch.randint(0, 9, (40,))
    augmentation = Augmentation(2, True)
    whole = augmentation(images, index, view, 3)
    order = torch.randperm(40)
    parts = [augmentation(images[o], index[o], view[o], 3) for o in order.split(7)]
    assert torch.equal(torch.cat(parts), whole[order])


def test_scalar_view_is_that_view_for_all() -> None:
    images, index = torch.randint(0, 256, (9, 3, 8, 8)).to(torch.uint8), torch.arange(9)
    augmentation = Augmentation(2, True)
    assert torch.equal(
        augmentation(images, index, torch.tensor(4), 0), augmentation(images, index, torch.full((9,), 4), 0)
    )


def test_nothing_to_do_is_the_identity() -> None:
    images = torch.randint(0, 256, (9, 3, 8, 8)).to(torch.uint8)
    assert torch.equal(Augmentation()(images, torch.arange(9), torch.arange(9), 0), images)


def test_what_is_off_is_never_drawn() -> None:
    index = torch.arange(100)
    top, left, flip = Augmentation(0, True).draw(index, index, 0)
    assert (int(top.max()), int(left.max())) == (0, 0)
    assert 0 < int(flip.sum()) < 100
    assert not Augmentation(4, False).draw(index, index, 0).flip.any()


def test_negative_padding_is_refused() -> None:
    with pytest.raises(FedKDError, match="crop_padding must be >= 0 and <= 4096, got -1"):
        Augmentation(-1)


@pytest.mark.gpu
def test_cuda_equals_cpu() -> None:
    images, index = torch.randint(0, 256, (64, 3, 8, 8)).to(torch.uint8), torch.arange(64)
    augmentation = Augmentation(2, True)
    cpu = augmentation(images, index, index, 2**62 + 3)
    assert torch.equal(augmentation(images.cuda(), index.cuda(), index.cuda(), 2**62 + 3).cpu(), cpu)
