"""The net: small runs of every part of fedkd, and a hash of what each of them learns, found again bit for bit.

    python tests/contracts/net.py --check                        # compare with hashes.json; status 1 on a difference
    python tests/contracts/net.py --only krum moon --check       # some runs alone
    python tests/contracts/net.py --check --reversed             # clients from last to first: nothing may change
    python tests/contracts/net.py --check --workers 2            # clients in two processes: nothing may change
    python tests/contracts/net.py                                # write hashes.json, where behavior is meant to change

The table `RUNS` says what is run, in plain settings. Hashes hold for one kind of machine and one set of packages
(``machine`` in the file). On another machine, compare two checkouts: write the hashes with the one (``--out FILE``) and
check the other against them (``--check FILE``).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import platform
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # all there is lies on disk

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import fedkd

HERE = Path(__file__).resolve().parent
TREE = HERE.parents[1]
HASHES = HERE / "hashes.json"
ACCURACIES = re.compile(r"accuracy.*|balanced_accuracy|val_accuracy|ensemble/.*|client_(?!val_accuracy).*")
"""The columns of metrics.csv that are hashed."""


Settings = Mapping[str, Any]


def of(name: str, **options: Any) -> dict[str, Any]:
    """Say that an object is wanted: one of fedkd's classes by name, or of this file's, and its arguments."""
    return {"class": name, **options}


def strategy(name: str, **options: Any) -> Settings:
    """With a strategy."""
    return {"federation": {"strategy": of(name, **options)}}


def merged(*parts: Settings) -> dict[str, Any]:
    """Put settings over settings, section by section; what stands in a section goes as a whole."""
    whole: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            whole[key] = {**whole.get(key, {}), **value} if isinstance(value, Mapping) else value
    return whole


BASE: Settings = {
    "data": {
        "dataset": of("Subset", dataset=of("Digits"), train_fraction=0.2),  # 287 images
        "num_clients": 5,
        "partitioner": of("Dirichlet", alpha=0.5),
        "batch_size": 16,
    },
    "model": {"student": "cnn", "optimizer": of("SGD", lr=0.02, momentum=0.9)},
    "federation": {"rounds": 3},
    "trainer": {"accelerator": "cpu", "max_epochs": 3},
}
"""What a run says nothing of: plain FedAvg, without a teacher."""

NORM_BATCH: Settings = {"model": {"student_options": {"norm": "batch"}}}
NORM_GROUP: Settings = {"model": {"student_options": {"norm": "group"}}}
PUBLIC: Settings = {"data": {"public_fraction": 0.3}}
SAMPLED: Settings = {"federation": {"clients_per_round": 3}}
VIEWS: Settings = {
    "data": {"augmentation": of("Augmentation", crop_padding=1, flip=True), "views": 3},
    "federation": {"teaching": "consistent"},
}
TWO: Settings = {"federation": {"rounds": 2}}
NO_MOMENTUM: Settings = {"model": {"optimizer": of("SGD", lr=0.1)}}
DISTIL = of("KD", ce_weight=0.1, kd_weight=0.9, temperature=3.0)


def taught(teacher: Any = "digits-tiny", loss: Settings = DISTIL) -> Settings:
    """With a teacher; Adam, so that all losses learn something in few steps."""
    return {"model": {"teacher": teacher, "loss": loss, "optimizer": of("Adam", lr=0.002)}}


def with_loss(name: str, **options: Any) -> Settings:
    """The digits' teacher with another loss."""
    return merged(TWO, taught(loss=of(name, **options)))


def with_head(name: str, **options: Any) -> Settings:
    """The digits' teacher with another head."""
    return merged(TWO, taught(of("FeatureTeacher", checkpoint="digits-tiny", head=of(name, **options))))


THREE_KINDS: Settings = {  # for teachers that know these words
    "data": {"dataset": of("Stripes", classes=["cat", "dog", "bird"]), "num_clients": 3, "batch_size": 8},
    "federation": {"rounds": 2},
}
TWO_TEACHERS = ["digits-tiny", of("FeatureTeacher", checkpoint="tiny:vit")]
SMALL_LORA = of("LoRA", rank=2, rounds=2, lr=0.01)
LABELS_OF_CAT = {"cat": ["Tabby, tabby_cat", "Persian cat"]}
EVEN = of("KD", ce_weight=0.5, kd_weight=0.5)  # for teachers of random weights
TRIPLE = of("Compose", strategies=[of("SCAFFOLD"), of("FedAdam", server_lr=0.01), of("ServerDistillation", epochs=2)])
COMPOSED: Settings = merged(PUBLIC, SAMPLED, taught(), {"federation": {"strategy": TRIPLE}})
TWO_KINDS = of("FedMD", students=["cnn", "resnet8"])
FEDMD: Settings = merged(PUBLIC, taught(), TWO, {"data": {"num_clients": 4}, "federation": {"strategy": TWO_KINDS}})

