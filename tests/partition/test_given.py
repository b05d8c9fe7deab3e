"""Given and ByAttribute: every form of file, and every way in which one can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedkd.core.errors import FedKDError, MissingResourceError
from fedkd.partition import ByAttribute, Given, Partitioner
from fedkd.partition.by_attribute import largest_first

OWNERS = [2, 0, 0, 1, 2, 2]
SHARDS = [[1, 2], [3], [0, 4, 5]]


def deal(
    partitioner: Partitioner, num_clients: int = 3, size: int = 6, among: list[int] | None = None
) -> list[list[int]]:
    part = None if among is None else np.array(among)
    return [shard.tolist() for shard in partitioner(np.zeros(size, int), num_clients, np.random.default_rng(0), part)]


def write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    if path.suffix == ".json":
        path.write_text(json.dumps(content))
    elif path.suffix == ".npy":
        np.save(path, content)
    elif path.suffix == ".npz":
        np.savez(path, **content)
    else:
        path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize("clients", [OWNERS, SHARDS, np.array(OWNERS), [np.array(row) for row in SHARDS]])
def test_given_in_python(clients: Any) -> None:
    assert deal(Given(clients)) == SHARDS


@pytest.mark.parametrize(
    ("name", "content", "column"),
    [
        ("a.json", OWNERS, None),
        ("a.json", SHARDS, None),
        ("a.json", {"indices": SHARDS, "sizes": [2, 1, 3]}, None),
        ("a.json", {"indices": [[2], [3], [5, 0]], "val_indices": [[1], [], [4]]}, None),
        ("a.json", {"train": OWNERS, "test": [0]}, "train"),
        ("a.npy", OWNERS, None),
        ("a.npz", {"clients": OWNERS}, None),
        ("a.npz", {"clients": OWNERS, "writers": [1]}, "clients"),
        ("a.csv", "client\n2\n0\n0\n1\n2\n2\n", None),
        ("a.csv", "image,client\r\na.png,2\r\nb.png, 0\r\nc,0\r\nd,1\r\ne,2\r\nf,2\r\n", "client"),
    ],
)
def test_given_in_a_file(tmp_path: Path, name: str, content: Any, column: str | None) -> None:
    path = write(tmp_path, name, content)
    assert deal(Given(str(path), column)) == deal(Given(path, column)) == SHARDS


def test_given_counts_public_images_and_passes_them_over() -> None:
    """Positions are those of the data set: 1 and 4 are public here."""
    for clients in (OWNERS, SHARDS, [2, -1, 0, 1, -1, 2], [[2], [3], [0, 5]]):
        assert deal(Given(clients), among=[0, 2, 3, 5]) == [[2], [3], [0, 5]]


def test_a_client_of_a_list_may_be_empty() -> None:
    assert deal(Given([[], [0, 1, 2, 3, 4, 5], []])) == [[], [0, 1, 2, 3, 4, 5], []]


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        ([0, 1, 1], r"clients must hold one value for each of the 6 training images, .* but has 3 \(the first line"),
        ([0, 1, 2, 3, 1, 1], r"clients has 4 clients: set num_clients to 4, got 3\."),
        ([[0, 1, 2, 3, 4, 5]], r"clients has 1 clients: set num_clients to 1, got 3\."),
        ([0, 1, 2, -2, 1, 1], r"clients must hold clients from 0, or -1 for none, got '-2'\."),
        ([0.0, 1.0, 2.0, 0.0, 1.0, 1.0], r"clients must hold integers or strings, got float64\."),
        (["a", "b", "c", "a", "a", "a"], r"clients must hold clients from 0, or -1 for none, got 'a'\."),
        ([[0, 1], [2, 3], [4, 6]], r"clients: training images have positions 0 to 5, client 2 has 6\."),
        (
            [[0, 1], [2, -3], [4, 5]],
            r"clients: training images have positions 0 to 5, client 1 has -3\.",
        ),
        ([[0, 1], [2, 3], [4, 5, 1]], r"assigns the image at position 1 twice, the second time to client 2\."),
        ([[0, 1], [2, 3, 3], [4, 5]], r"assigns the image at position 3 twice, the second time to client 1\."),
        (
            [[0, 1], [2], [5]],
            r"clients gives 2 of 6 images to no client, the first at position 3\. If they were",
        ),
        ([[0, 1], [2, 0.5], [5]], r"must hold a list of integers for each client, client 1 has 0\.5 in it"),
        ([], r"clients must hold one value for each of the 6 training images"),
        ([[0, 1], 2, [5]], r"must hold a list of integers for each client, got 2 for client 1\."),
        ([[0, 1], [2, [3]], [5]], r"client 1 has \[3\] in it"),
        ([[0, 1], [2, "3"], [5]], r"client 1 has '3' in it"),
        ([[0, 1], [2, True], [5]], r"client 1 has true in it"),
        ([[0, 1], [2, 10**30], [5]], r"positions 0 to 5, client 1 has 10{30}"),
        (
            [5_000_000_000, 1, 2, 0, 1, 2],
            r"clients from 0 to 9,999,999, got 5,000,000,000\. If .* ByAttribute numbers them",
        ),
        (np.full(6, 2**64 - 1, np.uint64), r"clients from 0 to 9,999,999, got 18,446,744,073,709,551,615"),
        (None, r"must hold a list, of the client of each image or of each client's positions, got null"),
        (np.array(3), r"must hold a list, .* got array\(3\)"),
    ],
)
def test_given_wrong(clients: Any, message: str) -> None:
    with pytest.raises(FedKDError, match=message):
        deal(Given(clients))


@pytest.mark.parametrize("kind", [Given, ByAttribute])
@pytest.mark.parametrize(
    ("name", "content", "column", "message"),
    [
        ("a.txt", "0", None, r"a\.txt: the file must end in one of \.csv, \.json, \.npy, \.npz\."),
        ("a.json", {"one": OWNERS, "two": OWNERS}, None, r"2 columns: name one with column, one of: one, two\."),
        ("a.json", {"one": OWNERS}, "oen", r"Unknown column of .*a\.json 'oen'\. Did you mean 'one'\?"),
        ("a.csv", "a,b\n0,1\n2\n", "a", r"a\.csv could not be read \(row 2 has 1 values for 2 columns\)\."),
        ("a.csv", "a,b\n0,1\n2,3\n4,\n5,6\n7,8\n9,0\n", "b", r"has no value for the image at position 2\."),
        ("a.csv", "0\n1\n2\n0\n0\n0\n", None, r"but has 5 \(the first line of a CSV names the columns\)\."),
        ("a.csv", "", None, "has no columns: the first line"),
        ("a.npy", np.array([{}], dtype=object), None, r"a\.npy could not be read"),
    ],
)
def test_files_wrong(tmp_path: Path, kind: Any, name: str, content: Any, column: str | None, message: str) -> None:
    with pytest.raises(FedKDError, match=message):
        deal(kind(str(write(tmp_path, name, content)), column))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"indices": [[0, 1], [2, 3], [4, 5], 7]}', "indices must be a list of lists, one for each client, got 7"),
        ('{"indices": null}', "indices must be a list of lists, one for each client, got null"),
        ('{"indices": [0, 1, 2, 0, 1, 2]}', "indices must be a list of lists, one for each client, got 0"),
        ('{"indices": [[0], [1], [2]], "val_indices": 3}', "val_indices must be a list of lists, .* got 3"),
        ('{"indices": [[0], [1], [2]], "val_indices": [[3]]}', "has indices of 3 clients, and val_indices of 1"),
        ("[" * 100_000 + "]" * 100_000, "could not be read: its lists are nested too deeply"),
        ("3", "must hold a list, .* got 3"),
        ("{}", "has no columns"),
    ],
)
def test_a_damaged_record_of_a_run_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "partition.json"
    path.write_text(text)
    with pytest.raises(FedKDError, match=message) as raised:
        deal(Given(path))
    assert "\n" not in str(raised.value)


def test_a_broken_or_missing_file(tmp_path: Path) -> None:
    for name in ("a.json", "a.npy", "a.npz"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 not one")
        with pytest.raises(FedKDError, match=f"{name} could not be read"):
            deal(Given(str(tmp_path / name)))
    with pytest.raises(MissingResourceError, match=r"none\.json does not exist: it must hold a value for each image\."):
        deal(Given(str(tmp_path / "none.json")))


@pytest.mark.parametrize(
    ("name", "content", "column"),
    [
        ("a.csv", "writer\nz\na\na\nm\nz\nz\n", None),
        (
            "a.csv",
            "\ufeffschreibér,n\nzoë,0\nanaïs,0\nanaïs,0\nmóni,0\nzoë,0\nzoë,0\n",
            "schreibér",
        ),  # as Excel writes it
        ("a.json", {"site": OWNERS, "writer": ["z", "a", "a", "m", "z", "z"]}, "writer"),
        ("a.npy", [30, -1, -1, 4, 30, 30], None),
        ("a.csv", "writer\n10\n1\n1\n2\n10\n10\n", None),  # numbers in the order of numbers: 2 before 10
    ],
)
def test_groups_become_clients_in_their_order(tmp_path: Path, name: str, content: Any, column: str | None) -> None:
    assert deal(ByAttribute(str(write(tmp_path, name, content)), column)) == SHARDS


def test_groups_in_python_and_public_images() -> None:
    assert deal(ByAttribute(["z", "a", "a", "m", "z", "z"])) == SHARDS
    # the one image of "m" is public: its client stays, without images
    assert deal(ByAttribute(["z", "a", "a", "m", "z", "z"]), among=[0, 1, 2, 4]) == [[1, 2], [], [0, 4]]


@pytest.mark.parametrize(
    ("num_clients", "merge", "message"),
    [
        (2, False, r"values has 3 groups for 2 clients: use num_clients=3, or merge=true\."),
        (5, False, r"values has 3 groups for 5 clients: use num_clients=3 or less, with merge=true\."),
        (5, True, r"values has 3 groups for 5 clients: use num_clients=3 or less, with merge=true\."),
    ],
)
def test_groups_that_do_not_fit(num_clients: int, merge: bool, message: str) -> None:
    with pytest.raises(FedKDError, match=message):
        deal(ByAttribute(OWNERS, merge=merge), num_clients)


def test_groups_are_merged_whole_and_about_equal() -> None:
    # by hand: 5 -> 0, 4 -> 1, 3 -> 1 (4 < 5), 3 -> 0 (5 < 7), 2 -> 1 (7 < 8), 1 -> 0 (8 < 9)
    assert largest_first(np.array([3, 5, 1, 4, 2, 3]), 2).tolist() == [1, 0, 0, 1, 1, 0]
    assert deal(ByAttribute(OWNERS, merge=True), 2) == [[0, 4, 5], [1, 2, 3]]
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 300, 5000)
    shards = ByAttribute(groups.tolist(), merge=True)(np.zeros(5000, int), 10, rng)
    assert sum(len(np.unique(groups[shard])) for shard in shards) == 300
    assert np.ptp([len(shard) for shard in shards]) <= 10


def test_a_column_of_the_data_set() -> None:
    attributes = {"hospital": np.array(["z", "a", "a", "m", "z", "z"], dtype=object), "age": [1, 2, 3, 4, 5, 6]}
    partitioner = ByAttribute(column="hospital").for_data(attributes)
    assert partitioner.count_clients(6) == 3
    assert deal(partitioner) == SHARDS
    # by hand: "z" has three images, "a" two, "m" one: client 0 gets "z", client 1 "a", then "m" (2 < 3)
    assert deal(ByAttribute(column="hospital", merge=True).for_data(attributes), 2) == [[0, 4, 5], [1, 2, 3]]
    own = ByAttribute(OWNERS, column="hospital")  # values of one's own go first
    assert own.for_data(attributes) is own


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({}, r"The data set has no column 'hospital', and no other: ByAttribute needs a CSV, HuggingFace data"),
        (
            {"hopsital": OWNERS, "age": OWNERS},
            r"Unknown column of the data set 'hospital'\. Did you mean 'hopsital'\?",
        ),
        ({"hospital": ["a", "b", "", "a", "", "c"]}, r"column 'hospital' has no value for the image at position 2\."),
        ({"hospital": ["a", "b", "c", "d", "a", "a"]}, r"column 'hospital' has 4 groups for 3 clients: use num_cl"),
    ],
)
def test_a_column_of_the_data_set_wrong(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(FedKDError, match=message):
        deal(ByAttribute(column="hospital").for_data(attributes))


def test_by_attribute_must_know_where_values_are() -> None:
    with pytest.raises(FedKDError, match=r"ByAttribute needs column, a column of the data set such as 'hospital', or"):
        ByAttribute()
    with pytest.raises(FedKDError, match=r"column 'hospital' is the data set's: FederatedDataModule reads it, or call"):
        deal(ByAttribute(column="hospital"))


def test_sizes_are_those_of_what_is_dealt_out() -> None:
    """Group 0 has six images, but five are public: it counts for one."""
    values = [0] * 6 + [1] * 3 + [2] * 2
    assert deal(ByAttribute(values, merge=True), 2, 11, among=[5, 6, 7, 8, 9, 10]) == [[6, 7, 8], [5, 9, 10]]
