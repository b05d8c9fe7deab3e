"""A grid without machines: messages go through Flower's own byte form to the app in this process."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedkd.flower.apps import client_app

Fault = Callable[[Message, Message], Message | None]
"""From a message and its answer to the answer that arrives; None if none does."""


class LocalGrid(Grid):
    """Runs `fedkd.flower.client_app` for each message.

    Args:
        nodes: The configuration of each SuperNode, by its number.
        config: The app's configuration.
        fault: What goes wrong.
    """

    def __init__(
        self, nodes: Mapping[int, Mapping[str, Any]], config: Mapping[str, Any], fault: Fault | None = None
    ) -> None:
        self.nodes, self.config, self.fault = dict(nodes), dict(config), fault
        self.answers: dict[str, Message] = {}
        self.sent: list[Message] = []
        self._numbers = itertools.count()
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        numbers = []
        for message in messages:
            number = f"message-{next(self._numbers)}"
            message.metadata.__dict__["_message_id"] = number
            numbers.append(number)
            self.sent.append(message)
            arrived = message_from_proto(message_to_proto(message))
            node = message.metadata.dst_node_id
            if node not in self.nodes:  # it left: nobody answers
                continue
            context = Context(1, node, dict(self.nodes[node]), RecordDict(), self.config)
            try:
                reply = client_app(arrived, context)
            except Exception as error:  # as Flower does
                reply = Message(Error(0, str(error)), reply_to=arrived)
            answer = message_from_proto(message_to_proto(reply))
            if self.fault is not None:
                answer = self.fault(message, answer)
            if answer is not None:
                self.answers[number] = answer
        return numbers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self.answers.pop(number) for number in list(message_ids) if number in self.answers]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))