RUNS: dict[str, Settings] = {
    "quickstart": {"config": "examples/quickstart.yaml", "strategy": "ServerDistillation"},  # named: see `plain`
    # averages and server optimizers
    "fedavg": {},
    "fedavg-sampled": SAMPLED,
    "fedavg-linear-student": merged(NO_MOMENTUM, {"model": {"student": of("Linear")}}),
    "fedavg-resnet8-adam": merged(TWO, {"model": {"student": "resnet8", "optimizer": of("Adam", lr=0.003)}}),
    "fedadam": strategy("FedAdam", server_lr=0.02),
    "fedyogi": strategy("FedYogi", server_lr=0.02),
    "fedadagrad": strategy("FedAdagrad", server_lr=0.02),
    "fedavgm": strategy("FedAvgM", momentum=0.7),
    "fednova-momentum": strategy("FedNova"),
    "fednova-plain": merged(strategy("FedNova"), NO_MOMENTUM),
    # corrections of the clients' gradients
    "scaffold-ii": strategy("SCAFFOLD"),
    "scaffold-i": merged(strategy("SCAFFOLD", option="I"), NO_MOMENTUM),
    "scaffold-i-batch-norm-sampled": merged(strategy("SCAFFOLD", option="I"), NORM_BATCH, SAMPLED),
    "feddyn": merged(strategy("FedDyn", regularization=0.1), NO_MOMENTUM),
    "fedprox": strategy("FedProx", proximal_mu=0.5),
    "compose": COMPOSED,
    # terms of the clients' objectives
    "moon": strategy("MOON", contrast_weight=2.0),
    "fedntd": strategy("FedNTD"),
    "fedgkd": merged(strategy("FedGKD", kd_weight=0.5, num_models=3), {"federation": {"rounds": 4}}),
    "objectives-with-teacher": merged(
        taught(), {"federation": {"strategy": of("Compose", strategies=[of("MOON"), of("FedNTD"), of("FedProx")])}}
    ),
    # robust and private averages
    "krum": strategy("Krum"),
    "multi-krum": strategy("MultiKrum", num_byzantine=1, num_selected=3),
    "geometric-median": strategy("GeometricMedian"),
    "trimmed-mean": strategy("TrimmedMean", trim=0.2),
    "coordinate-median": strategy("CoordinateMedian"),
    "norm-clipping": strategy("NormClipping", max_norm=0.5),
    "dp-fedavg": merged(strategy("DPFedAvg", clip_norm=1.0, noise_multiplier=0.02), NORM_GROUP, SAMPLED),
    # BatchNorm
    "fedavg-batch-norm": NORM_BATCH,
    "fedbn": merged(strategy("FedBN"), NORM_BATCH),
    "pooled-batch-norm": merged(strategy("PooledBatchNorm"), NORM_BATCH),
    "reestimated-batch-norm": merged(strategy("ReestimatedBatchNorm"), NORM_BATCH, PUBLIC),
    # refinement on the server
    "default-strategy": merged(PUBLIC, taught()),
    "server-distillation": merged(
        PUBLIC, taught(), strategy("ServerDistillation", teacher_weight=1.0, ensemble_weight=0.5, epochs=2)
    ),
    "feddf": merged(PUBLIC, NORM_BATCH, strategy("FedDF", epochs=2)),
    # teachers and their heads
    "head-ridge": with_head("RidgeHead"),
    "head-ridge-private": with_head("RidgeHead", privacy=of("GaussianPrivacy", epsilon=20.0)),
    "head-prototype-cosine": with_head("PrototypeHead", distance="cosine"),
    "head-prototype-euclidean": with_head("PrototypeHead", distance="euclidean"),
    "head-linear": with_head("LinearHead", rounds=3),
    "zero-shot": merged(THREE_KINDS, taught(of("ZeroShotTeacher", checkpoint="tiny:clip"), EVEN)),
    "zero-shot-ridge": merged(
        THREE_KINDS, taught(of("ZeroShotTeacher", checkpoint="tiny:clip", head=of("ZeroShotRidge")), EVEN)
    ),
    "classifier": merged(
        THREE_KINDS, taught(of("ClassifierTeacher", checkpoint="tiny:classifier", labels=LABELS_OF_CAT), EVEN)
    ),
    "ensemble-fitted": merged(
        TWO, PUBLIC, taught(of("EnsembleTeacher", teachers=TWO_TEACHERS, weights="fitted")), strategy("FedAvg")
    ),
    "lora-vit": merged(TWO, taught(of("LoRATeacher", checkpoint="tiny:vit", lora=SMALL_LORA), EVEN)),
    "lora-dinov2": merged(THREE_KINDS, taught(of("LoRATeacher", checkpoint="tiny:dinov2", lora=SMALL_LORA), EVEN)),
    # what is seen: augmentation, views, shared images, held-out images
    "augmentation-fixed": merged(taught(), {"data": {"augmentation": of("Augmentation", crop_padding=1, flip=True)}}),
    "views-consistent-sampled": merged(taught(), VIEWS, SAMPLED),
    "views-server-distillation": merged(PUBLIC, taught(), VIEWS, strategy("ServerDistillation", epochs=2)),
    "shared-public": merged(
        PUBLIC, taught(), strategy("FedAvg"), {"data": {"shared": of("PublicImages", weight=0.5, fraction=0.4)}}
    ),
    "shared-dead-leaves": merged(taught(), {"data": {"shared": of("DeadLeaves", count=50, seed=1)}}),
    "class-specific-validation": {
        "data": {"partitioner": of("ClassSpecific", classes_per_client=3), "val_fraction": 0.2}
    },
    # the clients' Trainer
    "bf16-accumulate-clip": merged(
        taught(),
        {"trainer": {"precision": "bf16-mixed", "accumulate_grad_batches": 2, "gradient_clip_val": 1.0}},
    ),
    "bf16-true-scaffold": merged(TWO, strategy("SCAFFOLD"), {"trainer": {"precision": "bf16-true"}}),
    "scaffold-accumulate-clip": merged(
        strategy("SCAFFOLD"), {"trainer": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}}
    ),
    # losses
    "loss-kd-auto": with_loss("KD", temperature="auto"),
    "loss-dkd": with_loss("DKD", ce_weight=0.1),
    "loss-standardized-kd-auto": with_loss("StandardizedKD", temperature="auto"),
    "loss-dist": with_loss("DIST"),
    "loss-logit-mse": with_loss("LogitMSE"),
    "loss-not-true": with_loss("NotTrue"),
    "loss-rkd": with_loss("RKD"),
    "loss-feature-mse": with_loss("FeatureMSE"),
    "loss-feature-cosine-views": merged(with_loss("FeatureCosine"), VIEWS),
    "loss-frozen-head-mse": with_loss("FrozenHead", distance="mse"),
    "loss-frozen-head-cosine-batch-norm": merged(with_loss("FrozenHead", distance="cosine"), NORM_BATCH),
    "label-balanced-softmax": {"model": {"label_loss": of("BalancedSoftmax")}},
    "label-balanced-softmax-taught": merged(taught(), {"model": {"label_loss": of("BalancedSoftmax")}}),
    "label-logit-calibration": {"model": {"label_loss": of("LogitCalibration", tau=0.5)}},
    # students that differ
    "fedmd": FEDMD,
    "fedmd-teacher-shared": merged(
        FEDMD,
        {"data": {"shared": of("DeadLeaves", count=50)}},
        strategy("FedMD", students=["cnn", "resnet8"], images="shared", teacher_weight=0.5),
    ),
    # broken off after a round and gone on with, by objects that know nothing of it
    "compose-resumed": merged(COMPOSED, {"stops_after": 1, "same_as": "compose"}),
    "moon-resumed": merged(strategy("MOON", contrast_weight=2.0), {"stops_after": 1, "same_as": "moon"}),
    "fedavg-resumed": {"stops_after": 1, "same_as": "fedavg"},
    "fedmd-resumed": merged(FEDMD, {"stops_after": 1, "same_as": "fedmd"}),
}
"""Runs by name: the sections ``data``, ``model``, ``federation`` and ``trainer`` go over `BASE`.

``config`` is a file of the repository for the command line instead. ``stops_after`` is after how many rounds the run is
broken off; ``same_as`` names the run that it must equal.
"""


