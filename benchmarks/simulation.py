"""A round of fedkd against the same round as a bare loop over tensors, and against pfl-research where it is installed.

    python benchmarks/simulation.py cross-device|light|heavy [--rounds 9] [--json FILE]

    cross-device  10,000 clients, 100 a round, 1,000,000 images of 8x8, an MLP of 4,810 parameters, 3.7 steps a client
    light         10 clients of 530 images of 32x32, an MLP of 789,258 parameters, 106 steps a round
    heavy         the same images, a CNN of 878,538 parameters

Everything runs in turn, a round each, in one thread. A round is all of it: cohort, local training, aggregation,
evaluation on 1,000 test images and, for fedkd, the commit to disk. What is printed are ratios of CPU seconds to the
bare loop of the same round, median and spread. All start from the same weights and visit images in the same order. The
script fails unless the lean loop and Lightning's own end with the same bits, and the weights after the first round are
those of the bare loop to 1e-4 of their norm (it adds in another order). pfl-research shuffles in its own order, so its
weights are not compared.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedkd
from fedkd.core.seeding import derive_seed
from fedkd.data import FederatedDataModule, ImageSet
from fedkd.data.sources import Datasets
from fedkd.partition import IID, Dirichlet
from fedkd.runs.directory import RunDirectory
from fedkd.server.sampling import sample_cohort
from fedkd.server.setup import plan_run, prepare_run, run_settings

CLASSES = tuple("0123456789")
LR, MOMENTUM = 0.01, 0.9


def mlp(inputs: int, hidden: int) -> nn.Module:
    """Return a perceptron of one hidden layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def cnn() -> nn.Module:
    """Return the CNN of the FedAvg paper (McMahan et al., 2017) for images of 3x32x32, as it is commonly built."""
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(1600, 512), nn.ReLU(), nn.Linear(512, 10)),
    )


WORKLOADS: dict[str, dict[str, Any]] = {
    "cross-device": {
        "images": 1_000_000,
        "shape": (1, 8, 8),
        "clients": 10_000,
        "cohort": 100,
        "batch_size": 32,
        "partitioner": Dirichlet(0.1),
        "student": lambda: mlp(64, 64),
    },
    "light": {
        "images": 5300,
        "shape": (3, 32, 32),
        "clients": 10,
        "cohort": None,
        "batch_size": 50,
        "partitioner": IID(),
        "student": lambda: mlp(3072, 256),
    },
    "heavy": {
        "images": 5000,
        "shape": (3, 32, 32),
        "clients": 10,
        "cohort": None,
        "batch_size": 50,
        "partitioner": IID(),
        "student": cnn,
    },
}


class Rounds:
    """A federation, a round a call: what `Federation.fit` does between the start and the end of a run.

    Args:
        workload: Of `WORKLOADS`.
        data: The clients.
        trainer: Arguments of the clients' Trainer.
        folder: Where the run is kept.
        backend: Where clients run.
    """

    def __init__(
        self,
        workload: dict[str, Any],
        data: FederatedDataModule,
        trainer: dict[str, Any],
        folder: Path,
        backend: fedkd.Backend = fedkd.InProcess(),  # noqa: B008
    ) -> None:
        torch.manual_seed(0)
        self.module = fedkd.DistillationModule(workload["student"]())
        federation = fedkd.Federation(
            rounds=10**6,
            clients_per_round=workload["cohort"],
            strategy=fedkd.FedAvg(),
            backend=backend,
            trainer={"accelerator": "cpu", **trainer},
            run_dir=folder,
        )
        plan = plan_run(federation, self.module, data)
        settings, run = run_settings(federation, plan), RunDirectory(folder)
        run.start(data, None)
        self.prepared = prepare_run(federation, plan)
        prepared = self.prepared.__enter__()
        self.rounds = federation._rounds(run, prepared, prepared.start(), [], settings)

    def __call__(self) -> None:
        """Run a round."""
        self.state = next(self.rounds)

    @property
    def weights(self) -> Tensor:
        """The global student's weights, in one vector."""
        return torch.cat([value.flatten() for value in self.state.weights.parameters.values()])


