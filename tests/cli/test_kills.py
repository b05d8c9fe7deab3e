"""A process that is killed at any moment goes on, and ends as if nothing had happened."""

from __future__ import annotations

import csv
import hashlib
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from forks import QUICKSTART, Forks
from PIL import Image
from sklearn.datasets import load_digits

ROUNDS = 3
STRATEGIES = ("auto", "SCAFFOLD")  # distills on the server; remembers something for each client
KILLS = 50
PHASES = ("start", "cache", "training", "training", "aggregation", "evaluation", "commit", "commit", "finish", "any")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of digits: files, which are decoded into a cache."""
    folder = tmp_path_factory.mktemp("digits")
    digits = load_digits()
    for i, (pixels, label) in enumerate(zip(digits.images[:240], digits.target[:240], strict=True)):
        path = folder / ("train" if i < 160 else "test") / str(label) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15).astype("uint8")).save(path)
    return folder


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    made = Forks(tmp_path_factory.mktemp("forks"))
    yield made
    made.close()


class Trial:
    """One run in a folder of its own, with a cache of its own."""

    def __init__(self, forks: Forks, images: Path, folder: Path, strategy: str) -> None:
        self.forks, self.folder, self.run_dir = forks, folder, folder / "run"
        self.arguments = [
            *("fit", "--config", str(QUICKSTART), "--data.dataset", "ImageFolder", "--data.dataset.root", str(images)),
            *("--data.num_clients", "4", "--federation.rounds", str(ROUNDS), "--federation.clients_per_round", "3"),
            *("--trainer.max_epochs", "1", "--federation.strategy", strategy, "--run_dir", str(self.run_dir)),
            *("--ckpt_path", "last"),
        ]

    def go(self, kill: tuple[str, int, float] | None = None) -> dict:
        """Start it, or go on, until it ends or is killed."""
        return self.forks(*self.arguments, kill=kill, FEDKD_CACHE=str(self.folder / "cache"))

    def outcome(self) -> dict:
        """Return what a run must end with: its student, its rows but for the time, and what is in the cache."""
        with (self.run_dir / "metrics.csv").open(newline="") as file:
            rows = [
                {name: value for name, value in row.items() if "second" not in name} for row in csv.DictReader(file)
            ]
        kept = {path.name: digest(path) for path in (self.folder / "cache").rglob("*") if path.suffix != ".lock"}
        left = [path.name for path in self.run_dir.rglob("*.tmp")]
        return {"student": digest(self.run_dir / "student.safetensors"), "rows": rows, "cache": kept, "left": left}


def digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def undisturbed(forks: Forks, images: Path, folder: Path, strategy: str) -> tuple[dict, dict]:
    """Return what a run that nothing disturbs ends with, and the seconds of its phases."""
    trial = Trial(forks, images, folder / f"whole_{strategy}", strategy)
    found = trial.go()
    assert found["status"] == 0, found["output"]
    assert all(found["phases"].values())
    outcome = trial.outcome()
    assert len(outcome["rows"]) == ROUNDS
    assert not outcome["left"]
    return outcome, found["phases"]


def moment(phase: str, seconds: dict, rng: random.Random) -> tuple[str, int, float]:
    """Draw when to kill: at any time of a phase, or of the whole run."""
    if phase == "any":
        return "start", 0, rng.uniform(0, sum(map(sum, seconds.values())))
    nth = rng.randrange(len(seconds[phase])) if phase != "start" else 0
    return phase, nth, rng.uniform(0, seconds[phase][nth])


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(forks, images, tmp_path):
    rng = random.Random(0)
    expected, seconds = undisturbed(forks, images, tmp_path, "SCAFFOLD")
    trial = Trial(forks, images, tmp_path / "killed", "SCAFFOLD")
    for phase in ("cache", "commit", "training"):
        found = trial.go((phase, 0, rng.uniform(0, seconds[phase][0])))
        assert found["status"] == -9, found["output"]
    found = trial.go()
    assert found["status"] == 0, found["output"]
    assert trial.outcome() == expected


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_killed_runs_end_with_the_same_bits(forks, images, tmp_path):
    rng, hit = random.Random(12), Counter()
    whole = {strategy: undisturbed(forks, images, tmp_path, strategy) for strategy in STRATEGIES}
    for number in range(KILLS):
        strategy, phase = STRATEGIES[number % 2], PHASES[number // 2 % len(PHASES)]
        expected, seconds = whole[strategy]
        trial = Trial(forks, images, tmp_path / str(number), strategy)
        while (found := trial.go(kill := moment(phase, seconds, rng)))["status"] == 0:  # it ended before the kill
            shutil.rmtree(trial.folder)
        assert found["status"] == -9, found["output"]
        hit[found["phase"]] += 1
        found = trial.go()
        assert found["status"] == 0, found["output"]
        assert trial.outcome() == expected, (number, strategy, kill)
    print(f"killed during: {dict(hit)}")
    assert {"training", "aggregation", "evaluation", "commit", "cache"} <= hit.keys()
