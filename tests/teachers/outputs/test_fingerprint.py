"""Whatever changes a teacher's features changes its fingerprint."""

from __future__ import annotations

import importlib
import linecache
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torchvision.transforms import v2

import fedkd
from fedkd.teachers.outputs.fingerprint import fingerprint

ROOT = Path(fedkd.__file__).parents[1]


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


HEAD = """
import functools, re
import numpy as np
import torch
from torchvision.transforms import v2
from dataclasses import dataclass
import fedkd
"""
FEATURES = """
class Mine(fedkd.Teacher):
    def features(self, images):
        return {expression}
"""


@pytest.mark.parametrize(
    ("names", "expression"),
    [
        ("MEAN = torch.tensor([{0}])", "images - MEAN"),
        ("MEANS = {{'a': [np.ones(2) * {0}]}}", "images - MEANS['a'][0]"),
        ("PREPARE = v2.Normalize([0.5], [{0}])", "PREPARE(images)"),
        ("PREPARE = v2.Compose([v2.Lambda(lambda x: {0} * x)])", "PREPARE(images)"),
        ("def scale(x, by):\n    return by * x\nPREPARE = functools.partial(scale, by={0})", "PREPARE(images)"),
        ("class Scale:\n    def __call__(self, x):\n        return {0} * x\nPREPARE = Scale()", "PREPARE(images)"),
        ("BY = {0}\ndef scale(x, by=BY):\n    return by * x", "scale(images)"),
        ("BY = {0}\nclass Scale:\n    by = BY", "images * Scale.by"),
        ("class Base:\n    by = {0}\nclass Scale(Base):\n    pass", "images * Scale.by"),
        ("def by(n):\n    def scale(x):\n        return n * x\n    return scale\nSCALE = by({0})", "SCALE(images)"),
    ],
)
def test_every_kind_of_object_that_code_names_counts(names, expression, written):
    def of(value):
        user = HEAD + names.format(value) + FEATURES.format(expression=expression)
        return fingerprint(written(user).Mine())

    assert of(0.5) == of(0.5) != of(0.25)


@pytest.mark.parametrize(
    "value",
    [
        "scale",
        "lambda x: scale(x)",
        "functools.partial(scale)",
        "v2.Lambda(scale)",
        "v2.Lambda(functools.partial(scale))",
        "v2.Lambda(Scale())",
        "v2.Compose([v2.Lambda(scale)])",
        "Scale()",
        "Scale().__call__",
        "[Holder(scale)]",
        "Holder(Scale)",
        "Setting()",
        "Configured()",
    ],
)
def test_the_code_behind_an_attribute_counts(value, written):
    text = """
from fedkd.core.config import Configured as Base
BY = {0}
def scale(x):
    return BY * x
class Scale:
    def __call__(self, x):
        return {0} * x
class Holder:
    def __init__(self, function):
        self.function = function
@dataclass
class Setting:
    a: int = 1
    def __call__(self, x):
        return {0} * x
class Configured(Base):
    def __call__(self, x):
        return {0} * x
"""

    def of(factor):
        user = written(HEAD + text.format(factor) + f"VALUE = lambda: {value}")
        return fingerprint(Attribute(user.VALUE()))

    assert of(2) == of(2) != of(3)


def test_the_attributes_and_defaults_of_code_without_a_source_count():
    def of(gain, by):
        text = "class Mine(fedkd.Teacher):\n    gain = {}\n    def features(self, x, by={}):\n        return x"
        around = {"__name__": "typed_in", "fedkd": fedkd, "torch": torch}
        exec(text.format(gain, by), around)
        return fingerprint(around["Mine"]())

    assert of(1, 1) == of(1, 1)
    assert len({of(1, 1), of(2, 1), of(1, 2), of("torch.ones(1)", 1), of("torch.zeros(1)", 1)}) == 5


def test_objects_of_a_users_package_count(written):
    user = "import fedkd, mine.settings" + FEATURES.format(expression="images - mine.settings.MEAN")

    def of(mean):
        settings = f"import torch\nMEAN = torch.tensor({mean})"
        return fingerprint(written(user, {"mine.settings": settings}).Mine())

    assert of(1) == of(1) != of(2)


def test_a_variable_with_the_name_of_an_attribute_does_not_count_and_a_circle_ends(written):
    user = HEAD + FEATURES.format(expression="self.model(images)") + "\nmodel = torch.ones({0})"
    assert len({fingerprint(written(user.replace("{0}", size)).Mine()) for size in "12"}) == 1
    circle = HEAD + "TABLE = {}\n" + FEATURES.format(expression="TABLE['scale'](images)")
    circle += "def scale(x):\n    return TABLE and {0} * x\nTABLE['scale'] = scale\n"
    assert len({fingerprint(written(circle.replace("{0}", by)).Mine()) for by in "112"}) == 2


def test_objects_whose_class_names_all_of_them_are_each_written_once(written):
    numbers = range(30)
    user = HEAD + "class Scale:\n    def __init__(self, by):\n        self.by = by\n    def __call__(self, x):\n"
    user += f"        return x * ({' + '.join(f'S{i}.by' for i in numbers)})\n"
    user += "".join(f"S{i} = Scale({i} * {{0}})\n" for i in numbers) + FEATURES.format(expression="S0(images)")
    assert len({fingerprint(written(user.replace("{0}", by)).Mine()) for by in "112"}) == 2


OF_A_LIBRARY = """
import logging, pathlib, threading, rich.console
LOCK, CONSOLE, LOG, RELU = threading.Lock(), rich.console.Console(), logging.getLogger(__name__), torch.Tensor.relu
ROOT, THREAD, NAME = pathlib.Path(__file__).parent, threading.local(), re.compile("a" * 300 + "{0}")
"""


def test_objects_of_libraries_that_code_names_refuse_nothing(written):
    expression = "LOCK and CONSOLE and LOG and RELU(images) and ROOT and THREAD and NAME"
    user = HEAD + OF_A_LIBRARY + FEATURES.format(expression=expression)
    first, other = (fingerprint(written(user.replace("{0}", end)).Mine()) for end in "xy")
    assert first != other
    module = written(user.replace("{0}", "x"))
    module.ROOT = module.ROOT / "elsewhere"
    assert fingerprint(module.Mine()) == first
    fingerprint(Attribute(v2.Lambda(torch.Tensor.float)))  # a method of C has no module


IN_ANOTHER_PROCESS = """
import lightning.pytorch as pl
class Prompts:
    def __init__(self):
        self.emb, self.words, self.parts = torch.arange(6.0), {"a", "b", "c", "d"}, {"x": frozenset("efgh")}
PROMPTS = Prompts()
class Backbone(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.prompts, self.layer = Prompts(), torch.nn.Linear(1, 1)
        torch.nn.init.ones_(self.layer.weight), torch.nn.init.ones_(self.layer.bias)
class Mine(fedkd.Teacher):
    def __init__(self):
        super().__init__()
        self.backbone = Backbone()
    def features(self, images):
        return images + PROMPTS.emb
"""


def test_the_hash_is_the_same_in_every_process(tmp_path, written):
    here = fingerprint(written(HEAD + IN_ANOTHER_PROCESS).Mine())
    program = "import user; from fedkd.teachers.outputs.fingerprint import fingerprint; print(fingerprint(user.Mine()))"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "PYTHONHASHSEED": "7"}
    found = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split()[-1] == here


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
