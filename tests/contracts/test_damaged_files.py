"""Every file that fedkd reads, damaged in every way: one line of error or the right values, and nothing else."""

from __future__ import annotations

import json
import random
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import LinearStudent, datamodule, images, module
from safetensors.torch import save
from torch import Tensor

import fedkd
from fedkd.core.errors import FedKDError
from fedkd.core.sealed import sealed
from fedkd.data import ImageSet
from fedkd.data.images.decoded import read_decoded, write_decoded
from fedkd.partition import Given
from fedkd.runs.client_files import ClientFiles
from fedkd.runs.directory import RunDirectory
from fedkd.runs.record import read_run
from fedkd.runs.report.run_page import run_page
from fedkd.runs.student_file import load_student, read_spec
from fedkd.study.grid import Run
from fedkd.study.results import curve_of, row_of
from fedkd.teachers import Teacher, TeacherCache
from fedkd.teachers.lora import _kept

FEW, MANY = 200, 10_000
SLOW_LOAD = 20.0  # seconds


@dataclass
class Kind:
    """A kind of file.

    Args:
        path: One of them.
        load: Loads it as fedkd does. None means that it is computed again.
        computed_again: Whether fedkd may compute it again in silence or with a warning.
        checked: Whether its content has a checksum. What a user's own file means to say is not known.
    """

    path: Path
    load: Callable[[], Any]
    computed_again: bool = False
    checked: bool = True


class Pixels(Teacher):
    """Its features are the pixels."""

    def features(self, images: Tensor) -> Tensor:
        return images.flatten(1)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    folder = tmp_path_factory.mktemp("files")
    run, number = folder / "run", 2
    data = datamodule()
    strategy = fedkd.strategies.SCAFFOLD()
    federation = fedkd.Federation(rounds=number, run_dir=run, strategy=strategy, trainer={"accelerator": "cpu"})
    federation.fit(module(), data)
    newest = run / "checkpoints" / f"round_{number:06d}.ckpt"
    history = folder / "rows"  # whose metrics are damaged
    shutil.copytree(run, history)

    pixels = torch.stack([image for image, _ in images(20)])
    both = (
        ImageSet(pixels, torch.arange(20) % 3, ("a", "b", "c")),
        ImageSet(pixels[:5].clone(), torch.arange(5) % 3, ("a", "b", "c")),
    )
    decoded = folder / "decoded.safetensors"
    write_decoded(decoded, "source", both)

    adapter = folder / "adapter.safetensors"
    adapter.write_bytes(sealed(save({"lora_B": torch.arange(60.0).view(6, 10)})))

    cache, teacher = TeacherCache(folder / "teachers"), Pixels()
    outputs = Path(str(cache.get(teacher, both[0], progress=False).filename))

    lists = {"indices": [shard.tolist() for shard in data.shards]}
    owners = np.empty(60, np.int64)
    for client, shard in enumerate(data.shards):
        owners[shard] = client
    given = {name: folder / f"given.{name}" for name in ("json", "csv", "npy", "npz")}
    given["json"].write_text(json.dumps(lists["indices"]))
    given["csv"].write_text("client\n" + "".join(f"{owner}\n" for owner in owners))
    np.save(given["npy"], owners)
    np.savez_compressed(given["npz"], owners=owners)

    def parts(path: Path) -> list[np.ndarray]:
        return Given(path)(np.arange(60) % 3, 3, np.random.default_rng(0))

    def finished(where: Path) -> Run:
        return Run("even", "SCAFFOLD", 0, where, ())

    return {
        "round checkpoint": Kind(newest, lambda: RunDirectory(run, resume=True).load(newest, {})),
        "client state": Kind(
            run / "checkpoints" / "clients" / f"0.round_{number:06d}.safetensors",
            lambda: ClientFiles(run / "checkpoints" / "clients", number)[0],
        ),
        "student": Kind(
            run / "student.safetensors", lambda: (read_spec(run), load_student(run, LinearStudent()).state_dict())
        ),
        "adapter": Kind(adapter, lambda: _kept(adapter), computed_again=True),
        "teacher outputs": Kind(outputs, lambda: np.array(cache.get(teacher, both[0], progress=False))),
        "checksum of teacher outputs": Kind(
            outputs.with_suffix(".sha256"), lambda: np.array(cache.get(teacher, both[0], progress=False))
        ),
        "decoded images": Kind(decoded, lambda: _sets(read_decoded(decoded, "source")), computed_again=True),
        "metrics, to go on": Kind(
            history / "metrics.csv",
            lambda: RunDirectory(history, resume=True).load(history / "checkpoints" / newest.name, {}),
        ),
        "metrics, for a figure": Kind(run / "metrics.csv", lambda: curve_of(finished(run))),
        "summary": Kind(run / "summary.json", lambda: (row_of(finished(run)), curve_of(finished(run)))),
        "metrics, for a report": Kind(run / "metrics.csv", lambda: run_page(read_run(run))),
        "summary, for a report": Kind(run / "summary.json", lambda: run_page(read_run(run))),
        "partition, for a report": Kind(run / "partition.json", lambda: run_page(read_run(run))),
        "partition of a run": Kind(run / "partition.json", lambda: parts(run / "partition.json")),
        **{f"given {name}": Kind(path, lambda path=path: parts(path), checked=False) for name, path in given.items()},
    }


