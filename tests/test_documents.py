"""The documentation is true: every snippet of every page runs, every link leads somewhere.

A block that no test runs says why in a comment before it, ``<!-- not run: it takes hours -->``. It is still read: its
Python is compiled, its YAML and its commands go through the real parsers.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from documents import PAGES, ROOT, anchors, links, name_of, snippets
from reader import DIGITS, Reader, picture, tiny

from fedkd.cli.main import main

MEASURED = "docs/results.md"
"""The page whose commands take minutes to hours each; what stands for a value or for further options is replaced."""

LANGUAGES = ("python", "yaml", "bash", "toml")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run with a best student."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    options = "--data.num_clients 3 --data.public_fraction 0 --data.val_fraction 0.2 --federation.callbacks SaveBest"
    with pytest.MonkeyPatch.context() as patch:
        Reader(patch)
        main(["fit", "--config", str(ROOT / "examples/quickstart.yaml"), *options.split(), "--run_dir", str(folder)])
    return folder


def folders(finished: Path, root: str = "pets") -> None:
    """Write two classes of pictures into a folder."""
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            Path(root, part, name).mkdir(parents=True)
            for i in range(6):
                picture().save(Path(root, part, name, f"{i}.png"))


def images(finished: Path) -> None:
    """Write pictures where the template "folder" expects them."""
    folders(finished, "images")


def another_run(finished: Path) -> None:
    """Put a finished run beside those that the page makes."""
    shutil.copytree(finished, "runs/other")


def scans(finished: Path) -> None:
    """Write pictures and tables of them: one, two, and one with a column that tells the test set."""
    Path("scans").mkdir()
    lines = []
    for i in range(40):
        picture().save(Path("scans", f"{i}.png"))
        lines.append(f"{i}.png,{('benign', 'other')[i % 2]},h{i % 4}")
    for name, rows in {"all": lines, "train": lines[:30], "test": lines[30:]}.items():
        Path(f"{name}.csv").write_text("\n".join(["path,label,hospital", *rows]))
    both = [f"{row},{'train' if i < 30 else 'test'}" for i, row in enumerate(lines)]
    Path("scans.csv").write_text("\n".join(["path,label,hospital,split", *both]))


def saved_datasets(finished: Path) -> None:
    """Write a HuggingFace data set as such and as parquet."""
    datasets = pytest.importorskip("datasets")
    columns = {"image": [picture() for _ in range(12)], "label": [i % 3 for i in range(12)]}
    table = datasets.Dataset.from_dict({**columns, "hospital": [f"h{i % 4}" for i in range(12)]})
    datasets.DatasetDict(train=table, test=table).save_to_disk("saved")
    for split in ("train", "test"):
        table.to_parquet(f"{split}.parquet")


def runs(finished: Path) -> None:
    """Put finished runs where pages have theirs."""
    for name in ("mine", "a", "b"):
        shutil.copytree(finished, Path("runs", name))


def photos(finished: Path) -> None:
    """Write two pictures without labels."""
    Path("photos").mkdir()
    for i in range(2):
        picture().save(Path("photos", f"{i}.png"))


def writers(finished: Path) -> None:
    """Write who wrote each of the training digits."""
    Path("writers.csv").write_text("\n".join(["writer", *(f"w{i % 12}" for i in range(DIGITS))]))


def quickstart(finished: Path) -> None:
    """Take the quickstart's configuration as one's own."""
    shutil.copy(ROOT / "examples/quickstart.yaml", "run.yaml")


def hub_student(finished: Path) -> None:
    """Let the name of a student on the hub be that of the folder into which the page exports it."""
    Path("me").mkdir()
    Path("me", "my-student").symlink_to("../runs/mine/student_published")


def checkpoint(finished: Path) -> None:
    """Put a teacher's checkpoint into the current folder."""
    shutil.copytree(tiny("dinov2"), "my-checkpoint")


PREPARE: dict[str, list[Callable[[Path], None]]] = {
    "README.md": [photos, images, another_run],
    "docs/data.md": [folders, scans, saved_datasets],
    "docs/getting_started.md": [images],
    "docs/hardware.md": [quickstart],
    "docs/partition.md": [quickstart, runs, scans, writers],
    "docs/runs.md": [quickstart, runs, photos, hub_student],
    "docs/teachers.md": [quickstart, checkpoint],
}
"""What a page's snippets find on disk."""


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=name_of)
def test_snippets(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path / "cache"))
    Path("examples").symlink_to(ROOT / "examples")
    for prepare in PREPARE.get(name_of(page), []):
        prepare(finished)
    reader = Reader(monkeypatch)
    for snippet in snippets(page):
        if name_of(page) == MEASURED:
            snippet = replace(snippet, text=plain(snippet.text), reason="it was measured by hand")
        reader.read(snippet)


def plain(text: str) -> str:
    """Return the commands of a measurement as they are typed: without ``...`` and brackets, with a seed."""
    text = text.replace("_60.yaml ...", "_60.yaml --out runs/compare_closed_form_60")
    text = re.sub(r"\[(--[^\]]*)\]", r"\1", text.replace(" ...", "")).replace("SEED", "0")
    return re.sub(r"^--", "fedkd fit --", text, flags=re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = page if not path else (page.parent / path).resolve()
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_class_and_every_section_that_the_table_of_data_names_is_there() -> None:
    import fedkd.data

    page = ROOT / "docs/data.md"
    named = re.findall(r"\| \[(.*?)\]\(#([\w-]+)\) \|", page.read_text())
    assert len(named) >= 5
    for words, anchor in named:
        assert anchor in anchors(page)
        for name in re.findall(r"`(\w+)`", words):
            assert hasattr(fedkd.data, name)


def test_every_page_is_in_the_navigation() -> None:
    def pages(entry: object) -> list[str]:
        if isinstance(entry, dict):
            return [page for each in entry.values() for page in pages(each)]
        return [page for each in entry for page in pages(each)] if isinstance(entry, list) else [str(entry)]

    listed = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert len(listed) == len(set(listed))
    assert {name_of(page) for page in PAGES} - {"README.md"} <= {f"docs/{page}" for page in listed}
