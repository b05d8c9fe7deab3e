"""Every partitioner, on any labels: each image once, the same for the same seed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd.core.errors import FedKDError
from fedkd.core.sealed import with_checksum
from fedkd.partition import (
    IID,
    ByAttribute,
    ClassAndQuantity,
    ClassSpecific,
    Dirichlet,
    Given,
    Partitioner,
    QuantitySkew,
    Shards,
)

alphas = st.floats(1e-3, 1e3)
few = st.integers(1, 4)
anywhere = st.one_of(  # these take any labels and any number of clients
    st.just(IID()),
    st.builds(Dirichlet, alphas),
    st.builds(QuantitySkew, alphas),
)
choosy = st.one_of(  # these may refuse, in one line
    st.builds(ClassSpecific, few),
    st.builds(Shards, few),
    st.builds(ClassAndQuantity, alphas, few, min_examples=st.integers(0, 2)),
    st.builds(Dirichlet, alphas, min_examples=st.integers(1, 3)),
    st.builds(QuantitySkew, alphas, min_examples=st.integers(1, 3)),
)
labels = st.lists(st.integers(0, 6) | st.integers(-(2**40), 2**40), min_size=1, max_size=50).map(np.array)
numbers = st.integers(1, 12)
seeds = st.integers(0, 2**63)


def is_partition(shards: list[np.ndarray], num_clients: int, among: np.ndarray) -> bool:
    """Whether each image of ``among`` is in one shard, and each shard is sorted."""
    return (
        len(shards) == num_clients
        and all(shard.dtype == np.int64 and np.array_equal(shard, np.sort(shard)) for shard in shards)
        and sorted(np.concatenate(shards).tolist()) == among.tolist()
    )


def twice(partitioner: Partitioner, labels: np.ndarray, num_clients: int, seed: int, among: np.ndarray) -> list:
    """Return the shards, which are the same when they are made again."""
    one, other = (partitioner(labels, num_clients, np.random.default_rng(seed), among) for _ in range(2))
    assert all(map(np.array_equal, one, other))
    return one


@given(anywhere, labels, numbers, seeds, st.data())
def test_each_image_is_in_one_shard(partitioner, labels, num_clients, seed, data):
    chosen = data.draw(st.sets(st.integers(0, len(labels) - 1), min_size=1))
    for among in (np.arange(len(labels)), np.array(sorted(chosen))):
        shards = twice(partitioner, labels, num_clients, seed, among)
        assert is_partition(shards, num_clients, among)
        sizes = sorted(map(len, shards))
        if isinstance(partitioner, IID):
            assert sizes[-1] - sizes[0] <= 1


@given(choosy, labels, numbers, seeds)
def test_one_that_has_conditions_keeps_them_or_refuses_in_one_line(partitioner, labels, num_clients, seed):
    everything = np.arange(len(labels))
    try:
        shards = twice(partitioner, labels, num_clients, seed, everything)
    except FedKDError as error:
        refused = str(error)
    else:
        refused = None
    if refused is not None:
        assert "\n" not in refused
        return
    assert is_partition(shards, num_clients, everything)
    assert min(map(len, shards)) >= getattr(partitioner, "min_examples", 0)
    if isinstance(partitioner, Shards):
        assert max(map(len, shards)) - min(map(len, shards)) <= partitioner.shards_per_client
    if isinstance(partitioner, ClassSpecific):
        assert max(len(np.unique(labels[shard])) for shard in shards) <= partitioner.classes_per_client


@given(labels, numbers, st.data())
def test_groups_are_kept_whole(labels, num_clients, data):
    values = data.draw(st.lists(st.sampled_from("abcdefgh"), min_size=len(labels), max_size=len(labels)))
    groups = len(set(values))
    merged = ByAttribute(values, merge=True)
    if num_clients > groups:
        with pytest.raises(FedKDError, match=f"has {groups} groups for {num_clients} clients"):
            twice(merged, labels, num_clients, 0, np.arange(len(labels)))
        return
    shards = twice(merged, labels, num_clients, 0, np.arange(len(labels)))
    assert is_partition(shards, num_clients, np.arange(len(labels)))
    held = [{values[i] for i in shard} for shard in shards]
    assert sum(map(len, held)) == groups


@given(anywhere, labels, numbers, seeds)
def test_what_is_written_down_is_given_back(tmp_path_factory, partitioner, labels, num_clients, seed):
    shards = partitioner(labels, num_clients, np.random.default_rng(seed))
    path = tmp_path_factory.getbasetemp() / "partition.json"
    path.write_text(json.dumps(with_checksum({"sizes": [1], "indices": [shard.tolist() for shard in shards]})))
    again = Given(path)(labels, num_clients, np.random.default_rng(0))
    assert all(map(np.array_equal, shards, again))
