"""What a round costs beside its clients' work, from 100 to 100,000 clients and after up to 10,000 rounds.

    python benchmarks/scaling.py [--rounds 7] [--json FILE]

A cohort of 20 clients out of many trains an MLP of 4,810 parameters, by FedAvg and by SCAFFOLD, which remembers tensors
for every client. Printed are milliseconds a round (median, least and greatest) and the memory of the process. Lines
should be flat. What a long run leaves is made beforehand: a row of metrics.csv for each round that lies behind, and for
SCAFFOLD a state of every client.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from simulation import CLASSES, mlp

import fedkd
from fedkd.core.client_states import ClientStates
from fedkd.data import FederatedDataModule, ImageSet
from fedkd.data.sources import Datasets
from fedkd.partition import IID
from fedkd.runs.client_files import ClientFiles
from fedkd.runs.directory import RunDirectory
from fedkd.server.setup import plan_run, prepare_run, run_settings

COHORT = 20
IMAGES_A_CLIENT = 10


def resident() -> float:
    """Return the memory of this process in MiB."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    except OSError:
        return float("nan")
    return int(fields["VmRSS"].split()[0]) / 1024


def measure(clients: int, before: int, strategy: fedkd.Strategy, rounds: int, folder: Path) -> dict[str, float]:
    """Time rounds of a run.

    Args:
        clients: In all.
        before: Rounds that lie behind the run.
        strategy: The strategy.
        rounds: How many are timed.
        folder: The run directory.
    """
    torch.manual_seed(0)
    rng = np.random.default_rng(0)

    def images(count: int) -> ImageSet:
        pixels = torch.from_numpy(rng.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8))
        return ImageSet(pixels, torch.from_numpy(rng.integers(0, 10, count)), CLASSES)

    data = FederatedDataModule(
        Datasets(images(IMAGES_A_CLIENT * clients), images(100)), num_clients=clients, partitioner=IID(), batch_size=10
    )
    federation = fedkd.Federation(
        10**6, clients_per_round=COHORT, strategy=strategy, trainer={"accelerator": "cpu"}, run_dir=folder
    )
    module = fedkd.DistillationModule(mlp(64, 64))
    began = time.perf_counter()
    plan = plan_run(federation, module, data)
    settings, run = run_settings(federation, plan), RunDirectory(folder)
    run.start(data, None)
    with prepare_run(federation, plan) as prepared:
        set_up = time.perf_counter() - began
        history: list = []
        state = next(federation._rounds(run, prepared, prepared.start(), history, settings))
        if before:
            run.metrics.write([{**history[0], "round": number} for number in range(before)])
        if files := sorted(run.clients_folder.glob("*.safetensors")):
            for client in range(clients):  # a file has few names at most, so the cohort's stand in for all in turn
                path = run.clients_folder / f"{client}.round_000001.safetensors"
                if not path.exists():
                    os.link(files[client % len(files)], path)
            remembered = ClientStates(ClientFiles(run.clients_folder, round=1))
            state = dataclasses.replace(state, client_states=remembered)
        stepping = federation._rounds(run, prepared, state, history, settings)
        seconds = []
        for _ in range(rounds):
            began = time.perf_counter()
            state = next(stepping)
            seconds.append(time.perf_counter() - began)
    states = sum(1 for _ in state.client_states)
    return {
        "clients": clients,
        "rounds before": before,
        "ms": 1000 * statistics.median(seconds),
        "ms, least": 1000 * min(seconds),
        "ms, greatest": 1000 * max(seconds),
        "set-up s": set_up,
        "memory MiB": resident(),
        "clients remembered": states,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    rows = []
    for strategy in (fedkd.FedAvg(), fedkd.strategies.SCAFFOLD()):
        for clients, before in [(100, 0), (1000, 0), (10_000, 0), (100_000, 0), (1000, 10), (1000, 10_000)]:
            with tempfile.TemporaryDirectory() as folder:
                row = measure(clients, before, strategy, options.rounds, Path(folder) / "run")
            rows.append({"strategy": type(strategy).__name__, **row})
            shown = {name: f"{value:.1f}" if isinstance(value, float) else value for name, value in rows[-1].items()}
            print(", ".join(f"{name} {value}" for name, value in shown.items()), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
