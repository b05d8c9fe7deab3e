"""PartitionReport: the numbers, the table as printed, the figure as drawn."""

from __future__ import annotations

import io
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from fedkd.core.errors import FedKDError
from fedkd.partition import Dirichlet, PartitionReport
from fedkd.partition.report.figure import KINDS

TARGETS = np.array([0, 0, 1, 1, 1, 2])


@pytest.fixture
def small() -> PartitionReport:
    shards = [np.array([0, 2, 3]), np.array([], dtype=np.int64), np.array([1, 4])]
    return PartitionReport.from_shards(shards, TARGETS, ["cat", "dog", "[red]"], public=1)


def big(num_clients: int, num_classes: int = 10) -> PartitionReport:
    labels = np.arange(40_000) % num_classes
    shards = Dirichlet(0.1)(labels, num_clients, np.random.default_rng(0))
    names = [f"class{k}" for k in range(num_classes)]
    return PartitionReport.from_shards(shards, labels, names)


def printed(report: PartitionReport, table: Table | None = None, width: int = 80) -> list[list[str]]:
    """The words of each line of a table, that of counts if not said otherwise."""
    console = Console(file=io.StringIO(), width=width)
    console.print(table or report.table())
    assert isinstance(console.file, io.StringIO)
    return [line.split() for line in console.file.getvalue().splitlines()]


def test_counts_by_hand(small: PartitionReport) -> None:
    assert small.counts.tolist() == [[1, 2, 0], [0, 0, 0], [1, 1, 0]]
    assert small.counts.dtype == np.int64
    assert small.sizes.tolist() == [3, 0, 2]
    assert small.empty_clients == (1,)
    assert small.num_clients == 3
    assert small.summary() == "3 clients, 5 images, 3 classes, 1 empty client, 1 public image"


def test_tensors_will_do() -> None:
    torch = pytest.importorskip("torch")
    report = PartitionReport.from_shards(
        [torch.tensor([5]), torch.tensor([])], torch.from_numpy(TARGETS), ("a", "b", "c")
    )
    assert report.counts.tolist() == [[0, 0, 1], [0, 0, 0]]


def test_to_dict_is_json(small: PartitionReport) -> None:
    record = json.loads(json.dumps(small.to_dict(), allow_nan=False))
    # client 0 holds (1/3, 2/3): exp of its entropy is 3 / 2^(2/3); client 2 holds (1/2, 1/2)
    assert record.pop("effective_classes") == [pytest.approx(3 / 2 ** (2 / 3)), None, pytest.approx(2)]
    near, none, far = record.pop("js_distance")
    assert none is None
    assert 0 < near < far < 0.1
    skew = record.pop("skew")
    assert skew["sizes"] == {"min": 0, "median": 2, "mean": pytest.approx(5 / 3), "max": 3}
    assert skew["effective_classes"]["mean"] == pytest.approx((3 / 2 ** (2 / 3) + 2) / 2)
    assert (skew["js_distance"]["min"], skew["js_distance"]["max"]) == (near, far)
    assert record == {
        "num_clients": 3,
        "classes": ["cat", "dog", "[red]"],
        "counts": [[1, 2, 0], [0, 0, 0], [1, 1, 0]],
        "sizes": [3, 0, 2],
        "empty_clients": [1],
        "public": 1,
        "validation": 0,
    }


def test_json_beside_the_plot(small: PartitionReport, tmp_path: Path) -> None:
    path = small.write_json(tmp_path / "new" / "partition.json")
    assert json.loads(path.read_text()) == small.to_dict()


def test_what_is_held_out_is_summed_up() -> None:
    report = PartitionReport.from_shards([[0], [2]], TARGETS, ["a", "b", "c"], validation=3)
    assert report.summary() == "2 clients, 2 images, 3 classes, 3 validation images"
    assert report.to_dict()["validation"] == 3


def test_skew_table_by_hand(small: PartitionReport) -> None:
    lines = printed(small, small.skew_table())
    near, far = small.js_distance[[0, 2]]
    rows = [
        ["0", "3", "2", "1.89", f"{near:.3f}"],
        ["1", "0", "0", "·", "·"],
        ["2", "2", "2", "2.00", f"{far:.3f}"],
        ["median", "2.0", "2.0", "1.94", f"{(near + far) / 2:.3f}"],
        ["mean", "1.7", "1.3", "1.94", f"{(near + far) / 2:.3f}"],
    ]
    at = [lines.index(row) for row in rows]
    assert at == sorted(at)


def test_skew_table_of_many_and_of_none() -> None:
    report = big(1234)
    lines = printed(report, report.skew_table())
    assert any(line[:1] == ["49"] for line in lines)
    assert not any(line[:1] == ["50"] for line in lines)
    assert ["mean", "32.4"] in [line[:2] for line in lines]  # 40,000 / 1,234: of all, not of the fifty
    nobody = PartitionReport.from_shards([[], []], TARGETS, ["a", "b", "c"])
    assert ["mean", "0.0", "0.0", "·", "·"] in printed(nobody, nobody.skew_table())


def test_table_by_hand(small: PartitionReport) -> None:
    lines = printed(small)
    assert ["client", "cat", "dog", "[red]", "total"] in lines  # a class name is not markup
    rows = [
        ["0", "1", "2", "·", "3"],
        ["1", "·", "·", "·", "0"],
        ["2", "1", "1", "·", "2"],
        ["all", "2", "3", "·", "5"],
    ]
    at = [lines.index(row) for row in rows]
    assert at == sorted(at)