@dataclass(frozen=True)
class Stripes(fedkd.data.ImageSource):
    """Noise, with a bright row that tells the class: 90 images to train on and 60 to test."""

    classes: tuple[str, ...]

    def load(self) -> tuple[fedkd.data.ImageSet, fedkd.data.ImageSet]:
        return self._draw(90, seed=0), self._draw(60, seed=1)

    def _draw(self, count: int, seed: int) -> fedkd.data.ImageSet:
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randint(0, 200, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
        labels = torch.arange(count) % len(self.classes)
        pixels[torch.arange(count), 0, labels] += 55
        return fedkd.data.ImageSet(pixels, labels, tuple(self.classes))


class Linear(nn.Module):
    """Softmax regression on the digits, with weights of its own, as a student that is not known by name."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)
        weight = torch.randn(10, 64, generator=torch.Generator().manual_seed(0))
        self.head.load_state_dict({"weight": weight / 8, "bias": torch.zeros(10)})

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1))


@cache
def tiny_checkpoint(family: str) -> str:
    """Return the folder of a tiny checkpoint of random weights, made once."""
    sys.path.insert(0, str(TREE / "tests"))
    from teachers.tiny_checkpoints import build
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    return str(build(family, Path(tempfile.mkdtemp(dir=os.environ["FEDKD_CACHE"]), family)))


PLACES = (fedkd.strategies, fedkd.losses, fedkd.partition, fedkd.data, fedkd.teachers, sys.modules[__name__])


def make(value: Any) -> Any:
    """Make what settings describe: objects by `of`, and tiny checkpoints as in "tiny:vit"."""
    if isinstance(value, list):
        return [make(each) for each in value]
    if isinstance(value, str) and value.startswith("tiny:"):
        return tiny_checkpoint(value.removeprefix("tiny:"))
    if not isinstance(value, Mapping):
        return value
    made = {key: make(each) for key, each in value.items() if key != "class"}
    if "class" not in value:
        return made
    if optimizer := getattr(torch.optim, value["class"], None):
        return partial(optimizer, **made)
    return next(getattr(place, value["class"]) for place in PLACES if hasattr(place, value["class"]))(**made)


def federate(settings: Settings, run_dir: Path) -> None:
    """Do a run."""
    if "config" in settings:
        from fedkd.cli.main import main as command

        with redirect_stdout(io.StringIO()):
            named = ["--federation.strategy", settings["strategy"], *COMMAND]
            command(["fit", "--config", str(TREE / settings["config"]), "--run_dir", str(run_dir), *named])
        return
    settings = merged(BASE, settings)
    parts = [{"rounds": settings["stops_after"]}, {}] if "stops_after" in settings else [{}]
    for i, part in enumerate(parts):
        made = make({key: settings[key] for key in ("data", "model", "federation", "trainer")})
        arguments = {"strategy": plain(made), **made["federation"], **part, "backend": BACKEND[0]}
        federation = fedkd.Federation(**arguments, trainer=made["trainer"], run_dir=run_dir)
        module, data = fedkd.DistillationModule(**made["model"]), fedkd.FederatedDataModule(**made["data"])
        federation.fit(module, data, ckpt_path="last" if i else None)


def plain(made: Mapping[str, Any]) -> fedkd.strategies.Strategy:
    """Return the strategy of a run that names none: written down here, so that another default changes no hash."""
    distills = made["model"].get("teacher") is not None and made["data"].get("public_fraction", 0) > 0
    return fedkd.strategies.ServerDistillation() if distills else fedkd.strategies.FedAvg()


BACKEND: list[fedkd.Backend] = [fedkd.InProcess(threads=1)]
COMMAND: list[str] = []  # what the command line is told of the backend


class Reversed(fedkd.InProcess):
    """Runs the clients from last to first."""

    def open(self, sites: Any) -> Any:
        workers = super().open(sites)
        forward = workers.map
        workers.map = lambda work, tasks: forward(work, list(tasks)[::-1])  # type: ignore[method-assign]
        return workers


def hash_of_tensors(file: Path) -> str:
    """Hash a safetensors file's tensors: names, dtypes, shapes and values, and nothing else."""
    digest = hashlib.sha256()
    for name, value in sorted(load_file(file).items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hash_of_accuracies(rows: list[dict[str, str]]) -> str:
    """Hash the columns of accuracies, in the order of their names, every value as it is written."""
    names = sorted(name for name in rows[0] if ACCURACIES.fullmatch(name))
    lines = [",".join([name, *(row[name] for row in rows)]) for name in names]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def outcome(run_dir: Path) -> dict[str, Any]:
    """Return a run's hashes, and some numbers for people."""
    with open(run_dir / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    own = sorted((run_dir / "clients").glob("*/student.safetensors"), key=lambda path: int(path.parent.name))
    students = {path.parent.name: hash_of_tensors(path) for path in own}
    numbers = {name: float(rows[-1][name]) for name in ("balanced_accuracy", "epsilon") if name in rows[-1]}
    return {
        "student": students or hash_of_tensors(run_dir / "student.safetensors"),
        "accuracy": hash_of_accuracies(rows),
        "numbers": numbers,
    }


def machine() -> dict[str, str]:
    """Return what hashes depend on beside the code."""
    return {
        "cpu": cpu_model(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        **{package: version(package) for package in ("torch", "lightning", "numpy", "transformers", "peft")},
    }


def cpu_model() -> str:
    """Return the CPU's name and its numbers, for some names say little."""
    try:
        text = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return platform.processor()
    fields = dict(re.findall(r"^([^\t\n]+)\t*: (.*)$", text, re.MULTILINE))
    numbers = "-".join(fields.get(name, "?") for name in ("cpu family", "model", "stepping"))
    return f"{fields.get('model name', platform.machine())} ({numbers})"


def run_all(names: Iterable[str], folder: Path) -> dict[str, Any]:
    """Do runs, each in a folder of its own, and return what they came to by name; one that fails stops no other."""
    found: dict[str, Any] = {}
    for name in names:
        began = time.perf_counter()
        try:
            federate(RUNS[name], folder / name)
            found[name] = outcome(folder / name)
            said = f"{found[name]['numbers']['balanced_accuracy']:.4f}"
        except Exception as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            found[name] = {"student": None, "accuracy": None, "numbers": {}, "error": said}
        print(f"{name:36}{time.perf_counter() - began:6.2f} s  {said}", file=sys.stderr, flush=True)
    return found


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Say which runs are not as expected, or not as the run that they must equal."""
    said = []
    for name, each in found.items():
        if "error" in each:
            said.append(f"{name}: {each['error']}")
            continue
        for key in ("student", "accuracy"):
            if name in expected and each[key] != expected[name][key]:
                said.append(f"{name}: another {key}; {each['numbers']}, expected {expected[name]['numbers']}")
            twin = RUNS[name].get("same_as")
            if twin in found and each[key] != found[twin][key]:
                said.append(f"{name}: another {key} than {twin}")
    return said


def main() -> int:
    """Do what the command line says; return 1 if something is not as expected."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), metavar="NAME", help="in this order")
    parser.add_argument("--out", type=Path, default=HASHES)
    parser.add_argument("--check", type=Path, nargs="?", const=HASHES, help="compare with this file, and write none")
    parser.add_argument("--workers", type=int, help="clients in so many processes")
    parser.add_argument("--reversed", action="store_true", help="clients from last to first")
    parser.add_argument("--keep", type=Path, help="where the runs' folders are kept; it must not hold any")
    arguments = parser.parse_args()

    began = time.perf_counter()
    expected = json.loads(arguments.check.read_text()) if arguments.check else {"machine": machine()}
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if arguments.reversed:
        BACKEND[0] = Reversed(threads=1)
    if arguments.workers:
        BACKEND[0] = fedkd.ProcessPool(workers=arguments.workers).__enter__()  # kept for all runs
        COMMAND[:] = ["--federation.backend", "ProcessPool", f"--federation.backend.workers={arguments.workers}"]
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["FEDKD_CACHE"] = f"{temporary}/cache"
        Path(temporary, "cache").mkdir()
        found = run_all(arguments.only, arguments.keep or Path(temporary, "runs"))
    print(f"{len(found)} runs in {time.perf_counter() - began:.1f} s, of {fedkd.__file__}", file=sys.stderr)

    if expected["machine"] != machine():
        print(f"Hashes of another machine: {expected['machine']}, this is {machine()}", file=sys.stderr)
    said = differences(found, expected)
    print(*said, sep="\n", end="\n" if said else "", file=sys.stderr)
    if arguments.check is None and not said:
        arguments.out.write_text(json.dumps({"machine": machine(), **found}, indent=2) + "\n")
    return bool(said)


if __name__ == "__main__":
    import net  # by name, so that the processes of a pool find what is defined here

    sys.exit(net.main())
