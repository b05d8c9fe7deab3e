"""What a notebook shows of data, partition and federation."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser

from helpers import datamodule, images, module

import fedkd
from fedkd.core.notebook import Shown, as_html
from fedkd.data import Datasets, ImageCSV, ImageFolder, ImageSource, Subset


class Text(HTMLParser):
    """Collect the text, and check that each tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.text = [], ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_datamodule_shows_its_arguments_and_then_its_partition():
    data = datamodule(num_clients=2)
    before = Text(data._repr_html_()).text
    assert re.search(r"num_clients +│ 2 ", before)
    assert "list of 60" in before
    assert "client" not in before.replace("num_clients", "")
    data.setup()
    after = Text(data._repr_html_()).text
    sizes = [len(shard) for shard in data.shards]
    assert sum(sizes) == 60
    assert all(re.search(rf"\b{client}\b.*\b{size}\b", after) for client, size in enumerate(sizes))
    assert Text(data.partition_report()._repr_html_()).text.strip() in after


def test_what_is_shown_loads_no_data(tmp_path):
    data = fedkd.FederatedDataModule(ImageCSV(tmp_path / "none.csv"))
    assert "num_clients=10" in repr(data)
    assert str(data) == repr(data)
    assert "none.csv" in Text(data._repr_html_()).text


def test_a_federation_shows_its_arguments():
    federation = fedkd.Federation(7, run_dir="runs/<b>", trainer={"max_epochs": 2})
    assert repr(federation).startswith("Federation(rounds=7, clients_per_round=None, ")
    shown = Text(federation._repr_html_()).text
    assert re.search(r"rounds +│ 7 ", shown)
    assert "'runs/<b>'" in shown
    assert "InProcess(threads=1)" in shown
    assert "{'max_epochs': 2}" in shown


def test_a_summary_is_a_dictionary_and_a_table(tmp_path):
    summary = fedkd.Federation(1, run_dir=tmp_path, trainer={"accelerator": "cpu"}).fit(module(), datamodule())
    written = json.loads((tmp_path / "summary.json").read_text())
    del written["sha256"]
    assert written == json.loads(json.dumps(summary))
    shown = Text(summary._repr_html_()).text
    assert f"{summary['balanced_accuracy']:.1%}" in shown
    assert str(tmp_path) in shown.replace("\n", "")


def test_what_looks_like_markup_is_shown_as_it_is():
    class Odd(Shown):
        def __init__(self, name):
            self.name = name

    assert "'[bold]<i>&'" in Text(Odd("[bold]<i>&")._repr_html_()).text
    assert as_html().startswith("<pre")


def test_a_run_writes_down_its_data_set_without_the_images(tmp_path):
    @dataclass(frozen=True)
    class Mine(ImageSource):
        root: str = "here"

        def load(self):
            raise NotImplementedError

    class Bare(Mine):
        pass

    pairs = images(6)
    assert str(Datasets(pairs, pairs[:2])) == "Datasets(train=list of 6, test=list of 2)"
    inner = str(Subset(Datasets(pairs, pairs), train_fraction=0.5))
    assert inner.startswith("Subset(dataset=Datasets(train=list of 6, test=list of 6), train_fraction=0.5")
    assert str(ImageFolder("photos")).startswith("ImageFolder(root='photos'")
    assert str(Bare("there")) == "Bare(root='there')"
    fedkd.Federation(1, run_dir=tmp_path, trainer={"accelerator": "cpu"}).fit(module(), datamodule())
    settings = json.loads((tmp_path / "summary.json").read_text())["settings"]
    assert settings["data"] == "Datasets(train=list of 60, test=list of 30)"
