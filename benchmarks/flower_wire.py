"""What a message costs between real processes: a SuperLink and SuperNodes on this machine, with nothing to do.

    python -m benchmarks.flower_wire [--nodes 2] [--repeats 5]

The ClientApp sends back what it got, and imports nothing but numpy. So the seconds of an empty message are what Flower
takes to start a process and to look for messages, and those of a larger one less these are what its bytes take, there
and back. fedkd's own part of a round is in `benchmarks.flower`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = {"empty": 0, "75 thousand parameters": 4 * 75_290, "11.2 million": 4 * 11_200_000}
BIN = Path(sys.executable).parent

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "wire"
version = "1.0.0"
description = "Sends messages back"
license = "Apache-2.0"
dependencies = []
[tool.hatch.build.targets.wheel]
packages = ["."]
[tool.flwr.app]
publisher = "fedkd"
[tool.flwr.app.components]
serverapp = "wire:server_app"
clientapp = "wire:client_app"
[tool.flwr.app.config]
out = ""
nodes = 1
repeats = 1
sizes = "[]"
"""

APP = """
import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

server_app = ServerApp()
client_app = ClientApp()


@client_app.query("echo")
def echo(message, context):
    return Message(message.content, reply_to=message)


@server_app.main()
def serve(grid, context):
    out = Path(context.run_config["out"])
    try:
        text = json.dumps(measured(grid, context.run_config))
    except BaseException as error:
        text = json.dumps({"error": repr(error)})
    out.with_suffix(".part").write_text(text)
    out.with_suffix(".part").rename(out)


def measured(grid, config):
    found = {}
    while len(nodes := list(grid.get_node_ids())) < config["nodes"]:
        time.sleep(0.5)
    for repeat in range(1 + config["repeats"]):  # the first installs the app on the nodes
        for size in json.loads(config["sizes"]):
            data = np.random.default_rng(repeat).integers(0, 256, size, np.uint8)
            began = time.perf_counter()
            array = Array(dtype="uint8", shape=(size,), stype="raw", data=data.tobytes())
            content = RecordDict({"it": ArrayRecord({"x": array})})
            waiting = set(grid.push_messages([Message(content, node, "query.echo") for node in nodes]))
            while waiting:
                for reply in grid.pull_messages(list(waiting)):
                    assert not reply.has_error(), reply.error
                    waiting.discard(reply.metadata.reply_to_message_id)
                time.sleep(0.02)
            if repeat:
                found.setdefault(str(size), []).append(time.perf_counter() - began)
    return found
"""


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    processes: list[subprocess.Popen] = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        try:
            found = _measured(folder, given.nodes, given.repeats, processes)
        finally:
            for process in processes:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    empty = statistics.median(found["0"])
    for name, size in SIZES.items():
        seconds = found[str(size)]
        median = statistics.median(seconds)
        print(
            f"{name:23} {median:6.2f} s for {given.nodes} nodes ({min(seconds):.2f} to {max(seconds):.2f}), "
            f"of which its bytes {median - empty:.2f}"
        )


def _measured(folder: Path, nodes: int, repeats: int, processes: list[subprocess.Popen]) -> dict[str, list[float]]:
    """Run the app, and return the seconds by size."""
    app, home, out = folder / "app", folder / "flwr", folder / "out.json"
    app.mkdir()
    home.mkdir()
    (app / "pyproject.toml").write_text(PROJECT)
    (app / "wire.py").write_text(APP)
    address = f"127.0.0.1:{_free_port()}"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{address}"\ninsecure = true\n'
    )
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
    }

    def start(*command: str) -> None:
        with (folder / f"{len(processes)}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    [str(BIN / command[0]), *command[1:]],
                    env=environment,
                    cwd=folder,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    port = address.split(":")[1]
    start("flower-superlink", "--insecure", "--disable-runtime-dependency-installation", "--port", port)
    _wait(lambda: "Application startup complete" in (folder / "0.log").read_text(errors="replace"), folder)
    for _ in range(nodes):
        start("flower-supernode", "--insecure", "--superlink", address, "--port", str(_free_port()))
    sizes = json.dumps(list(SIZES.values()))
    config = f'out="{out}" nodes={nodes} repeats={repeats} sizes="{sizes}"'
    command = [str(BIN / "flwr"), "run", str(app), "here", "--run-config", config]
    subprocess.run(command, env=environment, cwd=folder, check=True)
    _wait(out.exists, folder)
    found = json.loads(out.read_text())
    if "error" in found:
        raise SystemExit(found["error"])
    return found


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def _wait(done, folder: Path, seconds: float = 1500) -> None:
    """Wait until ``done()``, or end with the logs."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            logs = "\n".join(log.read_text(errors="replace")[-2000:] for log in sorted(folder.glob("*.log")))
            raise SystemExit(f"It took more than {seconds:g} s.\n{logs}")
        time.sleep(0.5)


if __name__ == "__main__":
    main()
