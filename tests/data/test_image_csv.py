"""ImageCSV: what it reads, and errors that name file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedkd.data.images.folder as folder_module
from fedkd.cli.main import main
from fedkd.core.errors import FedKDError, MissingResourceError
from fedkd.data import ImageCSV

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 4, 5, 3), dtype=np.uint8)
ROWS = """path,label,hospital,split
0.png,10,north,train
1.png,2,south,train
2.png,10,north,test
3.png,2,,train
4.png,2,west,val
5.png,2,east,test
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "scans").mkdir()
    for i, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / "scans" / f"{i}.png")
    return tmp_path / "scans"


def write(folder: Path, text: str, name: str = "scans.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def rows_of(images: Any) -> list[int]:
    """Return which of PIXELS the images are."""
    return [int(np.flatnonzero((each == PIXELS).all((1, 2, 3)))[0]) for each in images.permute(0, 2, 3, 1).numpy()]


def test_a_column_of_splits(folder: Path) -> None:
    train, test = ImageCSV(write(folder, ROWS)).load()
    assert (rows_of(train.images), rows_of(test.images)) == ([0, 1, 3], [2, 5])  # image 4 is for validation
    assert train.classes == test.classes == ("2", "10")  # numbers in the order of numbers
    assert (train.targets.tolist(), test.targets.tolist()) == ([1, 0, 0], [1, 0])
    assert train.attributes["hospital"].tolist() == ["north", "south", ""]
    assert test.attributes["hospital"].tolist() == ["north", "east"]
    other = ImageCSV(folder / "scans.csv", test_split="val").load()[1]
    assert rows_of(other.images) == [4]


def test_another_file_and_other_names_as_excel_writes_them(folder: Path) -> None:
    train = write(folder.parent, "\ufeffBild;Befund;n\n0.png;gut;1\n\n1.png; schlecht ;2\n", "a.csv")
    test = write(folder.parent, "n;Befund;Bild\n3;gut;2.png\n", "b.csv")
    source = ImageCSV(train, folder, path="Bild", label="Befund", test_file=test, delimiter=";")
    got_train, got_test = source.load()
    assert (rows_of(got_train.images), rows_of(got_test.images)) == ([0, 1], [2])
    assert got_train.classes == ("gut", "schlecht")
    assert (got_train.targets.tolist(), got_test.targets.tolist()) == ([0, 1], [0])
    assert got_train.attributes["n"].tolist() == ["1", "2"]


def test_a_fraction_of_every_class_is_held_out(folder: Path) -> None:
    text = "file,class\n" + "".join(f"{folder}/{i}.png,{'ab'[i % 2]}\n" for i in range(8))  # absolute paths
    source = ImageCSV(write(folder.parent, text), test_fraction=0.5)
    train, test = source.load()
    assert np.bincount(train.targets).tolist() == np.bincount(test.targets).tolist() == [2, 2]
    assert sorted(rows_of(train.images) + rows_of(test.images)) == list(range(8))
    assert rows_of(source.load()[1].images) == rows_of(test.images)
    with_splits = ImageCSV(write(folder, ROWS + "6.png,10,north,train\n"), test_split=None, test_fraction=0.5)
    train, test = with_splits.load()
    assert sorted(rows_of(train.images) + rows_of(test.images)) == [0, 1, 3, 6]


def test_images_are_decoded_again_only_if_one_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ImageCSV(write(folder, ROWS))
    first = source.load()
    write(folder, ROWS.replace("south", "north"))
    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "decode_file", None)  # a call would fail
        again = source.load()
    assert [part.fingerprint for part in again] == [part.fingerprint for part in first]
    assert again[0].attributes["hospital"].tolist() == ["north", "north", ""]  # the CSV itself is read every time
    Image.fromarray(PIXELS[7]).save(folder / "1.png")
    assert rows_of(source.load()[0].images) == [0, 7, 3]
    write(folder, ROWS.replace("3.png,2", "3.png,10"))
    assert source.load()[0].targets.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("3.png,2", "3.png, ", r"scans\.csv, line 5: column 'label' is empty\."),
        ("3.png", "", r"scans\.csv, line 5: column 'path' is empty\."),
        ("val", "", r"scans\.csv, line 6: column 'split' is empty\."),
        ("1.png,2,", "1.png,", r"scans\.csv, line 3: the row has 3 values for 4 columns\."),
        ("5.png,2", "5.png,3", r"scans\.csv, line 7: Unknown label of a test image '3'.* one of: 10, 2\."),
        ("2.png", "0.png", r"scans\.csv, line 4: the test image .*0\.png is also for training, line 2\."),
        (
            "path",
            "pfad",
            r"scans\.csv has no path column with a usual name \(path, file, .*: set path to one of pfad,",
        ),
        ("hospital", "label", r"scans\.csv has two columns 'label'\."),
        (",train\n", ",training\n", r"Unknown split in column 'split' of .*csv 'train'\. Did you mean 'training'\?"),
        (ROWS, "path,label\n", r"scans\.csv lists no image"),
        ("0.png", ".", r"scans\.csv, line 2: .* is no file\."),
    ],
)
def test_what_is_wrong_is_one_line_with_its_number(folder: Path, old: str, new: str, message: str) -> None:
    assert old in ROWS
    with pytest.raises(FedKDError, match=message) as error:
        ImageCSV(write(folder, ROWS.replace(old, new))).load()
    assert "\n" not in str(error.value)


