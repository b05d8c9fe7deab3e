"""A reader who types what a page of the documentation shows: its Python, its YAML and its commands, in order.

Nothing is downloaded and little is trained: checkpoints and data sets of the hubs are tiny ones, and a run has one
round of one epoch.
"""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from functools import cache, wraps
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from documents import ROOT, Snippet
from jsonargparse import _typehints
from PIL import Image
from teachers.tiny_checkpoints import build

import fedkd
from fedkd.cli import compare as compare_command
from fedkd.cli.arguments import check_config, expand
from fedkd.cli.commands import parsers
from fedkd.cli.main import main
from fedkd.cli.subcommands import PLAIN, SECTIONS
from fedkd.data import CIFAR10, CIFAR100, Digits, FederatedDataModule, ImageSet, ImageSource
from fedkd.students.cost import measure_cost
from fedkd.study.grid import read_grid, runs_of

HUB = {
    "facebook/dinov2-small": "dinov2",
    "openai/clip-vit-base-patch32": "clip",
    "google/siglip2-base-patch16-224": "siglip",
    "google/vit-base-patch16-224": "classifier",
}
"""The checkpoints of the hub that pages name, each with the tiny one of its family."""

DIGITS = 120
"""How many images of Digits there are for training, and for the test."""


RNG = np.random.default_rng(0)


class Reader:
    """Runs the snippets of one page, one after the other, in the current folder.

    Args:
        patch: Puts tiny things in the place of those that would be downloaded.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.module = ModuleType("a_page")  # a real one: dataclasses and pickle look for it
        patch.setitem(sys.modules, "a_page", self.module)
        offline(patch)
        shorten(patch)
        # most of the time of parsing; a page's own classes are not among those to choose from
        patch.setattr(_typehints, "get_all_subclass_paths", cache(_typehints.get_all_subclass_paths))

    def read(self, snippet: Snippet) -> None:
        """Run a snippet, or, where a comment says why not, check what can be checked without."""
        if snippet.language == "python":
            code = compile("\n" * (snippet.line - 1) + snippet.text, str(ROOT / snippet.page), "exec")
            if not snippet.reason:
                self.run(code)
        elif snippet.language == "yaml":
            self.configure(snippet)
        elif snippet.language == "bash":
            for command in snippet.commands():
                for part in command.split(" && "):
                    (check if snippet.reason else execute)(shlex.split(part))
        elif snippet.language == "toml":
            tomllib.loads(snippet.text)
        else:
            assert snippet.language in ("", "text"), f"{snippet.place}: nothing runs {snippet.language}"
            assert not re.search(r"^(fedkd|pip|python|import|from) ", snippet.text, re.MULTILINE), snippet.place

    def run(self, code: Any) -> None:
        """Execute Python. What it binds to a name is then used: data is partitioned, a data set is loaded."""
        before = dict(vars(self.module))
        exec(code, vars(self.module))
        for name, value in dict(vars(self.module)).items():
            if before.get(name) is value:
                continue
            if isinstance(value, FederatedDataModule):
                value.setup()
                parts = [value.public_indices, *value.shards, *value.val_shards]
                assert sum(map(len, parts)) == len(value.train)
            elif isinstance(value, ImageSource):
                train, test = value.load()
                assert len(train) >= len(test) > 0

    def configure(self, snippet: Snippet) -> None:
        """Read a configuration as ``fedkd fit`` does, and build what it names; its data is partitioned."""
        path = Path("snippet.yaml")
        path.write_text(snippet.text)
        check_config(path)
        config = fit_parser().parse_args(["--config", str(path)])
        written = yaml.safe_load(snippet.text)
        if snippet.reason:
            return
        made = fit_parser().instantiate(type(config)(**{key: config[key] for key in written}))
        if {"dataset", "partitioner"} & set(written.get("data", {})):
            made.data.prepare_data()
            made.data.setup()
        if "federation" in written:
            fedkd.Federation(**made.federation)


@cache
def fit_parser() -> Any:
    """Return the parser of ``fedkd fit``."""
    return parsers(["fit"])["fit"]


@cache
def extras() -> dict[str, list[str]]:
    """Return the extras of the package."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def execute(command: list[str]) -> None:
    """Run a command of fedkd in this process; of pip, check that the package has the extras."""
    if command[0] != "fedkd":
        assert command[0] == "pip", f"mark the block, for no test runs {shlex.join(command)}"
        check(command)
        return
    status = None
    try:
        main([*command[1:], "--debug"])  # an error with its traceback
    except SystemExit as end:  # the help ends so too
        status = end.code
    assert not status, shlex.join(command)


