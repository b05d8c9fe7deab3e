"""A real deployment on this machine: a SuperLink, SuperNodes with TLS and authentication, and Flower's simulation."""

from __future__ import annotations

import csv
import datetime
import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytest.importorskip("flwr")

from helpers import same

import fedkd
from fedkd.flower.run_files import load_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "flower"
BIN = Path(sys.executable).parent
PATIENCE = 900
"""Seconds. Flower starts a process for each message, and each imports torch and Lightning."""


class Deployment:
    """The processes of a deployment, with all that they write below one folder.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        source = Path(fedkd.__file__).parents[1]
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(source),
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FEDKD_CACHE": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        self.processes: dict[str, subprocess.Popen] = {}
        (folder / "flwr").mkdir(parents=True)

    def start(self, name: str, *command: str) -> None:
        """Start a process of a group of its own, with its output in a file."""
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [str(BIN / command[0]), *command[1:]],
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        """Kill a process and those that it started."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def kill_child(self, name: str, command: str) -> None:
        """Kill the one process below another whose command has this name; Flower gives each a session of its own."""
        parents: dict[int, int] = {}
        commands: dict[int, list[str]] = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
                state = (process / "stat").read_text().rpartition(") ")[2]
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
            commands[int(process.name)] = [Path(os.fsdecode(word)).name for word in words[:2]]
            parents[int(process.name)] = int(state.split()[1])

        def is_below(number: int) -> bool:
            return number == self.processes[name].pid or (number in parents and is_below(parents[number]))

        found = [number for number, words in commands.items() if command in words and is_below(number)]
        assert len(found) == 1, [(number, commands[number]) for number in found]
        os.kill(found[0], signal.SIGKILL)

    def flwr(self, *arguments: str) -> str:
        """Run Flower's own command to its end."""
        done = subprocess.run(
            [str(BIN / "flwr"), *arguments],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def connection(self, **settings: object) -> None:
        """Write how `flwr` reaches the SuperLink."""
        lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())
        text = f'[superlink]\ndefault = "here"\n\n[superlink.here]\n{lines}\n'
        (self.folder / "flwr" / "config.toml").write_text(text)

    def wait_for(self, path: Path, text: str = "") -> None:
        """Wait until a file is there and has a text in it."""
        deadline = time.monotonic() + PATIENCE
        while not (path.exists() and text in path.read_text(errors="replace")):
            assert time.monotonic() < deadline, f"{path} has no {text!r}: {self.logs()}"
            for name, process in self.processes.items():
                assert process.poll() is None, f"{name} ended: {self.logs()}"
            time.sleep(1)

    def logs(self) -> str:
        """Return the ends of what the processes wrote."""
        return "\n".join(
            f"== {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in self.folder.glob("*.log")
        )


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    made = Deployment(tmp_path)
    yield made
    for name in list(made.processes):
        made.kill(name)


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def make_certificates(folder: Path) -> None:
    """Write a certificate authority, and a certificate for 127.0.0.1 that it signed."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def pem(key) -> bytes:
        form = serialization.PrivateFormat.PKCS8
        return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())

    now = datetime.datetime.now(datetime.UTC)
    keys = {name: ec.generate_private_key(ec.SECP384R1()) for name in ("ca", "server")}
    names = {name: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fedkd test {name}")]) for name in keys}
    for name in ("ca", "server"):
        builder = (
            x509.CertificateBuilder()
            .subject_name(names[name])
            .issuer_name(names["ca"])
            .public_key(keys[name].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
        )
        if name == "server":
            here = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
            builder = builder.add_extension(x509.SubjectAlternativeName(here), critical=False)
        certificate = builder.sign(keys["ca"], hashes.SHA384())
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / f"{name}.key").write_bytes(pem(keys[name]))


def make_node_key(path: Path) -> None:
    """Write the key of a SuperNode, and the public one beside it."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP384R1())
    form = serialization.PrivateFormat.OpenSSH
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    encoding, public = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    path.with_suffix(".pub").write_bytes(key.public_key().public_bytes(encoding, public))


def app(folder: Path) -> Path:
    """Copy the example, as a user would."""
    return Path(shutil.copytree(EXAMPLE, folder / "app"))


