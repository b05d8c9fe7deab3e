"""Whatever changes a teacher's features changes its fingerprint."""

from __future__ import annotations

import importlib
import linecache
import subprocess
import sys
import threading
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import fedkd
from fedkd.teachers.outputs.fingerprint import fingerprint


class Attribute(fedkd.Teacher):
    """A teacher that keeps what it is given."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def features(self, images):
        return images.flatten(1)


@dataclass
class Crop:
    """A setting of the user's."""

    size: int


class Resize:
    """An ordinary object of the user's."""

    def __init__(self, size):
        self.size = size


def plus_one(x):
    return x + 1


def plus_two(x):
    return x + 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 2),
        ("a", "b"),
        ([1, {"a": 2}], [1, {"a": 3}]),
        (np.arange(3), np.arange(3) + 1),
        (torch.zeros(2), torch.ones(2)),
        ([torch.zeros(2)], [torch.ones(2)]),
        (Crop(1), Crop(2)),
        (Resize(64), Resize(96)),
        (plus_one, plus_two),
        (lambda x: x * 2, lambda x: x * 3),
        (partial(plus_one, 1), partial(plus_one, 2)),
        ([nn.Conv2d(1, 1, 3, padding=0)], [nn.Conv2d(1, 1, 3, padding=1)]),
    ],
)
def test_every_kind_of_attribute_counts(one, other):
    assert fingerprint(Attribute(one)) == fingerprint(Attribute(one))
    assert fingerprint(Attribute(one)) != fingerprint(Attribute(other))


def test_what_cannot_be_told_apart_is_refused():
    with pytest.raises(fedkd.FedKDError, match=r"cannot distinguish Attribute\.value, a lock.*not_in_features"):
        fingerprint(Attribute(threading.Lock()))


TYPED_IN = """
import torch, fedkd
from torch import nn
from fedkd.teachers.outputs.fingerprint import fingerprint
source = '''
class Block(nn.Module):
    def forward(self, x):
        return {block} * x

class Typed(fedkd.Teacher):
    def __init__(self):
        super().__init__()
        self.block = Block()

    def features(self, images):
        return self.block({factor} * images - 1).flatten(1)
'''
for block, factor in ((1, 2), (1, 2), (1, 3), (5, 2)):
    exec(source.format(block=block, factor=factor))
    print(fingerprint(Typed()))
"""


@pytest.mark.slow
def test_the_constants_of_code_typed_into_an_interpreter_count():
    first, again, constant, child = subprocess.run(
        [sys.executable, "-c", TYPED_IN], capture_output=True, text=True, check=True
    ).stdout.split()
    assert first == again
    assert len({first, constant, child}) == 3


HELPERS = """
import functools
SCALE, TABLE = 2, {{"a": (1, 2)}}

@functools.lru_cache
def scaled(x):
    return {scale} * x
"""
USER = """
import fedkd, helpers, math
OFFSET, UNUSED = {offset}, {unused}

class Deep:
    bias = {bias}

def shifted(x):
    return helpers.scaled(x) + OFFSET + Deep.bias + math.pi

class Mine(fedkd.Teacher):
    def features(self, images):
        return [shifted(image) for image in images]
"""


def test_the_users_functions_and_constants_count_wherever_they_are_and_what_is_not_used_does_not(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def of(scale=1, **values):
        (tmp_path / "helpers.py").write_text(HELPERS.format(scale=scale))
        (tmp_path / "user.py").write_text(USER.format(**{"offset": 1, "unused": 1, "bias": 1, **values}))
        linecache.clearcache()
        for name in ("helpers", "user"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        return fingerprint(importlib.import_module("user").Mine())

    first = of()
    assert of() == of(unused=2) == first
    assert len({first, of(scale=2), of(offset=2), of(bias=2)}) == 4


def test_a_version_counts(monkeypatch):
    before = fingerprint(Attribute(1))
    monkeypatch.setattr("fedkd.teachers.outputs.fingerprint._version", lambda package: f"{package} 99")
    assert fingerprint(Attribute(1)) != before


class Resizing(fedkd.Teacher):
    """Has a transform of torchvision inside."""

    def __init__(self):
        super().__init__()
        self.resize = torchvision.transforms.Resize(8)

    def features(self, images):
        return self.resize(images).flatten(1)


def test_the_version_of_a_package_counts_where_something_of_it_is_inside(monkeypatch, tmp_path):
    (tmp_path / "by_function.py").write_text(
        "import fedkd\nfrom torchvision.transforms.functional import resize\n\n\nclass Teacher(fedkd.Teacher):\n"
        "    def features(self, images):\n        return resize(images, [2, 2]).flatten(1)\n"
    )
    (tmp_path / "without.py").write_text(
        "import fedkd\n\n\nclass Teacher(fedkd.Teacher):\n    def features(self, images):\n"
        "        return images.flatten(1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    teachers = [Resizing(), *(importlib.import_module(name).Teacher() for name in ("by_function", "without"))]
    before = [fingerprint(teacher) for teacher in teachers]

    def newer(package):
        return "99" if package == "torchvision" else version(package)

    monkeypatch.setattr("fedkd.teachers.outputs.fingerprint._version", newer)
    assert [fingerprint(teacher) == old for teacher, old in zip(teachers, before, strict=True)] == [False, False, True]
