from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from limits import files_up_to
from PIL import Image

import fedkd.data.images.folder as folder_module
from fedkd.core.errors import FedKDError, MissingResourceError
from fedkd.core.storage import cache_dir
from fedkd.data import FederatedDataModule, ImageFolder, ImageSet


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for i, name in enumerate(("train/dog/1.png", "train/dog/0.bmp", "train/cat/sub/2.PNG", "test/dog/3.webp")):
        save(tmp_path / "pets" / name, noise(i, 4, 5, 3))
    (tmp_path / "pets/train/cat/notes.txt").write_text("not an image")
    (tmp_path / "pets/train/.hidden").mkdir()
    return tmp_path / "pets"


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(folder_module, "decode_file", refuse)


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path_factory.mktemp("cache")))


def cache_files() -> list[Path]:
    return list(cache_dir("images").iterdir())


def same(one: tuple[ImageSet, ImageSet], other: tuple[ImageSet, ImageSet]) -> bool:
    return [a.fingerprint for a in one] == [b.fingerprint for b in other]


def test_files_are_read_by_class_in_sorted_order(root: Path) -> None:
    train, test = ImageFolder(root).load()
    assert train.classes == test.classes == ("cat", "dog")
    assert train.targets.tolist() == [0, 1, 1]  # cat/sub/2.PNG, dog/0.bmp, dog/1.png
    expected = np.stack([noise(2, 4, 5, 3), noise(1, 4, 5, 3), noise(0, 4, 5, 3)]).transpose(0, 3, 1, 2)
    assert np.array_equal(train.images.numpy(), expected)
    assert test.targets.tolist() == [1]


def test_second_load_does_not_decode(root: Path, request: pytest.FixtureRequest) -> None:
    first = ImageFolder(root).load()
    request.getfixturevalue("no_decoding")
    assert same(ImageFolder(root).load(), first)
    assert same(ImageFolder(str(root) + "/../pets").load(), first)
    with pytest.raises(AssertionError, match="decoded again"):
        ImageFolder(root, image_size=4).load()


def test_cached_images_can_be_written_to_without_changing_the_cache(root: Path) -> None:
    first = ImageFolder(root).load()
    ImageFolder(root).load()[0].images.zero_()
    assert same(ImageFolder(root).load(), first)


@pytest.mark.parametrize("change", ["content", "touch", "add", "remove", "rename", "class"])
def test_a_changed_folder_is_decoded_anew(root: Path, change: str, request: pytest.FixtureRequest) -> None:
    ImageFolder(root).load()
    path = root / "train/dog/1.png"
    if change == "content":
        save(path, noise(9, 4, 5, 3))
        assert np.array_equal(ImageFolder(root).load()[0].images[2].numpy(), noise(9, 4, 5, 3).transpose(2, 0, 1))
        assert len(cache_files()) == 1  # replaced, not piled up
        save(path, noise(8, 4, 5, 3))
    elif change == "touch":
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    elif change == "add":
        save(root / "train/cat/new.png", noise(7, 4, 5, 3))
    elif change == "remove":
        path.unlink()
    elif change == "rename":
        path.rename(path.with_name("7.png"))
    elif change == "class":
        save(root / "train/ant/0.png", noise(6, 4, 5, 3))
    request.getfixturevalue("no_decoding")
    with pytest.raises(AssertionError, match="decoded again"):
        ImageFolder(root).load()


@pytest.mark.parametrize("damage", ["truncated", "bit", "empty", "garbage"])
def test_a_damaged_cache_is_rebuilt(root: Path, damage: str, request: pytest.FixtureRequest) -> None:
    first = ImageFolder(root).load()
    (cache,) = cache_files()
    whole = cache.read_bytes()
    flipped = bytearray(whole)
    flipped[-20] ^= 1
    cache.unlink()  # an old mapping may still look at it
    cache.write_bytes({"truncated": whole[:-9], "bit": bytes(flipped), "empty": b"", "garbage": b"x" * 500}[damage])
    assert same(ImageFolder(root).load(), first)
    request.getfixturevalue("no_decoding")
    assert same(ImageFolder(root).load(), first)