def _sets(sets: tuple[ImageSet, ...] | None) -> Any:
    return None if sets is None else [(each.images, each.targets, each.classes) for each in sets]


def plain(value: Any) -> Any:
    """Return a value in a form that is equal exactly where all bits are."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict | fedkd.core.client_states.ClientStates):
        return {name: plain(value[name]) for name in value}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


def flip_bits(content: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def truncate(content: bytearray, rng: random.Random) -> None:
    del content[rng.randrange(len(content)) :]


def splice(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content))
    content[start : start + rng.randrange(40)] = rng.randbytes(rng.randrange(40))


def zero_page(content: bytearray, rng: random.Random) -> None:
    size = rng.choice((1, 16, 512, 4096))
    start = rng.randrange(len(content)) // size * size
    stop = min(start + size, len(content))
    content[start:stop] = bytes(stop - start)


def swap_bytes(content: bytearray, rng: random.Random) -> None:
    one, other = rng.randrange(len(content)), rng.randrange(len(content))
    content[one], content[other] = content[other], content[one]


def duplicate_block(content: bytearray, rng: random.Random) -> None:
    start, where = rng.randrange(len(content)), rng.randrange(len(content))
    block = content[start : start + rng.choice((1, 8, 64, 512))]
    stop = where if rng.random() < 0.5 else where + len(block)  # put in between, or over what is there
    content[where:stop] = block


def move_block(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content))
    block = content[start : start + rng.randrange(1, 64)]
    del content[start : start + len(block)]
    where = rng.randrange(len(content) + 1)
    content[where:where] = block


def edit_header(content: bytearray, rng: random.Random) -> None:
    """Change a digit or a letter of the beginning into another one, so that it can still be parsed."""
    for _ in range(rng.choice((1, 1, 2))):
        places = [i for i, byte in enumerate(content[:700]) if chr(byte).isalnum()] or [0]
        place = rng.choice(places)
        content[place] = ord(rng.choice("0123456789" if chr(content[place]).isdigit() else 'abcdefgABCDEFG_ []{}",:'))


def append(content: bytearray, rng: random.Random) -> None:
    content += rng.randbytes(rng.randrange(1, 30)) if rng.random() < 0.5 else content[-rng.randrange(1, 30) :]


MUTATIONS = (
    *(flip_bits, flip_bits, truncate, splice, zero_page, swap_bytes),
    *(duplicate_block, move_block, edit_header, edit_header, append),
)


def damage_and_load(kinds: dict[str, Kind], count: int, seed: int) -> Counter:
    """Damage files, load them, and count what happened to each kind."""
    rng, seen = random.Random(seed), Counter()
    whole = {name: (kind.path.read_bytes(), plain(kind.load())) for name, kind in kinds.items()}
    for number in range(count):
        name, kind = list(kinds.items())[number % len(kinds)]
        content, right = whole[name]
        mutation = rng.choice(MUTATIONS)
        damaged = bytearray(content)
        while damaged == content:
            mutation(damaged, rng)
        kind.path.write_bytes(damaged)
        about = f"number {number}: {name}, {mutation.__name__}"
        began = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = kind.load()
            except FedKDError as error:
                text = str(error)
                assert "\n" not in text, about
                assert kind.path.stem in text, f"{about}: {text}"
                seen[name, "error"] += 1
            except BaseException as error:
                raise AssertionError(f"{about} raised {error!r}") from error
            else:
                if found is None:
                    assert kind.computed_again, about
                    seen[name, "again"] += 1
                elif kind.checked:
                    assert plain(found) == right, about
                    seen[name, "right"] += 1
                else:
                    assert sorted(np.concatenate(found).tolist()) == list(range(60)), about
                    seen[name, "another partition"] += 1
        assert time.process_time() - began < SLOW_LOAD, about
        kind.path.write_bytes(content)
    return seen


def test_damaged_files_give_an_error_or_the_right_values(kinds):
    seen = damage_and_load(kinds, FEW, seed=0)
    assert seen.total() == FEW
    assert {name for name, _ in seen} == kinds.keys()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_damaged_files_give_an_error_or_the_right_values(kinds):
    seen = damage_and_load(kinds, MANY, seed=1)
    print({f"{name}: {what}": count for (name, what), count in sorted(seen.items())})
    assert seen.total() == MANY
