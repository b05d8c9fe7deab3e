"""A file with a checksum: whole, or refused."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load, save

from fedkd.core.errors import MissingResourceError
from fedkd.core.messages import metadata_of
from fedkd.core.sealed import DamagedFileError, is_intact, read_sealed, sealed

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2], dtype=torch.int64)}
CONTENT = sealed(save(TENSORS, metadata={"fedkd": '{"sha256":"none"}', "run": "x"}))


def test_it_stays_safetensors() -> None:
    found = load(CONTENT)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in found)
    assert metadata_of(CONTENT)["fedkd"] == '{"sha256":"none"}'
    assert is_intact(CONTENT)
    assert int.from_bytes(CONTENT[:8], "little") % 8 == 0


def test_every_flipped_bit_is_found() -> None:
    for bit in range(8 * len(CONTENT)):
        flipped = bytearray(CONTENT)
        flipped[bit // 8] ^= 1 << bit % 8
        assert not is_intact(bytes(flipped)), bit


def test_whatever_else_is_done_to_it_is_found() -> None:
    rng = random.Random(0)
    others = [b"", b"x", CONTENT[:-1], CONTENT + b"x", CONTENT[1:], save(TENSORS), save(TENSORS, {"sha256": "0" * 64})]
    others += [b"\xff" * 8 + CONTENT[8:], (10**9).to_bytes(8, "little") + CONTENT[8:]]
    others += [b"\x02" + bytes(7) + b"[]", b"\x20" + bytes(7) + b'{"__metadata__":{"sha256":5}}   ']
    for _ in range(300):
        start, stop = sorted(rng.randrange(len(CONTENT)) for _ in range(2))
        others.append(CONTENT[:start] + rng.randbytes(rng.randrange(1, 40)) + CONTENT[stop:])
    assert not any(is_intact(other) for other in others)


@pytest.mark.slow
def test_the_same_content_has_the_same_bytes_in_every_process() -> None:
    script = (
        "import torch, hashlib; from safetensors.torch import save; from fedkd.core.sealed import sealed;"
        "whole = sealed(save({'a': torch.ones(3)}, {'x': '1', 'y': '2', 'z': '3'}));"
        "print(hashlib.sha256(whole).hexdigest())"
    )
    runs = [subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout for _ in range(3)]
    assert len(set(runs)) == 1
    assert len(runs[0]) == 65


def test_a_file_is_named(tmp_path) -> None:
    path = tmp_path / "one.safetensors"
    with pytest.raises(MissingResourceError, match=r"one\.safetensors"):
        read_sealed(path)
    path.write_bytes(CONTENT)
    assert read_sealed(path) == CONTENT
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(DamagedFileError, match=r"one\.safetensors"):
        read_sealed(path)
    with pytest.raises(DamagedFileError, match="cannot be read"):
        read_sealed(tmp_path)