def test_image_size_crops_the_center_of_the_shorter_side(tmp_path: Path) -> None:
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 4:20] = 200  # the square in the middle, 8:16, and as far as the filter sees
    save(tmp_path / "train/a/wide.png", wide)
    save(tmp_path / "train/a/tall.png", wide.transpose(1, 0, 2))
    checkers = (np.indices((8, 8)).sum(0) % 2 * 254).astype(np.uint8)
    save(tmp_path / "train/a/checkers.png", checkers)
    save(tmp_path / "test/a/small.png", noise(0, 4, 4, 3))
    train, test = ImageFolder(tmp_path, image_size=4).load()
    assert train.image_shape == (3, 4, 4)
    checkered, tall, wide_fitted = train.images
    assert (tall == 200).all()
    assert (wide_fitted == 200).all()
    assert ((checkered.int() - 127).abs() < 20).all()  # antialiased: not a quarter of the pixels, but their mean
    assert np.array_equal(test.images[0].numpy(), noise(0, 4, 4, 3).transpose(2, 0, 1))


def test_mixed_sizes_ask_for_image_size(root: Path) -> None:
    save(root / "train/dog/9.png", noise(0, 7, 5, 3))
    with pytest.raises(FedKDError, match=r"train/dog/9.png is 7x5 .* 4x5: resize .*image_size"):
        ImageFolder(root).load()


def test_gray_folder_keeps_one_channel(tmp_path: Path) -> None:
    for part in ("train", "test"):
        save(tmp_path / part / "a/0.png", noise(0, 4, 4))
    assert np.array_equal(ImageFolder(tmp_path).load()[0].images[0, 0].numpy(), noise(0, 4, 4))


def test_what_is_missing_is_named_in_one_line(root: Path, tmp_path: Path) -> None:
    for path, message in ((tmp_path / "nowhere", "nowhere does not exist"), (root / "train", "has no folder train/")):
        with pytest.raises(MissingResourceError, match=message) as error:
            ImageFolder(path).load()
        assert "\n" not in str(error.value)
    (root / "test/dog/3.webp").unlink()
    with pytest.raises(MissingResourceError, match="test has no image"):
        ImageFolder(root).load()


def test_unknown_test_class_and_bad_file_are_named(root: Path) -> None:
    broken = save(root / "test/dogs/0.png", noise(0, 4, 5, 3))
    with pytest.raises(FedKDError, match=r"'dogs'\. Did you mean 'dog'\?"):
        ImageFolder(root).load()
    broken.unlink()
    broken.parent.rmdir()
    (root / "train/cat/broken.jpg").write_bytes(b"not a JPEG")
    with pytest.raises(FedKDError, match=r"broken\.jpg could not be read as an image"):
        ImageFolder(root).load()


@pytest.mark.parametrize("size", [0, -3])
def test_image_size_is_checked(size: int) -> None:
    with pytest.raises(FedKDError, match="image_size must be >= 1"):
        ImageFolder("x", image_size=size)


