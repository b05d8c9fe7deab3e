"""What Flower's messages cost: a round of ten clients over `LocalGrid`, beside the same round without messages.

    python -m benchmarks.flower [--rounds 7] [--students resnet8 resnet18]

Clients train one step on one small batch, so the rest of a round is what is measured. Both forms run in this process,
alternately. What a deployment adds is the network, and a process that Flower starts for each message.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
import yaml
from flwr.common.serde import message_to_proto

from fedkd.core.messages import ClientTask, Weights
from fedkd.flower import LocalGrid, server_run
from fedkd.flower.records import pack_work, unpack_work
from fedkd.flower.run_files import load_run

CLIENTS = 10
STUDENTS = {"resnet8": 75_000, "resnet18": 11_000_000}
RUN = {
    "data": {
        "dataset": {"class_path": "Subset", "init_args": {"dataset": "Digits", "train_fraction": 0.1}},
        "num_clients": CLIENTS,
        "partitioner": "IID",
        "batch_size": 16,
    },
    "model": {"student": "resnet8"},
    "federation": {"strategy": "FedAvg"},
    "trainer": {"max_epochs": 1, "accelerator": "cpu"},
}


class Counting(LocalGrid):
    """Counts the bytes of messages as Flower sends them."""

    sent = 0

    def push_messages(self, messages):
        """Count them, and pass them on."""
        messages = list(messages)
        self.sent += sum(message_to_proto(message).ByteSize() for message in messages)
        return super().push_messages(messages)

    def pull_messages(self, message_ids):
        """Count the answers."""
        answers = list(super().pull_messages(message_ids))
        self.sent += sum(message_to_proto(answer).ByteSize() for answer in answers)
        return answers


def measure(student: str, rounds: int, folder: Path) -> None:
    """Print the seconds of a round in both forms, and the bytes."""
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({**RUN, "model": {"student": student}}))
    found: dict[str, list[float]] = {"InProcess": [], "Flower": []}
    counted = flower_bytes = 0
    for number in range(2):
        for form in found:
            arguments = f"--federation.rounds {rounds} --run_dir {folder / f'{student}-{form}-{number}'}"
            config = {"config": str(path), "arguments": arguments}
            grid = Counting({k: {"partition-id": k, "num-partitions": CLIENTS} for k in range(CLIENTS)}, config)
            run = load_run(config) if form == "InProcess" else server_run(grid, config)
            summary = run.federation.fit(run.module, run.data)
            rows = (Path(summary["run_dir"]) / "metrics.csv").read_text().splitlines()
            column = rows[0].split(",").index("seconds")
            found[form] += [float(row.split(",")[column]) for row in rows[2:]]  # without the first round
            if form == "Flower":
                counted, flower_bytes = summary["bytes_up"] + summary["bytes_down"], grid.sent
    for form, seconds in found.items():
        median, least, most = statistics.median(seconds), min(seconds), max(seconds)
        print(f"{student:9} {form:10} {median:7.3f} s a round ({least:.3f} to {most:.3f})")
    ratio = flower_bytes / counted
    print(f"{student:9} fedkd counts {counted / rounds / 1e6:.2f} MB a round, Flower sends {ratio:.3f} times as much")


def one_message(num_parameters: int) -> None:
    """Print the seconds that it takes to make and to read one task of so many parameters."""
    task = ClientTask(0, 0, Weights({"weight": torch.randn(num_parameters)}))
    stage = {"stage": "rounds", "tensors": {}}
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        unpack_work(pack_work([task], "fedkd.client.works:train", stage))
        seconds.append(time.perf_counter() - began)
    print(f"{num_parameters:10,} parameters: {1000 * statistics.median(seconds):.2f} ms to make and to read a task")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=list(STUDENTS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for student in given.students:
            one_message(STUDENTS[student])
            measure(student, given.rounds, Path(folder))


if __name__ == "__main__":
    main()
