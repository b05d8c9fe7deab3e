"""HFDataset: every form in which a data set of HuggingFace's ``datasets`` is found, and what can be wrong with it."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedkd.cli.main import main
from fedkd.core.errors import FedKDError, MissingResourceError
from fedkd.data import HFDataset, ImageSet, Subset

datasets = pytest.importorskip("datasets")

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
LABELS = [0, 1, 2, 0, 1, 2]
FEATURES = {"photo": datasets.Image(), "finding": datasets.ClassLabel(names=["none", "benign", "other"])}


@pytest.fixture(autouse=True)
def _alone(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def table(rows: list[int], **columns: list[Any]) -> Any:
    photos = [Image.fromarray(PIXELS[i]) for i in rows]
    values = {"photo": photos, "finding": [LABELS[i] for i in rows], **columns}
    return datasets.Dataset.from_dict({name: values[name] for name in values}).cast(
        datasets.Features({**FEATURES, **{n: datasets.Value(_dtype(c)) for n, c in columns.items()}})
    )


def _dtype(column: list[Any]) -> str:
    return {int: "int64", str: "string", float: "float32", bool: "bool"}[type(column[0])]


def parts() -> Any:
    train = table([0, 1, 2, 3], hospital=["b", "a", "b", None], age=[30, 40, 50, 60], score=[0.1, 0.2, 0.3, 0.4])
    return datasets.DatasetDict(train=train, test=table([4, 5], hospital=["a", "c"], age=[1, 2], score=[0.0, 0.0]))


def in_a_folder(folder: Path) -> dict[str, Any]:
    parts().save_to_disk(folder / "saved")
    return {"path": folder / "saved"}


def in_parquet_files(folder: Path) -> dict[str, Any]:
    for split, each in parts().items():
        each.to_parquet(folder / f"{split}.parquet")
    return {"path": {split: str(folder / f"{split}.parquet") for split in parts()}}


def in_a_folder_of_parquet_files(folder: Path) -> dict[str, Any]:
    in_parquet_files(folder)
    return {"path": str(folder)}


@pytest.mark.parametrize("write", [in_a_folder, in_parquet_files, in_a_folder_of_parquet_files])
def test_images_labels_classes_and_attributes(write: Callable[[Path], dict[str, Any]], tmp_path: Path) -> None:
    train, test = HFDataset(**write(tmp_path)).load()
    assert np.array_equal(train.images.permute(0, 2, 3, 1).numpy(), PIXELS[:4])
    assert np.array_equal(test.images.permute(0, 2, 3, 1).numpy(), PIXELS[4:])
    assert (train.targets.tolist(), test.targets.tolist()) == ([0, 1, 2, 0], [1, 2])
    assert train.classes == test.classes == ("none", "benign", "other")
    assert {name: values.tolist() for name, values in train.attributes.items()} == {
        "hospital": ["b", "a", "b", ""],
        "age": [30, 40, 50, 60],
    }
    assert test.attributes["hospital"].tolist() == ["a", "c"]


def test_a_second_load_decodes_nothing_and_a_changed_data_set_is_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fedkd.data.images.hf_dataset as module

    source = HFDataset(**in_a_folder(tmp_path))
    first = source.load()
    with monkeypatch.context() as patch:
        patch.setattr(module, "decode_image", None)  # a call would fail
        again = source.load()
    assert [part.fingerprint for part in again] == [part.fingerprint for part in first]
    assert again[0].attributes["hospital"].tolist() == ["b", "a", "b", ""]
    datasets.DatasetDict(train=table([5, 4, 3]), test=table([0])).save_to_disk(tmp_path / "new")
    (tmp_path / "saved").rename(tmp_path / "old")
    (tmp_path / "new").rename(tmp_path / "saved")
    assert source.load()[0].targets.tolist() == [2, 1, 0]


def test_one_table_without_splits_is_split_by_class(tmp_path: Path) -> None:
    table([0, 1, 2, 3, 4, 5], row=list(range(6))).save_to_disk(tmp_path / "one")
    with pytest.raises(FedKDError, match=r"Unknown split of .*one 'test'.* one of: train. test_split null holds out"):
        HFDataset(tmp_path / "one").load()
    train, test = HFDataset(tmp_path / "one", test_split=None, test_fraction=0.5).load()
    assert torch.bincount(train.targets).tolist() == torch.bincount(test.targets).tolist() == [1, 1, 1]
    rows = [*train.attributes["row"], *test.attributes["row"]]
    assert sorted(rows) == list(range(6))
    assert np.array_equal(train.images.permute(0, 2, 3, 1).numpy(), PIXELS[train.attributes["row"].tolist()])


def test_labels_that_are_words_numbers_and_images_that_are_arrays(tmp_path: Path) -> None:
    for name, labels in {"words": ["dog", "cat", "dog", "ant"], "numbers": [3, 1, 3, 0]}.items():
        features = datasets.Features(
            {"pixels": datasets.Array3D((4, 5, 3), "uint8"), "class": datasets.Value(_dtype(labels))}
        )
        each = datasets.Dataset.from_dict({"pixels": PIXELS[:4], "class": labels}, features=features)
        datasets.DatasetDict(train=each, test=each).save_to_disk(tmp_path / name)
    train, test = HFDataset(tmp_path / "words").load()
    assert (train.classes, train.targets.tolist()) == (("ant", "cat", "dog"), [2, 1, 2, 0])
    assert np.array_equal(test.images.permute(0, 2, 3, 1).numpy(), PIXELS[:4])
    numbers = HFDataset(tmp_path / "numbers", image_size=4).load()[0]
    assert (numbers.classes, numbers.image_shape) == (("0", "1", "2", "3"), (3, 4, 4))


def test_parquet_files_that_another_program_wrote_hold_encoded_images(tmp_path: Path) -> None:
    """Without HuggingFace's metadata the column is bytes, or a pair of bytes and path."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = []
    for pixels in PIXELS[:2]:
        Image.fromarray(pixels).save(buffer := io.BytesIO(), "PNG")
        files.append(buffer.getvalue())
    for name, images in {"bytes": files, "pairs": [{"bytes": file, "path": None} for file in files]}.items():
        parquet.write_table(pyarrow.table({"image": images, "label": [1, 0]}), tmp_path / f"{name}.parquet")
        file = str(tmp_path / f"{name}.parquet")
        train, _ = HFDataset({"train": file, "test": file}).load()
        assert np.array_equal(train.images.permute(0, 2, 3, 1).numpy(), PIXELS[:2])