def test_the_quickstart_with_tls_and_authentication_while_a_node_is_killed(deployment: Deployment):
    folder, address = deployment.folder, f"127.0.0.1:{deployment.port}"
    make_certificates(folder)
    tls = ["--ssl-ca-certfile", "ca.pem", "--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key"]
    deployment.start(
        "superlink",
        *("flower-superlink", *tls, "--enable-supernode-auth", "--disable-runtime-dependency-installation"),
        *("--port", str(deployment.port)),
    )
    deployment.connection(**{"address": address, "root-certificates": str(folder / "ca.pem")})
    deployment.wait_for(folder / "superlink.log", "Application startup complete")
    for k in range(2):
        make_node_key(folder / f"node{k}")
        deployment.flwr("supernode", "register", str(folder / f"node{k}.pub"), "here")
        deployment.start(
            f"node{k}",
            *("flower-supernode", "--superlink", address, "--root-certificates", "ca.pem", "--port", str(free_port())),
            *("--auth-supernode-private-key", f"node{k}", "--node-config", f"partition-id={k} num-partitions=2"),
        )
    make_node_key(folder / "stranger")
    deployment.start(
        "stranger",
        *("flower-supernode", "--superlink", address, "--root-certificates", "ca.pem", "--port", str(free_port())),
        *("--auth-supernode-private-key", "stranger", "--node-config", "partition-id=0 num-partitions=2"),
    )
    run_dir, rounds = folder / "run", 4
    short = f"--federation.rounds {rounds} --trainer.max_epochs 1 --federation.min_clients 5"
    deployment.processes["stranger"].wait(timeout=PATIENCE)  # it is not registered, so it is turned away
    deployment.processes.pop("stranger")
    arguments = json.dumps(f"{short} --run_dir {run_dir}")
    deployment.flwr("run", str(app(folder)), "here", "--run-config", f"arguments={arguments} client-timeout=120.0")
    deployment.wait_for(run_dir / "metrics.csv", "\n1,")  # two rounds are done
    deployment.kill("node1")
    deployment.wait_for(run_dir / "summary.json", "balanced_accuracy")

    rows = [line.split(",") for line in (run_dir / "metrics.csv").read_text().splitlines()]
    clients = [len(row[rows[0].index("cohort")].split()) for row in rows[1:]]
    assert len(clients) == rounds
    assert clients[0] == 10
    assert clients[-1] == 5
    failed = [line.split(",") for line in (run_dir / "failures.csv").read_text().splitlines()[1:]]
    assert {int(row[1]) % 2 for row in failed} == {1}
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["balanced_accuracy"] > 0.9

    # until the node was killed, the rounds are those of one process
    expected = folder / "expected"
    here = load_run({"config": str(EXAMPLE / "run.yaml"), "arguments": f"{short} --run_dir {expected}"})
    here.federation.fit(here.module, here.data)
    first = (expected / "metrics.csv").read_text().splitlines()[1].split(",")
    columns = [rows[0].index(name) for name in ("balanced_accuracy", "bytes_up", "bytes_down", "cohort")]
    assert [rows[1][k] for k in columns] == [first[k] for k in columns]


def test_a_server_that_is_killed_is_started_again_and_ends_with_the_same_student(deployment: Deployment):
    folder, address = deployment.folder, f"127.0.0.1:{deployment.port}"
    deployment.start(
        "superlink",
        *("flower-superlink", "--insecure", "--disable-runtime-dependency-installation"),
        *("--port", str(deployment.port)),
    )
    deployment.connection(address=address, insecure=True)
    deployment.wait_for(folder / "superlink.log", "Application startup complete")
    for k in range(2):
        deployment.start(
            f"node{k}",
            *("flower-supernode", "--insecure", "--superlink", address, "--port", str(free_port())),
            *("--node-config", f"partition-id={k} num-partitions=2"),
        )
    short = "--federation.rounds 3 --trainer.max_epochs 1 --data.num_clients 2"
    run_dir, sent = folder / "run", folder / "app"
    app(folder)

    def start(more: str = "") -> None:
        arguments = json.dumps(f"{short} --run_dir {run_dir}{more}")
        deployment.flwr("run", str(sent), "here", "--run-config", f"arguments={arguments} client-timeout=600.0")

    start()
    deployment.wait_for(run_dir / "metrics.csv", "\n0,")  # a round is done
    deployment.kill_child("superlink", "flwr-serverapp")
    assert not (run_dir / "summary.json").exists()
    start(" --ckpt_path last")
    deployment.wait_for(run_dir / "summary.json", "balanced_accuracy")
    here = load_run({"config": str(EXAMPLE / "run.yaml"), "arguments": f"{short} --run_dir {folder / 'here'}"})
    expected = here.federation.fit(here.module, here.data)
    found, wanted = (load_file(folder / name / "student.safetensors") for name in ("run", "here"))
    assert same(found, wanted)

    # with one client on each node Flower counts what fedkd counts, a little around it and the head in each task; the
    # SuperLink has already what the first run's clients sent after its end, so the answers are not compared
    again, killed = json.loads(deployment.flwr("list", "here", "--format", "json"))["runs"]
    assert [killed["status"], again["status"]] == ["finished:failed", "finished:completed"]
    rounds = list(csv.DictReader((run_dir / "metrics.csv").open()))
    assert [row["round"] for row in rounds] == ["0", "1", "2"]
    down = sum(int(row["bytes_down"]) for row in rounds[1:])
    assert down < again["network-traffic"]["outbound-bytes"] < 1.1 * down
    assert expected["bytes_down"] == json.loads((run_dir / "summary.json").read_text())["bytes_down"]


def test_flowers_own_simulation(deployment: Deployment):
    pytest.importorskip("ray")
    folder, port = deployment.folder, str(deployment.port)
    # the SuperLink that flwr itself starts for a simulation would install the app's dependencies
    deployment.start(
        "superlink",
        *("flower-superlink", "--insecure", "--simulation", "--disable-runtime-dependency-installation"),
        *("--port", port),
    )
    deployment.connection(address=f"127.0.0.1:{port}", insecure=True)
    deployment.wait_for(folder / "superlink.log", "Application startup complete")
    deployment.flwr("federation", "simulation-config", "@none/default", "here", "--num-supernodes", "10")
    short = "--federation.rounds 2 --trainer.max_epochs 1"
    arguments = json.dumps(f"{short} --run_dir {folder / 'run'}")
    deployment.flwr("run", str(app(folder)), "here", "--run-config", f"arguments={arguments}")
    deployment.wait_for(folder / "run" / "summary.json", "balanced_accuracy")
    here = load_run({"config": str(EXAMPLE / "run.yaml"), "arguments": f"{short} --run_dir {folder / 'here'}"})
    here.federation.fit(here.module, here.data)
    found, expected = (load_file(folder / name / "student.safetensors") for name in ("run", "here"))
    assert same(found, expected)
