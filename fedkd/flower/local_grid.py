"""`LocalGrid`: SuperNodes without machines, to try a Flower app, or to test one, in a single process."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedkd.flower.apps import FAILED, client_app
from fedkd.server.backends.base import said_by

RUNS = itertools.count(1)
"""Numbers of runs, as a SuperLink gives them."""

Fault = Callable[[Message, Message], Message | None]
"""From a message and its answer to the answer that arrives; None if none does."""


class LocalGrid(Grid):
    """Runs `fedkd.flower.client_app` for each message, which goes through Flower's byte form both ways.

        config = {"config": "run.yaml", "arguments": "--federation.rounds 2"}
        nodes = {k: {"partition-id": k, "num-partitions": 10} for k in range(10)}
        run = fedkd.flower.server_run(fedkd.flower.LocalGrid(nodes, config), config)
        run.federation.fit(run.module, run.data)

    Args:
        nodes: The configuration of each SuperNode, by its number. It may change while a run goes on.
        config: The app's configuration, as the nodes have it.
        fault: What goes wrong, for tests.
    """

    def __init__(
        self, nodes: Mapping[int, Mapping[str, Any]], config: Mapping[str, Any], fault: Fault | None = None
    ) -> None:
        self.nodes, self.config, self.fault = dict(nodes), dict(config), fault
        self._answers: dict[str, Message] = {}
        self._numbers = itertools.count()
        self._waiting: dict[str, Message] = {}  # those that no answer came to
        self.run_id = next(RUNS)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = (
            self.run_id,
            1,
            1,
        )  # messages name their sender

    def set_run(self, run: Any) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> Any:
        """There is no run of a SuperLink."""
        raise NotImplementedError("a LocalGrid has no SuperLink")

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes' numbers."""
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let the nodes answer the messages, and return the messages' names."""
        names = []
        for message in messages:
            names.append(f"message-{next(self._numbers)}")
            message.metadata.__dict__["_message_id"] = names[-1]
            node = message.metadata.dst_node_id
            self._waiting[names[-1]] = message
            if node not in self.nodes:
                continue
            answer = message_from_proto(message_to_proto(self._answer(message_from_proto(message_to_proto(message)))))
            arriving = answer if self.fault is None else self.fault(message, answer)
            if arriving is not None:
                self._answers[names[-1]] = arriving
        return names

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        context = Context(self.run_id, node, dict(self.nodes[node]), RecordDict(), dict(self.config))
        try:
            return client_app(message, context)
        except Exception as error:  # as a SuperNode does
            return Message(Error(FAILED, said_by(error)), reply_to=message)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the answers that are there, and for a node that left Flower's own, which says so."""
        found = []
        for name in list(message_ids):
            message = self._waiting.get(name)
            if message is not None and name not in self._answers and message.metadata.dst_node_id not in self.nodes:
                gone = Error(ErrorCode.NODE_UNAVAILABLE, "the node left")
                self._answers[name] = Message(gone, reply_to=message)
            if name in self._answers:
                self._waiting.pop(name, None)
                found.append(self._answers.pop(name))
        return found

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Return the answers to messages."""
        return self.pull_messages(self.push_messages(messages))
