"""Every snippet of docs/data.md runs as it stands there: Python, YAML and commands, on small data of its file names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fedkd.cli.main import main
from fedkd.data import CIFAR10, FederatedDataModule, ImageSet, ImageSource

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "data.md").read_text()
RNG = np.random.default_rng(0)


def sections() -> dict[str, str]:
    """Return the page's text by heading; what stands before the first is "Your data"."""
    parts = re.split(r"^#+ (.*)\n", PAGE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def blocks(text: str, language: str) -> list[str]:
    """Return the blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def picture() -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (9, 8, 3), dtype=np.uint8))


def folders() -> None:
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            Path("pets", part, name).mkdir(parents=True)
            for i in range(6):
                picture().save(Path("pets", part, name, f"{i}.png"))


def scans() -> None:
    Path("scans").mkdir()
    lines = []
    for i in range(40):
        picture().save(Path("scans", f"{i}.png"))
        lines.append(f"{i}.png,{('benign', 'other')[i % 2]},h{i % 4}")
    write = {"all": lines, "train": lines[:30], "test": lines[30:]}
    for name, rows in write.items():
        Path(f"{name}.csv").write_text("\n".join(["path,label,hospital", *rows]))
    both = [f"{row},{'train' if i < 30 else 'test'}" for i, row in enumerate(lines)]
    Path("scans.csv").write_text("\n".join(["path,label,hospital,split", *both]))


def huggingface() -> None:
    datasets = pytest.importorskip("datasets")
    columns = {"image": [picture() for _ in range(12)], "label": [i % 3 for i in range(12)]}
    table = datasets.Dataset.from_dict({**columns, "hospital": [f"h{i % 4}" for i in range(12)]})
    datasets.DatasetDict(train=table, test=table).save_to_disk("saved")
    for split in ("train", "test"):
        table.to_parquet(f"{split}.parquet")


def small(source: ImageSource) -> tuple[ImageSet, ImageSet]:
    data = ImageSet(torch.zeros(20, 3, 8, 8, dtype=torch.uint8), torch.arange(20) % 10, tuple("0123456789"))
    return data, data


PREPARE = {
    "Your data": folders,
    "Folders": folders,
    "CSV": scans,
    "Natural clients": scans,
    "HuggingFace datasets": huggingface,
}
"""What a section's snippets find on disk."""

SNIPPETS = [name for name, text in sections().items() if re.search(r"^```(python|yaml|bash)", text, re.MULTILINE)]


@pytest.mark.parametrize("section", SNIPPETS)
def test_snippets(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(CIFAR10, "load", small)  # nothing is downloaded here
    if section in PREPARE:
        PREPARE[section]()
    if section == "HuggingFace datasets":
        the_hub_answers(monkeypatch)
    text, ran = sections()[section], 0
    names: dict = {"__name__": "a_module", "FederatedDataModule": FederatedDataModule}
    monkeypatch.setitem(__import__("sys").modules, "a_module", SimpleNamespace(**names))  # for dataclasses
    for code in blocks(text, "python"):
        exec(code, names)
    for value in list(names.values()):
        if isinstance(value, FederatedDataModule):
            value.setup()
            assert sum(map(len, value.shards)) == len(value.train)
            ran += 1
        elif isinstance(value, ImageSource):
            train, test = value.load()
            assert len(train) >= len(test) > 0
            ran += 1
    for config in blocks(text, "yaml"):
        Path("run.yaml").write_text(config)
        main(["partition", "--config", "run.yaml"])
        ran += 1
    for command in blocks(text, "bash"):
        main(shlex.split(command.replace("\\\n", ""))[1:])
        ran += 1
    assert ran


def the_hub_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``datasets`` find the one data set of the hub that the page names, as cut down to two rows a class."""
    import datasets

    table = datasets.Dataset.from_dict({"img": [picture() for _ in range(20)], "label": [i % 10 for i in range(20)]})
    real = datasets.load_dataset

    def load(path, name=None, **options):
        if path != "uoft-cs/cifar10":
            return real(path, name, **options)
        assert (name, options) == (None, {"revision": "main"})
        return datasets.DatasetDict(train=table, test=table)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path("hf").resolve())


def test_every_class_and_every_section_that_the_table_names_is_there() -> None:
    import fedkd.data

    anchors = {re.sub(r"[^\w -]", "", name).lower().replace(" ", "-") for name in sections()}
    named = re.findall(r"\| \[(.*?)\]\(#([\w-]+)\) \|", PAGE)
    assert len(named) >= 5
    for words, anchor in named:
        assert anchor in anchors
        for name in re.findall(r"`(\w+)`", words):
            assert hasattr(fedkd.data, name)