class Bare:
    """FedAvg with nothing around it.

    Args:
        workload: Of `WORKLOADS`.
        data: The clients.
        memory_format: Of images and student.
    """

    def __init__(self, workload: dict[str, Any], data: FederatedDataModule, memory_format: torch.memory_format) -> None:
        torch.manual_seed(0)
        self.format, self.cohort, self.batch_size = memory_format, workload["cohort"], workload["batch_size"]
        self.student = workload["student"]().to(memory_format=memory_format)
        self.images = data.train.images.contiguous(memory_format=memory_format)
        self.targets, self.shards = data.train.targets, data.shards
        self.clients = [client for client, shard in enumerate(data.shards) if len(shard)]
        self.test = data.test.images.float().div_(255).contiguous(memory_format=memory_format), data.test.targets
        self.round = 0
        self.state = {name: value.clone() for name, value in self.student.state_dict().items()}

    def __call__(self) -> None:
        """Run a round."""
        cohort = sample_cohort(self.clients, self.cohort, seed=0, round=self.round)
        total = sum(len(self.shards[client]) for client in cohort)
        mean = {name: torch.zeros_like(value) for name, value in self.state.items()}
        for client in cohort:
            rows = torch.from_numpy(self.shards[client])
            images = self.images[rows].float().div_(255).contiguous(memory_format=self.format)
            targets = self.targets[rows]
            self.student.load_state_dict(self.state)
            optimizer = torch.optim.SGD(self.student.parameters(), lr=LR, momentum=MOMENTUM)
            order = derive_seed(derive_seed(0, "client", self.round, client, "batches"), 0)
            for chosen in torch.randperm(len(rows), generator=torch.Generator().manual_seed(order)).split(
                self.batch_size
            ):
                optimizer.zero_grad()
                F.cross_entropy(self.student(images[chosen]), targets[chosen]).backward()
                optimizer.step()
            for name, value in self.student.state_dict().items():
                mean[name].add_(value, alpha=len(rows) / total)
        self.state, self.round = mean, self.round + 1
        self.student.load_state_dict(mean)
        with torch.no_grad():
            (self.student(self.test[0]).argmax(1) == self.test[1]).float().mean().item()

    @property
    def weights(self) -> Tensor:
        """The global student's weights, in one vector."""
        return torch.cat([value.flatten() for value in self.state.values()])


def pfl_rounds(workload: dict[str, Any], data: FederatedDataModule, after_round: Callable[[], bool]) -> None:
    """Run pfl-research's FedAvg on the same clients, with a call after each round that says whether to go on."""
    import functools
    import types

    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.callback.central_evaluation import CentralEvaluationCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    def loss(self: Any, images: Tensor, targets: Tensor, eval: bool = False) -> Tensor:
        self.eval() if eval else self.train()
        return F.cross_entropy(self(images), targets)

    def metrics(self: Any, images: Tensor, targets: Tensor, eval: bool = True) -> dict[str, Any]:
        self.eval()
        with torch.no_grad():
            return {"accuracy": Weighted((self(images).argmax(1) == targets).sum().item(), len(targets))}

    student = workload["student"]()
    student.loss, student.metrics = types.MethodType(loss, student), types.MethodType(metrics, student)
    model = PyTorchModel(
        student,
        functools.partial(torch.optim.SGD, momentum=MOMENTUM),
        torch.optim.SGD(student.parameters(), 1.0),
    )

    def dataset(client: int) -> Dataset:
        rows = torch.from_numpy(data.shards[client])
        return Dataset(raw_data=[data.train.images[rows].float().div_(255), data.train.targets[rows]])

    clients = [client for client, shard in enumerate(data.shards) if len(shard)]
    cohort = workload["cohort"] or len(clients)
    backend = SimulatedBackend(
        training_data=FederatedDataset(
            dataset, get_user_sampler("random" if workload["cohort"] else "minimize_reuse", clients)
        ),
        val_data=None,
        postprocessors=[WeightByDatapoints()],
    )

    class Clock(TrainingProcessCallback):
        def after_central_iteration(self, aggregate: Any, model: Any, *, central_iteration: int) -> tuple:
            return after_round(), Metrics()

    test = Dataset(raw_data=[data.test.images.float().div_(255), data.test.targets])
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=10**6, evaluation_frequency=10**9, train_cohort_size=cohort, val_cohort_size=0
        ),
        backend,
        model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=LR, local_batch_size=workload["batch_size"]),
        NNEvalHyperParams(local_batch_size=1000),
        [CentralEvaluationCallback(test, NNEvalHyperParams(local_batch_size=1000), 1), Clock()],
    )