@pytest.mark.parametrize("num_clients", [1, 100])
def test_table_up_to_a_hundred_clients_in_80_characters(num_clients: int) -> None:
    report = big(num_clients)
    lines = printed(report)
    for client, row in enumerate(report.counts):
        assert [str(client), *(f"{n:,}" if n else "·" for n in row), f"{row.sum():,}"] in lines
    assert ["all", *["4,000"] * 10, "40,000"] in lines
    assert not any("more" in line for line in lines)


def test_table_sums_up_what_is_beyond_the_first_fifty() -> None:
    report = big(1234)
    lines = printed(report)
    rest = report.counts[50:].sum(axis=0)
    assert ["1,184", "more", *(f"{n:,}" for n in rest), f"{rest.sum():,}"] in lines
    assert ["all", *["4,000"] * 10, "40,000"] in lines
    assert any(line[:1] == ["49"] for line in lines)
    assert not any(line[:1] == ["50"] for line in lines)


def test_table_of_many_classes_names_the_largest() -> None:
    counts = np.zeros((2, 100), dtype=np.int64)
    counts[0, [7, 8, 9, 50]] = [5, 1000, 30, 2]
    report = PartitionReport(counts, tuple(f"c{k}" for k in range(100)))
    lines = printed(report)
    assert ["0", "4", "c8", "1,000,", "c9", "30,", "c7", "5", "1,037"] in lines
    assert ["1", "0", "·", "0"] in lines


def test_figure_shows_the_counts(small: PartitionReport) -> None:
    sizes, heat, bar = small.figure().axes
    drawn: np.ma.MaskedArray = np.ma.asarray(heat.images[0].get_array())
    assert drawn.filled(0).tolist() == small.counts.T.tolist()  # classes down, clients across
    assert np.ma.getmaskarray(drawn).tolist() == (small.counts.T == 0).tolist()
    assert {(text.get_position(), text.get_text()) for text in heat.texts} == {
        ((0, 0), "1"),
        ((2, 0), "1"),
        ((0, 1), "2"),
        ((2, 1), "1"),
    }
    assert [label.get_text() for label in heat.get_yticklabels()] == ["cat", "dog", "[red]"]
    (crosses,) = sizes.lines
    assert np.asarray(crosses.get_xdata()).tolist() == [1]
    assert bar.get_ylabel() == "images"


def test_figure_of_a_hundred_clients_labels_some() -> None:
    _, heat, _ = big(100).figure().axes
    assert [label.get_text() for label in heat.get_xticklabels()] == [str(i) for i in range(0, 100, 5)]
    assert not heat.texts


def test_bubbles_have_the_area_of_their_counts(small: PartitionReport) -> None:
    sizes, bubbles = small.figure("bubble").axes
    (drawn,) = bubbles.collections
    area = dict(zip(map(tuple, np.asarray(drawn.get_offsets()).tolist()), drawn.get_sizes(), strict=True))
    assert set(area) == {(0, 0), (0, 1), (2, 0), (2, 1)}  # client, class
    assert area[0, 1] == pytest.approx(2 * area[0, 0])
    assert area[0, 0] == pytest.approx(area[2, 0])
    assert bubbles.get_ylim() == (2.5, -0.5)  # classes downwards, and the one without images too
    assert bubbles.get_xlim() == sizes.get_xlim() == (-0.5, 2.5)
    assert [label.get_text() for label in bubbles.get_yticklabels()] == ["cat", "dog", "[red]"]


@pytest.mark.parametrize("kind", ["heat", "bubble"])
@pytest.mark.parametrize(("num_clients", "num_classes"), [(1, 1), (10, 10), (100, 10), (3000, 100)])
def test_plot_writes_a_png(tmp_path: Path, num_clients: int, num_classes: int, kind: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a layout that does not fit is a warning of matplotlib's
        path = big(num_clients, num_classes).plot(tmp_path / "new" / "partition", kind)
    assert path == tmp_path / "new" / "partition.png"
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_plot_of_no_images_at_all(tmp_path: Path) -> None:
    report = PartitionReport.from_shards([np.array([], int)] * 3, TARGETS, ["a", "b", "c"])
    for kind in KINDS:
        assert report.plot(tmp_path / "none.png", kind).stat().st_size > 0  # type: ignore[arg-type]


def test_a_notebook_shows_a_figure_as_an_image(small: PartitionReport) -> None:
    assert small.figure()._repr_png_().startswith(b"\x89PNG")


def test_figure_leaves_pyplot_alone(small: PartitionReport) -> None:
    loaded = "matplotlib.pyplot" in sys.modules
    small.figure()
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def test_bad_format(small: PartitionReport, tmp_path: Path) -> None:
    with pytest.raises(FedKDError, match=r"Unknown plot format 'pgn'\. Did you mean 'png'\?"):
        small.plot(tmp_path / "a.pgn")
    assert not list(tmp_path.iterdir())


def test_bad_kind(small: PartitionReport) -> None:
    with pytest.raises(FedKDError, match=r"Unknown kind of plot 'bubbles'\. Did you mean 'bubble'\?"):
        small.figure("bubbles")  # type: ignore[arg-type]


def test_bad_targets() -> None:
    message = r"targets must lie between 0 and 1, one for each class name; client 1 holds 1 to 2\."
    with pytest.raises(FedKDError, match=message):
        PartitionReport.from_shards([np.array([0]), np.array([4, 5])], TARGETS, ["a", "b"])


def test_bad_counts() -> None:
    with pytest.raises(FedKDError, match=r"counts must be \(clients, 2\), one column per class, got shape \(4, 3\)\."):
        PartitionReport(np.zeros((4, 3), int), ("a", "b"))
