"""What clients send is what docs/privacy.md lists: every update of every strategy, head, loss and of LoRA is read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from helpers import BrightRowTeacher, datamodule, module
from protocols import adapt, fit_head
from teachers.tiny_checkpoints import build
from test_every_head import CLASSES, HEADS, PRIVATE, features, make
from test_every_strategy import STRATEGIES
from test_every_strategy import make as make_strategy
from test_every_strategy import run as run_strategy

import fedkd
from fedkd.client import fit_to_teacher, works
from fedkd.data import Digits
from fedkd.losses import KD, FeatureCosine, FeatureMSE, FrozenHead
from fedkd.server.exchange import Exchange
from fedkd.teachers import GaussianPrivacy, LoRA, LoRATeacher, lora
from fedkd.teachers.heads import linear, prototype, ridge, zero_shot_ridge

PAGE = Path(__file__).parents[2] / "docs" / "privacy.md"


def listed() -> dict[str, set[str]]:
    """Return the page's table: for each work the entries that its update may have."""
    found: dict[str, set[str]] = {}
    for work, entries in re.findall(r"^\| `(\w+)` \| (.+?) \|", PAGE.read_text(), re.MULTILINE):
        found.setdefault(work, set()).update(re.findall(r"`([^`]+)`", entries))
    return found


@pytest.fixture
def sent(monkeypatch):
    """Return the set of (work, entry) of all updates that go through an exchange."""
    seen: set[tuple[str, str]] = set()
    stream = Exchange.stream

    def recording(self, work, tasks, min_updates=None):
        names = {task.client: task.settings.get("work", work.__name__).rpartition(":")[2] for task in tasks}
        for update in stream(self, work, tasks, min_updates):
            entries = [kind_of(name, update.delta) for name in update.extras]
            entries += [f"metrics/{name}" for name in update.metrics]
            entries += [name for name in ("delta", "buffers") if getattr(update, name)]
            seen.update((names[update.client], entry) for entry in entries)
            yield update

    monkeypatch.setattr(Exchange, "stream", recording)
    return seen


def kind_of(name: str, delta) -> str:
    """Return an entry's name, with PARAMETER in the place of that of a student's parameter."""
    part = name.partition("/")[2] if name.partition("/")[0].isdigit() else name
    return name.removesuffix(part) + "PARAMETER" if part in delta else name


def unlisted(sent: set[tuple[str, str]]) -> list[tuple[str, str]]:
    table = listed()
    return sorted(
        (work, entry)
        for work, entry in sent
        if not any(re.fullmatch(re.sub(r"\\?\*", ".*", re.escape(each)), entry) for each in table.get(work, ()))
    )


@pytest.mark.parametrize("name", STRATEGIES)
def test_of_every_strategy(name, sent, tmp_path):
    run_strategy(name, make_strategy(name), tmp_path, trainer={"accelerator": "cpu"})
    assert sent
    assert not unlisted(sent)


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_of_every_head(name, private, sent):
    if private and name not in PRIVATE:
        pytest.skip("has no privacy")
    values, targets, shards = features()
    head = make(name, **({"privacy": GaussianPrivacy(8.0)} if private else {}))
    fit_head(head, values, targets, shards, CLASSES)
    assert sent
    assert not unlisted(sent)


@pytest.mark.parametrize("loss", [KD(temperature="auto"), FeatureMSE(), FeatureCosine(), FrozenHead()], ids=repr)
def test_of_every_loss_that_takes_something_from_the_teacher(loss, sent, tmp_path):
    torch.manual_seed(0)
    data = datamodule()
    data.val_fraction = 0.2
    trained = module(teacher=BrightRowTeacher(), loss=loss)
    fedkd.Federation(1, strategy=fedkd.FedAvg(), trainer={"accelerator": "cpu"}, run_dir=tmp_path).fit(trained, data)
    assert not unlisted(sent)
    assert ("evaluate_held_out", "metrics/num_correct") in sent


def test_of_an_adapter(sent, tmp_path):
    checkpoint = str(build("vit", tmp_path / "vit"))
    train, _ = Digits().load()
    adapt(LoRATeacher(checkpoint, lora=LoRA(rounds=1)), train.subset(range(40)), [range(20), range(20, 40)])
    assert {work for work, _ in sent} >= {"train_adapter"}
    assert not unlisted(sent)


def test_what_is_not_listed_is_found():
    assert unlisted({("train", "delta"), ("train", "images"), ("predict", "logits"), ("predict", "features")}) == [
        ("predict", "features"),
        ("train", "images"),
    ]


def test_the_page_lists_nothing_that_is_not_a_work():
    homes = (works, fit_to_teacher, lora, linear, prototype, ridge, zero_shot_ridge)
    assert all(any(hasattr(home, work) for home in homes) for work in listed())
