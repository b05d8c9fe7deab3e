"""`Flower`: clients on other machines, reached through Flower's `Grid`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from fedkd import __version__
from fedkd.core.errors import FedKDError, check_range
from fedkd.core.messages import ClientTask, Work
from fedkd.data.remote import ClientCounts, RemoteData, RemoteSites
from fedkd.flower.records import header_of, pack, pack_work, unpack_outcomes
from fedkd.flower.stage import to_plain
from fedkd.server.backends.base import Backend, ClientError, Outcome, SiteFactory, Workers
from fedkd.server.backends.process_pool import name_of
from fedkd.server.setup import run_settings

HELLO, WORK = "query.hello", "train.work"
"""The types of Flower's messages, which decide the function of `fedkd.flower.client_app` that answers."""

GREETING_SECONDS = 1.0
"""How often the server looks which nodes are there."""

HELLO_SECONDS = 60.0
"""A node that has not answered the hello for so long is asked again: it may have been started again since."""

DATA_LINES = ("data set", "partition", "shared images")
"""What a server and a client with data of its own need not agree on; see `fedkd.server.setup.run_settings`."""


@dataclass(frozen=True)
class Node:
    """A SuperNode, as it introduced itself.

    Args:
        number: Flower's number of it.
        partition: Which part of the clients it has, ``partition-id`` of its ``--node-config``.
        num_partitions: How many parts there are.
        clients: Its clients and their data, by index.
    """

    number: int
    partition: int
    num_partitions: int
    clients: Mapping[int, ClientCounts]