def timed(run: Callable[[], None]) -> tuple[float, float]:
    """Return the seconds of a call, by the wall clock and of the CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Return median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    """Time a workload and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    np.random.seed(0)

    workload, rng = WORKLOADS[options.workload], np.random.default_rng(0)

    def images(count: int) -> ImageSet:
        pixels = rng.integers(0, 256, (count, *workload["shape"]), dtype=np.uint8)
        return ImageSet(torch.from_numpy(pixels), torch.from_numpy(rng.integers(0, 10, count)), CLASSES)

    data = FederatedDataModule(
        Datasets(images(workload["images"]), images(1000)),
        num_clients=workload["clients"],
        partitioner=workload["partitioner"],
        batch_size=workload["batch_size"],
        eval_batch_size=1000,
    )
    data.setup()
    folder = Path(tempfile.mkdtemp(prefix="fedkd-benchmark-"))
    kinds: dict[str, Any] = {
        "bare": Bare(workload, data, torch.contiguous_format),
        "bare, channels_last": Bare(workload, data, torch.channels_last),
        "fedkd": Rounds(workload, data, {}, folder / "lean"),
        # an argument that a lean fit does not take, with its usual effect of none
        "fedkd, Lightning's loops": Rounds(workload, data, {"limit_train_batches": 10**9}, folder / "lightning"),
        "fedkd, Stacked(10)": Rounds(workload, data, {}, folder / "stacked", fedkd.Stacked(10)),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}

    apart = 0.0

    def all_others() -> None:
        nonlocal apart
        for name, run in kinds.items():
            times[name].append(timed(run))
        if len(times["bare"]) == 1:
            bare = kinds["bare"].weights
            for name in ("fedkd, Stacked(10)", "fedkd"):
                apart = float((kinds[name].weights - bare).norm() / bare.norm())
                assert apart < 1e-4, f"the weights of {name} are {apart:.1e} away from the bare loop's"

    try:
        import pfl  # noqa: F401
    except ImportError:
        print("pfl is not installed (pip install -e '.[benchmarks]'): its row is left out")
        for _ in range(options.rounds + 1):
            all_others()
    else:
        times["pfl-research"] = []
        began: list[tuple[float, float]] = []

        def after_round() -> bool:
            if began:
                times["pfl-research"].append((time.perf_counter() - began[0][0], time.process_time() - began[0][1]))
            all_others()
            began[:] = [(time.perf_counter(), time.process_time())]
            return len(times["pfl-research"]) > options.rounds

        with redirect_stdout(io.StringIO()):
            pfl_rounds(workload, data, after_round)

    lean, lightning = (kinds[name] for name in ("fedkd", "fedkd, Lightning's loops"))
    assert torch.equal(lean.weights, lightning.weights), "the lean loop has not the bits of Lightning's"
    clients = [client for client, shard in enumerate(data.shards) if len(shard)]
    cohort = sample_cohort(clients, workload["cohort"], seed=0, round=0)
    steps = sum(-(-len(data.shards[client]) // workload["batch_size"]) for client in cohort)
    rows = {}
    for name, found in times.items():
        found = found[1:] if len(found) > 1 else found  # the first round warms up
        floor = times["bare"][1:]
        rows[name] = {
            "wall": quartiles([wall for wall, _ in found]),
            "cpu": quartiles([cpu for _, cpu in found]),
            "cpu_ratio": quartiles([cpu / base for (_, cpu), (_, base) in zip(found, floor, strict=False)]),
        }
    print(f"{options.workload}: {len(times['bare']) - 1} rounds, about {steps} steps a round; apart {apart:.1e}")
    for name, row in rows.items():
        ratio = row["cpu_ratio"]
        print(
            f"{name:26} {1000 * row['wall']['median']:8.1f} ms a round, CPU {1000 * row['cpu']['median']:8.1f} ms, "
            f"ratio {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
        )
    if options.json:
        about = {
            "workload": options.workload,
            "device": platform.processor() or platform.machine(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }
        options.json.write_text(json.dumps({**about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