def test_real_images_equal_pils(shared: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    archive = shared / "data/cifar10-5k.tar.xz"
    if not archive.exists():
        pytest.skip(f"needs {archive}, which is not there")
    count: dict[str, int] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            parent = member.name.rpartition("/")[0]
            count[parent] = count.get(parent, 0) + 1
            if member.isfile() and count[parent] <= 20:
                tar.extract(member, tmp_path, filter="data")
    root = tmp_path / "cifar10-5k"
    train, test = ImageFolder(root).load()
    assert len(train) == len(test) == 200
    assert train.classes[:3] == ("airplane", "automobile", "bird")
    for part, data in (("train", train), ("test", test)):
        paths = sorted((root / part).glob("*/*.png"))
        for path, image, target in zip(paths, data.images, data.targets, strict=True):
            assert data.classes[int(target)] == path.parent.name
            assert torch.equal(image, torch.from_numpy(np.asarray(Image.open(path)).transpose(2, 0, 1).copy()))
    request.getfixturevalue("no_decoding")
    assert same(ImageFolder(root).load(), (train, test))


def test_photographs_are_turned_as_their_exif_data_say(tmp_path: Path) -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255  # white on the left; turned by 90 degrees clockwise, white is on top
    exif = Image.Exif()
    exif[0x0112] = 6
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / part / "a" / "1.png", exif=exif)
    for size in (None, 8):
        train, _ = ImageFolder(tmp_path, size).load()
        image = train.images[0, 0].float()
        assert image.shape == ((16, 8) if size is None else (8, 8))
        assert image[: len(image) // 2 - 1].min() == 255
        assert image[len(image) // 2 + 1 :].max() == 0


@pytest.mark.parametrize("name", ["1.tif", "1.TIFF", "1.gif", "1.ppm", "1.pgm"])
def test_more_kinds_of_files_count(tmp_path: Path, name: str) -> None:
    pixels = noise(0, 4, 5) if name.endswith("pgm") else noise(0, 4, 5, 3)
    for part in ("train", "test"):
        save(tmp_path / part / "a" / name, pixels)
    train, _ = ImageFolder(tmp_path).load()
    assert len(train) == 1
    if not name.endswith("gif"):  # which has 256 colors
        assert torch.equal(train.images[0], torch.from_numpy(pixels.reshape(4, 5, -1)).permute(2, 0, 1))


def test_hidden_files_and_folders_and_pipes_are_left_out(root: Path) -> None:
    save(root / "train/dog/.trash/9.png", noise(9, 4, 5, 3))
    (root / "train/dog/._1.png").write_bytes(b"what macOS leaves")
    os.mkfifo(root / "train/dog/pipe.png")
    assert len(ImageFolder(root).load()[0]) == 3


def test_a_class_without_an_image_is_named(root: Path) -> None:
    (root / "train/zebra").mkdir()
    with pytest.raises(FedKDError, match="zebra has no image"):
        ImageFolder(root).load()


def test_links_are_followed_but_not_in_a_circle(root: Path) -> None:
    (root / "train/cat/up").symlink_to("..")
    (root / "train/cat/self").symlink_to(".")
    (root / "train/dog/more").symlink_to(root / "test/dog")
    train, _ = ImageFolder(root).load()
    # the cat's "up" leads to the dogs once, and from there to the test image
    assert torch.bincount(train.targets).tolist() == [1 + 3, 3]


def test_a_class_folder_that_is_not_utf8_is_named(root: Path) -> None:
    os.rename(root / "train/cat", os.fsencode(root / "train") + b"/caf\xe9")
    with pytest.raises(FedKDError, match=r"class folder b'caf\\xe9' in .*train has a name that is not UTF-8"):
        ImageFolder(root).load()


def test_a_file_name_that_is_not_utf8_is_read_and_can_be_printed(root: Path) -> None:
    first = ImageFolder(root).load()
    strange = os.fsencode(root / "train/cat/sub") + b"/\xff.png"
    os.rename(root / "train/cat/sub/2.PNG", strange)
    assert same(ImageFolder(root).load(), first)
    Path(os.fsdecode(strange)).write_bytes(b"no image")
    with pytest.raises(FedKDError, match=r"cat/sub/\\xff\.png could not be read") as raised:
        ImageFolder(root).load()
    str(raised.value).encode()


def test_of_gray_files_one_with_equal_channels_is_gray_too(tmp_path: Path) -> None:
    gray = [noise(i, 4, 5) for i in range(4)]
    save(tmp_path / "train/a/0.png", gray[0])
    save(tmp_path / "train/a/1.png", np.dstack([gray[1]] * 3 + [np.full((4, 5), 255, np.uint8)]))  # RGBA
    save(tmp_path / "train/b/2.png", np.dstack([gray[2]] * 3))
    save(tmp_path / "test/b/3.png", gray[3])
    train, test = ImageFolder(tmp_path).load()
    assert train.images.tolist() == [[each.tolist()] for each in gray[:3]]
    assert test.image_shape == train.image_shape == (1, 4, 5)


def test_of_gray_files_a_colored_one_is_named_and_all_become_rgb(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / f"train/{'ab'[i % 2]}/{i}.png", noise(i, 4, 5))
        save(tmp_path / f"test/{'ab'[i % 2]}/{i}.png", noise(i + 5, 4, 5))
    save(tmp_path / "train/b/color.png", noise(9, 4, 5, 3))
    data = FederatedDataModule(ImageFolder(tmp_path))
    with pytest.warns(UserWarning, match=r"1 of 4 images are colored, the first is train/b/color\.png"):
        data.setup()
    assert data.train.images[-1].tolist() == noise(9, 4, 5, 3).transpose(2, 0, 1).tolist()
    assert data.test.images[0].tolist() == [noise(5, 4, 5).tolist()] * 3


def test_files_that_are_all_rgb_stay_rgb(tmp_path: Path) -> None:
    for part in ("train", "test"):
        save(tmp_path / part / "a/0.png", np.dstack([noise(1, 4, 5)] * 3))
    assert [data.image_shape for data in ImageFolder(tmp_path).load()] == [(3, 4, 5)] * 2


def test_without_room_in_the_cache_images_are_read_all_the_same(root: Path) -> None:
    first = ImageFolder(root, image_size=64).load()
    (cache,) = cache_files()
    cache.unlink()
    with pytest.warns(UserWarning, match="Decoded images are not kept"), files_up_to(10_000):
        again = ImageFolder(root, image_size=64).load()
    assert same(again, first)
    assert not cache_files()