class Flower(Backend):
    """Run clients on the SuperNodes of a Flower federation. `fedkd.flower.server_app` makes it.

    A SuperNode serves the clients ``k`` with ``k % num_partitions == partition-id``; with as many partitions as clients
    it is one client.

    Args:
        grid: Flower's connection to the SuperNodes.
        start_timeout: Seconds to wait until the SuperNodes of all clients are there, > 0.
        client_timeout: Seconds after which the clients of an exchange that have not answered have failed, > 0: see
            ``min_clients`` of `fedkd.Federation`. The clients of a SuperNode work one after the other and share it.
        poll_seconds: Seconds between two looks for answers, > 0.

    Raises:
        FedKDError: If a number is out of range.
    """

    is_remote = True

    def __init__(
        self,
        grid: Grid,
        start_timeout: float = 600.0,
        client_timeout: float = 3600.0,
        poll_seconds: float = 0.1,
    ) -> None:
        for name, value in (
            ("start_timeout", start_timeout),
            ("client_timeout", client_timeout),
            ("poll_seconds", poll_seconds),
        ):
            check_range(name, value, low=0, low_open=True)
        self.grid, self.start_timeout, self.client_timeout = grid, start_timeout, client_timeout
        self.poll_seconds = poll_seconds
        self.nodes: dict[int, Node] = {}
        self.counts: dict[int, ClientCounts] = {}  # of each client, as the first node said that has it
        self._asked: dict[str, Asked] = {}  # who has not answered the hello yet, by the message's id
        self._refused: set[int] = set()
        self.hello = ""  # what the nodes are greeted with: what this run is

    def __repr__(self) -> str:
        """Return the settings: the grid has no readable form."""
        return f"Flower(start_timeout={self.start_timeout:g}, client_timeout={self.client_timeout:g})"

    def data_of(self, plan: Any, federation: Any) -> RemoteData:
        """Wait for the clients, compare what both sides run, and return the data as the server sees them."""
        data = plan.datamodule
        if not data.has_rows and (data.shared is not None or plan.strategy.students()):
            what = "data.shared" if data.shared is not None else type(plan.strategy).__name__
            raise FedKDError(
                f"{what} needs the public images on every client: it does not go with own-data, where a SuperNode has "
                "its own images alone."
            )
        lines = run_settings(federation, plan)
        if not data.has_rows:
            lines = {key: value for key, value in lines.items() if key not in DATA_LINES}
        self.hello = json.dumps(
            {
                "fedkd": __version__,
                "classes": list(data.classes),
                "image_shape": list(data.image_shape),
                "num_clients": data.num_clients,
                "own_data": not data.has_rows,
                "lines": lines,
            }
        )
        self.nodes, self.counts, self._asked, self._refused = {}, {}, {}, set()  # of an earlier run
        self._wait_for_clients(data.num_clients)
        rank_zero_info(f"{len(self.nodes)} SuperNodes with {data.num_clients} clients are there")
        return RemoteData(data, [self.counts[client] for client in range(data.num_clients)], plan.modules[0].teacher)

    def open(self, sites: SiteFactory) -> Workers:
        """Return workers that send tasks to the SuperNodes."""
        if not isinstance(sites, RemoteSites):
            raise FedKDError("Flower runs clients whose data are on other machines: see fedkd.flower.server_app.")
        return FlowerWorkers(self, {**to_plain(sites), "hello": self.hello})

    def serving(self) -> dict[int, int]:
        """Return the number of the node that serves each client: of several the last that answered."""
        return {client: node.number for node in self.nodes.values() for client in node.clients}

    def greet(self, strict: bool = False) -> None:
        """Let go of the nodes that left, ask the new ones who they are, and read the answers that are there.

        It waits for no answer: a node that never answers holds nobody up. Several nodes may have the same clients, as
        when one was started again and Flower still counts the one before: `serving` takes the last that answered.

        Args:
            strict: Whether to raise if a node cannot take part, as when a run starts. Otherwise it is left out, with
                a warning.

        Raises:
            FedKDError: If a node runs something else, or has other images of a client than are known.
        """
        present, now = set(self.grid.get_node_ids()), time.monotonic()
        self.nodes = {number: node for number, node in self.nodes.items() if number in present}
        self._refused &= present  # one that comes back may have been mended
        self._asked = {
            message: asked
            for message, asked in self._asked.items()
            if asked.node in present and now < asked.when + HELLO_SECONDS
        }
        waiting = {asked.node for asked in self._asked.values()}
        for number in sorted(present - set(self.nodes) - self._refused - waiting):
            (message,) = self.grid.push_messages([Message(pack(self.hello, []), number, HELLO)])
            if message is not None:
                self._asked[message] = Asked(number, now)
        for reply in self.grid.pull_messages(sorted(self._asked)) if self._asked else ():
            asked = self._asked.pop(reply.metadata.reply_to_message_id, None)
            if asked is None or is_gone(reply):
                continue
            number = asked.node
            try:
                self.nodes[number] = self._introduced(number, reply)
            except FedKDError as error:
                if strict:
                    raise
                self._refused.add(number)
                rank_zero_warn(f"{error} It is left out.")

    def _introduced(self, number: int, reply: Message) -> Node:
        """Return a node by its answer to the hello.

        Raises:
            FedKDError: If it cannot take part, or has other images of a client than are known.
        """
        if reply.has_error():
            raise FedKDError(f"SuperNode {number} could not be asked who it is: {_reason(reply)}")
        node = node_from(number, header_of(reply.content))
        for client, counts in node.clients.items():
            if self.counts.get(client, counts) != counts:
                raise FedKDError(
                    f"SuperNode {number} has partition-id {node.partition} and other images of client {client} than "
                    "another SuperNode: give each its own with --node-config 'partition-id=K num-partitions=N'."
                )
        self.counts |= node.clients
        return node

    def _wait_for_clients(self, num_clients: int) -> None:
        """Wait until all clients are there.

        Raises:
            FedKDError: If they are not, in time.
        """
        deadline, pause = time.monotonic() + self.start_timeout, self.poll_seconds
        while True:
            self.greet(strict=True)
            there = {client for node in self.nodes.values() for client in node.clients}
            missing = sorted(set(range(num_clients)) - there)
            if not missing:
                return
            if time.monotonic() > deadline:
                shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
                silent = f", {len(self._asked)} have not said who they are" if self._asked else ""
                raise FedKDError(
                    f"After {self.start_timeout:g} s (start_timeout), {len(self.nodes)} SuperNode(s) are "
                    f"there{silent}, and none has client(s) {shown} of {num_clients}. Start a flower-supernode for "
                    "them, with --node-config 'partition-id=K num-partitions=N'."
                )
            time.sleep(pause)
            pause = min(2 * pause, 2.0)


def node_from(number: int, text: str) -> Node:
    """Return a node by its answer to the hello.

    Raises:
        FedKDError: If it refuses to take part, or its answer is none.
    """
    try:
        told = json.loads(text)
        if told.get("error"):
            raise FedKDError(f"it cannot take part: {told['error']}")
        clients = {int(client): ClientCounts(*counts) for client, counts in told["clients"].items()}
        for client, counts in clients.items():
            check_range("client", client, low=0, whole=True)
            check_range("num_examples", counts.num_examples, low=0, whole=True)
            check_range("num_held_out", counts.num_held_out, low=0, whole=True)
        return Node(number, int(told["partition"]), int(told["num_partitions"]), clients)
    except FedKDError as error:
        raise FedKDError(f"SuperNode {number}: {error}") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FedKDError(f"SuperNode {number} did not say who it is: {type(error).__name__} {error}.") from error


@dataclass(frozen=True)
class Asked:
    """A hello that waits for its answer.

    Args:
        node: Flower's number of the node.
        when: Of a monotonic clock, in seconds.
    """

    node: int
    when: float


