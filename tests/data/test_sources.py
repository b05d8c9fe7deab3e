from __future__ import annotations

import hashlib
import pickle
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets as tv

from fedkd.core.errors import FedKDError, MissingResourceError
from fedkd.data import CIFAR10, CIFAR100, Digits, FashionMNIST, Subset
from fedkd.data.sources import split_off_test
from fedkd.data.splits import stratified_split


def test_digits_are_scikit_learns_split_once_for_all() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    pixels, labels = datasets.load_digits(return_X_y=True)
    train, test = Digits().load()
    everything = sorted((p.tobytes(), y) for p, y in zip(pixels.astype(np.uint8), labels, strict=True))
    got = [
        (np.rint(image.numpy() / (255 / 16)).astype(np.uint8).tobytes(), int(target))
        for data in (train, test)
        for image, target in zip(data.images, data.targets, strict=True)
    ]
    assert sorted(got) == everything
    assert int(train.images.max()) == 255
    assert train.classes == test.classes == tuple("0123456789")
    share = torch.bincount(test.targets) / torch.from_numpy(np.bincount(labels))
    assert ((share - 0.2).abs() < 0.003).all()  # stratified: half an image of 174 is 0.0029
    assert Digits().load()[1].fingerprint == test.fingerprint


def test_digits_have_the_bits_and_the_order_of_earlier_releases() -> None:
    """The fingerprint counts pixels, labels, class names and their order, so every seed's results stay the same."""
    assert [part.fingerprint[:16] for part in Digits().load()] == ["20727f37b22167a3", "baa476e455ec7239"]


@pytest.mark.parametrize("fraction", [0, 1, -0.1])
def test_digits_test_fraction_is_checked(fraction: float) -> None:
    with pytest.raises(FedKDError, match="test_fraction must be > 0 and < 1"):
        Digits(fraction)


def test_stratified_split_counts_by_class_and_grows() -> None:
    targets = np.repeat([4, 0, 7], [100, 10, 3])
    small, large = stratified_split(targets, 0.1, "x"), stratified_split(targets, 0.5, "x")
    assert {int(k): int((targets[small] == k).sum()) for k in (4, 0, 7)} == {4: 10, 0: 1, 7: 0}
    assert {int(k): int((targets[large] == k).sum()) for k in (4, 0, 7)} == {4: 50, 0: 5, 7: 2}
    assert set(small) < set(large)
    assert list(large) == sorted(set(large))
    assert len(stratified_split(targets, 0, "x")) == 0
    assert set(stratified_split(targets, 0.5, "y")) != set(large)


def test_a_test_set_that_would_be_empty_is_one_line() -> None:
    three = Digits().load()[0].subset([0, 1, 2])  # three digits that differ: a fifth of one image is none
    with pytest.raises(FedKDError, match=r"test_fraction 0\.2 of each class makes a test set of 0 of 3 images"):
        split_off_test(three, 0.2)
    with pytest.raises(FedKDError, match="a test set of 3 of 3 images"):
        split_off_test(three, 0.9)


@pytest.fixture
def closed_address() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{server.getsockname()[1]}/"


@pytest.mark.parametrize("source", [CIFAR10, CIFAR100, FashionMNIST])
@pytest.mark.parametrize("download", [True, False])
def test_a_missing_set_is_one_line_that_helps(
    source: type,
    download: bool,
    closed_address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(tv.CIFAR10, "url", closed_address + "cifar.tar.gz")
    monkeypatch.setattr(tv.CIFAR100, "url", closed_address + "cifar.tar.gz")
    monkeypatch.setattr(tv.FashionMNIST, "mirrors", [closed_address])
    with pytest.raises(MissingResourceError) as error:
        source(root=tmp_path / "data", download=download).load()
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"{source.__name__} is not in {tmp_path / 'data'}, and ")
    assert ("could not be downloaded" in message) == download
    assert source.url in message
    assert "set root" in message
    assert capfd.readouterr() == ("", "")


def test_the_default_root_is_in_the_cache() -> None:
    import os

    with pytest.raises(MissingResourceError) as error:
        CIFAR10(download=False).load()
    assert str(Path(os.environ["FEDKD_CACHE"]) / "datasets") in str(error.value)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_cifar10_reads_torchvisions_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / tv.CIFAR10.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    files = {name: rng.integers(0, 256, (4, 3 * 32 * 32), dtype=np.uint8) for name in ("data_batch_1", "test_batch")}
    for name, data in files.items():
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": [3, 1, 0, 9]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(tv.CIFAR10, "train_list", [["data_batch_1", md5(folder / "data_batch_1")]])
    monkeypatch.setattr(tv.CIFAR10, "test_list", [["test_batch", md5(folder / "test_batch")]])
    monkeypatch.setattr(tv.CIFAR10, "meta", {**tv.CIFAR10.meta, "md5": md5(folder / "batches.meta")})
    for name, data in zip(files, CIFAR10(tmp_path).load(), strict=True):
        assert np.array_equal(data.images.numpy().reshape(4, -1), files[name])
        assert data.image_shape == (3, 32, 32)
        assert data.targets.tolist() == [3, 1, 0, 9]
        assert data.classes == tuple("abcdefghij")


def test_fashion_mnist_reads_torchvisions_files(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        header = b"".join(value.to_bytes(4, "big") for value in (0x803, 5, 28, 28))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = b"".join(value.to_bytes(4, "big") for value in (0x801, 5))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + bytes([9, 0, 3, 3, 1]))
    train, test = FashionMNIST(tmp_path).load()
    assert train.image_shape == (1, 28, 28)
    assert np.array_equal(train.images[:, 0].numpy(), pixels)
    assert train.targets.tolist() == [9, 0, 3, 3, 1]
    assert train.classes[9] == "Ankle boot"
    assert test.fingerprint == train.fingerprint


def test_a_subset_keeps_the_same_part_of_every_class_and_smaller_ones_lie_within_larger() -> None:
    whole_train, whole_test = Digits().load()
    train, test = Subset(Digits(), train_fraction=0.25, test_fraction=0.5).load()
    for part, whole, fraction in ((train, whole_train, 0.25), (test, whole_test, 0.5)):
        counts = torch.bincount(whole.targets)
        assert (torch.bincount(part.targets) - fraction * counts).abs().max() <= 0.5
        assert part.classes == whole.classes
    larger = {image.numpy().tobytes() for image in Subset(Digits(), train_fraction=0.5).load()[0].images}
    assert {image.numpy().tobytes() for image in train.images} <= larger
    assert Subset(Digits()).load()[0].fingerprint == whole_train.fingerprint


@pytest.mark.parametrize("name", ["train_fraction", "test_fraction"])
@pytest.mark.parametrize("value", [0, 1.1])
def test_a_subsets_fractions_are_checked(name: str, value: float) -> None:
    with pytest.raises(FedKDError, match=f"{name} must be > 0 and <= 1"):
        Subset(Digits(), **{name: value})