def test_images_of_many_sizes_are_resized(tmp_path: Path) -> None:
    photos = [Image.fromarray(PIXELS[0]), Image.fromarray(PIXELS[1, :3])]
    each = datasets.Dataset.from_dict({"image": photos, "label": [0, 1]})
    datasets.DatasetDict(train=each, test=each).save_to_disk(tmp_path / "sizes")
    with pytest.raises(FedKDError, match=r"but row 1 of split 'train' of .*sizes is 3x5 .* before it are 4x5"):
        HFDataset(tmp_path / "sizes").load()
    assert HFDataset(tmp_path / "sizes", image_size=3).load()[0].image_shape == (3, 3, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"image": "foto"},
            r"Unknown image column of .*saved 'foto'\. Did you mean 'photo'\? Choose one of: age, find",
        ),
        ({"label": "findings"}, r"Unknown label column of .*saved 'findings'\. Did you mean 'finding'\?"),
        ({"label": "photo"}, r"image and label are the same column 'photo'"),
        ({"train_split": "trian"}, r"Unknown split of .*saved 'trian'\. Did you mean 'train'\?"),
        ({"label": "score"}, r"The labels in 'score' of .*saved must be integers or strings, got 0\.\d+\."),
        ({"label": "hospital"}, r"Row 3 of split 'train' of .*saved has no label in 'hospital'\."),
        ({"image": "age"}, r"row 0 of split 'train' of .*saved: An image must have the shape"),
        ({"image": "hospital"}, r"row 0 of split 'train' of .*saved could not be read as an image"),
    ],
)
def test_wrong_names_are_one_line(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(FedKDError, match=message) as error:
        HFDataset(**in_a_folder(tmp_path), **options).load()
    assert "\n" not in str(error.value)


def test_classes_must_agree(tmp_path: Path) -> None:
    other = table([4, 5]).cast_column("finding", datasets.ClassLabel(names=["none", "other", "benign"]))
    datasets.DatasetDict(train=table([0, 1]), test=other).save_to_disk(tmp_path / "two")
    with pytest.raises(FedKDError, match=r"The classes of split 'test' of .* \(none, other, benign\) are not those of"):
        HFDataset(tmp_path / "two").load()
    words = datasets.Dataset.from_dict({"image": [Image.fromarray(PIXELS[0])], "label": ["cat"]})
    dog = datasets.Dataset.from_dict({"image": [Image.fromarray(PIXELS[0])], "label": ["cats"]})
    datasets.DatasetDict(train=words, test=dog).save_to_disk(tmp_path / "words")
    with pytest.raises(FedKDError, match=r"Unknown class in split 'test' of .* 'cats'\. Did you mean 'cat'\?"):
        HFDataset(tmp_path / "words").load()


def test_what_is_not_there_is_one_line_that_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, revision, message in (
        (tmp_path / "none", None, f"The data set {tmp_path / 'none'} does not exist"),
        ("some/where/else", None, "does not exist"),
        ({"train": "a.parquet"}, None, "a.parquet does not exist"),
        (
            "owner/name",
            "v2",
            "'owner/name' at revision 'v2' is no local folder, and on the HuggingFace hub",
        ),
    ):
        with pytest.raises(MissingResourceError, match=message) as error:
            HFDataset(path, revision=revision).load()
        assert "\n" not in str(error.value)
    (tmp_path / "empty.parquet").write_bytes(b"no parquet")
    with pytest.raises(FedKDError, match=r"empty\.parquet could not be read as a data set") as broken:
        HFDataset(tmp_path / "empty.parquet", test_split=None).load()
    assert "\n" not in str(broken.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingResourceError, match=r"pip install 'fedkd\[datasets\]'"):
        HFDataset("owner/name").load()


def test_from_yaml_and_of_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    in_a_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(
        "data:\n  num_clients: 2\n  partitioner: IID\n  dataset: {class_path: HFDataset, init_args: {path: saved}}\n"
    )
    main(["partition", "--config", "run.yaml"])
    assert json.loads((tmp_path / "partition_report.json").read_text())["sizes"] == [2, 2]
    assert "benign" in capsys.readouterr().out
    half = Subset(HFDataset(tmp_path / "saved"), train_fraction=0.5).load()[0]
    assert len(half.attributes["age"]) == len(half) == 3  # 1 of 2, and 1 each of 1: half of one rounds up


def test_from_datasets_takes_the_objects_too() -> None:
    each = parts()["train"].rename_columns({"photo": "image", "finding": "label"})
    found = ImageSet.from_dataset(each)
    assert found.classes == ("none", "benign", "other")
    assert {name: values.tolist() for name, values in found.attributes.items()} == {
        "hospital": ["b", "a", "b", ""],
        "age": [30, 40, 50, 60],
    }