def test_what_does_not_exist_is_one_line(folder: Path) -> None:
    file = write(folder, ROWS)
    with pytest.raises(MissingResourceError, match=r"The CSV .*none\.csv does not exist"):
        ImageCSV(folder / "none.csv").load()
    message = (
        rf"scans\.csv, line 2: the image {folder.parent}/0\.png does not exist\. 3 of 3 images are missing\. "
        rf"Paths are relative to {folder.parent}: set root"
    )
    with pytest.raises(MissingResourceError, match=message):
        ImageCSV(file, root=folder.parent).load()
    (folder / "3.png").unlink()
    with pytest.raises(MissingResourceError, match=r"line 5: the image .*3\.png does not exist\. Paths are relative"):
        ImageCSV(file).load()
    (folder / "3.png").write_bytes(b"no image")
    with pytest.raises(FedKDError, match=r"3\.png could not be read as an image"):
        ImageCSV(file).load()
    (folder / "latin.csv").write_bytes("path,label\nä.png,ö\n".encode("latin-1"))
    with pytest.raises(FedKDError, match=r"latin\.csv could not be read as a CSV in UTF-8"):
        ImageCSV(folder / "latin.csv").load()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "lable"}, r"Unknown label column of .*scans\.csv 'lable'\. Did you mean 'label'\?"),
        ({"path": "label", "label": "label"}, "path and label are the same column 'label'"),
        ({"delimiter": "::"}, "delimiter must be one character, such as ',' or ';', got '::'"),
        ({"delimiter": ";"}, r"has no path column .*: set path to one of path,label,hospital,split\."),
        ({"test_split": "train"}, "test_split 'train' is train_split"),
        ({"split": "split", "test_file": "t.csv"}, "split 'split' and test_file 't.csv' exclude each other"),
        ({"test_fraction": 1}, "test_fraction must be > 0 and < 1"),
    ],
)
def test_wrong_options_are_one_line(folder: Path, options: dict[str, Any], message: str) -> None:
    file = write(folder, ROWS)
    with pytest.raises(FedKDError, match=message):
        ImageCSV(file, **options).load()


def test_from_the_command_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, ROWS)
    monkeypatch.chdir(folder)
    options = ["--data.dataset", "ImageCSV", "--data.dataset.file", "scans.csv", "--data.dataset.image_size", "3"]
    main(["partition", *options, "--data.partitioner", "IID", "--data.num_clients", "3"])
    assert json.loads((folder / "partition_report.json").read_text())["sizes"] == [1, 1, 1]