@dataclass(frozen=True)
class Sent:
    """A message that waits for its answer.

    Args:
        node: Flower's number of the node.
        tasks: The tasks of its clients.
    """

    node: int
    tasks: Sequence[ClientTask]


class FlowerWorkers(Workers):
    """Sends tasks as Flower's messages, and yields the answers as they come.

    Args:
        backend: The backend.
        stage: What clients must know to make their sites: `fedkd.flower.stage.to_plain`.
    """

    def __init__(self, backend: Flower, stage: Mapping[str, Any]) -> None:
        self.backend, self.stage = backend, stage

    def map(self, work: Work, tasks: Sequence[ClientTask]) -> Iterator[Outcome]:
        """Yield what comes of the tasks, as it comes.

        A node gets all its clients' tasks in one message. Those of a node that leaves are sent again once a node is
        there for them: a result depends on its task alone.
        """
        backend, name = self.backend, name_of(work)
        waiting = {task.client: task for task in tasks}  # for their node
        sent: dict[str, Sent] = {}  # for an answer, by the message's id
        deadline, greeted = time.monotonic() + backend.client_timeout, -GREETING_SECONDS
        while waiting or sent:
            if time.monotonic() > greeted + GREETING_SECONDS:
                backend.greet()
                for message in [each for each, what in sent.items() if not self._is_served(what)]:
                    waiting |= {task.client: task for task in sent.pop(message).tasks}
                sent |= self._send(name, waiting)
                greeted = time.monotonic()
            for reply in backend.grid.pull_messages(list(sent)) if sent else ():
                what = sent.pop(reply.metadata.reply_to_message_id, None)
                if what is None:
                    continue
                if is_gone(reply):
                    backend.nodes.pop(what.node, None)
                    waiting |= {task.client: task for task in what.tasks}
                    continue
                yield from outcomes_of(reply, what.tasks, backend.counts)
                del reply
            if time.monotonic() > deadline:
                for late in sent.values():
                    reason = f"it took longer than client_timeout, {backend.client_timeout:g} s"
                    yield from (_failure(task, reason) for task in late.tasks)
                for task in waiting.values():
                    reason = f"its SuperNode was not there for client_timeout, {backend.client_timeout:g} s"
                    yield _failure(task, reason)
                return
            if waiting or sent:
                time.sleep(backend.poll_seconds)

    def _is_served(self, what: Sent) -> bool:
        """Whether the node that a message went to is there, and no other has taken over its clients."""
        serving = self.backend.serving()
        return all(serving.get(task.client) == what.node for task in what.tasks)

    def _send(self, work: str, waiting: dict[int, ClientTask]) -> dict[str, Sent]:
        """Send the tasks whose nodes are there, and take them out of ``waiting``; return them by the message's id."""
        by_node: dict[int, list[ClientTask]] = {}
        serving = self.backend.serving()
        for task in waiting.values():
            if task.client in serving:
                by_node.setdefault(serving[task.client], []).append(task)
        sent: dict[str, Sent] = {}
        for number, tasks in by_node.items():
            content = pack_work(tasks, work, self.stage)
            group, ttl = str(tasks[0].round), self.backend.client_timeout
            (message,) = self.backend.grid.push_messages([Message(content, number, WORK, group_id=group, ttl=ttl)])
            if message is not None:
                sent[message] = Sent(number, tasks)
                for task in tasks:
                    del waiting[task.client]
        return sent


def is_gone(reply: Message) -> bool:
    """Whether an answer is Flower's own, which says that the node left before it answered."""
    return reply.has_error() and reply.error.code == ErrorCode.NODE_UNAVAILABLE


def outcomes_of(reply: Message, tasks: Sequence[ClientTask], counts: Mapping[int, ClientCounts]) -> Iterator[Outcome]:
    """Yield what an answer says of each task: the update, or why there is none."""
    try:
        if reply.has_error():
            raise FedKDError(_reason(reply))
        found = unpack_outcomes(reply.content, tasks)
    except (FedKDError, KeyError, TypeError) as error:
        found = {task.client: f"its SuperNode's answer: {error}" for task in tasks}
    for task in tasks:
        outcome = found.pop(task.client)
        if not isinstance(outcome, str) and outcome.num_examples > counts[task.client].num_examples:
            had = counts[task.client].num_examples
            outcome = f"its update counts {outcome.num_examples} images, and it said that it has {had}"
        yield _failure(task, outcome) if isinstance(outcome, str) else outcome
        del outcome


def _reason(reply: Message) -> str:
    """Return in one line what went wrong at a node."""
    return " ".join(str(reply.error.reason).split())


def _failure(task: ClientTask, reason: str) -> ClientError:
    return ClientError([task.client], task.round, reason)