def check(command: list[str]) -> None:
    """Check a command without running it: its options, by the real parser, or the files that it names."""
    program, *arguments = command
    if program == "fedkd":
        parse(arguments)
    elif program == "pip":
        named = re.findall(r"\[(.*?)\]", shlex.join(arguments))
        assert {name for each in named for name in each.split(",")} <= set(extras())
    elif program == "python":
        module = arguments[:1] == ["-m"]
        script = ROOT / (f"{arguments[1].replace('.', '/')}.py" if module else arguments[0])
        text = script.read_text()
        assert [each for each in arguments[1:] if each.startswith("--") and f'"{each}"' not in text] == []
    elif program == "pytest":
        assert [each for each in arguments if "/" in each and not (ROOT / each).exists()] == []
    elif program in ("flwr", "flower-superlink", "flower-supernode"):  # Flower's own: tests/flower/test_deployment.py
        assert [each for each in arguments if each.startswith("examples/") and not (ROOT / each).exists()] == []
    else:
        assert program in ("mkdocs", "source", "export", "git"), shlex.join(command)


def parse(arguments: list[str]) -> None:
    """Parse the arguments of ``fedkd``, and those that a grid gives to its first run."""
    name, *rest = arguments
    if name == "compare":
        options, further = compare_command.make_parser().parse_known_args(rest)
        compare_command.check_further(further)
        first = next(runs_of(read_grid(options.grid, options.set), options.out, further))
        fit_parser().parse_args(list(first.arguments))
    elif name in PLAIN:
        __import__(PLAIN[name], fromlist=["make_parser"]).make_parser().parse_args(rest)
    else:
        assert name in SECTIONS, name
        parser = fit_parser() if name == "fit" else parsers([name])[name]
        parser.parse_args(expand(arguments)[1:])


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Let a run have one round of one epoch, in the precision that every processor has."""
    fit = fedkd.Federation.fit

    @wraps(fit)
    def short(self: fedkd.Federation, *arguments: Any, **options: Any) -> Any:
        self.rounds = min(self.rounds, 1)
        self.trainer = {**self.trainer, "max_epochs": 1, "accelerator": "cpu", "precision": "32-true"}
        return fit(self, *arguments, **options)

    patch.setattr(fedkd.Federation, "fit", short)
    patch.setattr(measure_cost, "__defaults__", (1,))  # how often ``fedkd students`` times each


def offline(patch: pytest.MonkeyPatch) -> None:
    """Put tiny checkpoints and data sets in the place of those of the hubs."""
    from fedkd.teachers.huggingface import hub

    named = hub.resolve
    patch.setattr(hub, "resolve", lambda name: tiny(HUB[path]) if (path := named(name)) in HUB else path)
    patch.setattr(CIFAR10, "load", lambda source: few_images(10))
    patch.setattr(CIFAR100, "load", lambda source: few_images(100))
    load = Digits.load
    patch.setattr(Digits, "load", lambda source: tuple(each.subset(range(DIGITS)) for each in load(source)))
    tiny_datasets(patch)
    timm = pytest.importorskip("timm")
    create = timm.create_model
    patch.setattr(timm, "create_model", lambda *args, **options: create(*args, **{**options, "pretrained": False}))


def tiny_datasets(patch: pytest.MonkeyPatch) -> None:
    """Let ``datasets`` find CIFAR-10 on the hub, cut down to two rows a class."""
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"img": [picture() for _ in range(20)], "label": [i % 10 for i in range(20)]})
    load = datasets.load_dataset

    def load_dataset(path: Any, name: str | None = None, **options: Any) -> Any:
        if path != "uoft-cs/cifar10":
            return load(path, name, **options)
        assert (name, options) == (None, {"revision": "main"})
        return datasets.DatasetDict(train=table, test=table)

    patch.setattr(datasets, "load_dataset", load_dataset)
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", Path("hf").resolve())


@cache
def tiny(family: str) -> str:
    """Return the folder of a tiny checkpoint, made once in a process."""
    import tempfile

    return str(build(family, Path(tempfile.mkdtemp(prefix="fedkd-tiny-"))))


def few_images(num_classes: int) -> tuple[ImageSet, ImageSet]:
    """Return a training and a test set of color images of noise, six images a class."""
    targets = torch.arange(6 * num_classes) % num_classes
    pixels = torch.from_numpy(noise(len(targets), 3, 32, 32))
    data = ImageSet(pixels, targets, tuple(f"class {i}" for i in range(num_classes)))
    return data, data


def picture(side: int = 9) -> Image.Image:
    """Return an oblong picture of noise."""
    return Image.fromarray(noise(side, side - 1, 3))


def noise(*shape: int) -> np.ndarray:
    """Return random pixels, which are others at every call."""
    return RNG.integers(0, 256, shape, dtype=np.uint8)
