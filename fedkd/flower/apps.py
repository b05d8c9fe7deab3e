"""The components of a Flower app: the server's part of a run, and a client's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedkd import __version__
from fedkd.core.errors import FedKDError
from fedkd.core.storage import cache_dir
from fedkd.data.remote import PoolAndTest
from fedkd.flower.backend import Flower
from fedkd.flower.node import Node, Place
from fedkd.flower.records import header_of, pack, pack_outcomes, unpack_work
from fedkd.flower.run_files import Run, load_run
from fedkd.server.backends.base import said_by

FAILED = 1
"""The code of a failure in Flower's messages; the reason says what it is."""

_nodes: dict[int, dict[Any, Node]] = {}
"""The nodes of the run that this process works for, by the run: one, but where several clients with images of their own
are on one machine. A process that Flower keeps gets a run's data and teacher once."""

server_app = ServerApp()
client_app = ClientApp()


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    """Run a federation whose clients are SuperNodes.

    Args:
        grid: Flower's connection to them.
        context: With the app's configuration; see docs/flower.md.
    """
    from fedkd.cli.display import print_summary

    run = server_run(grid, context.run_config)
    print_summary(run.federation.fit(run.module, run.data, ckpt_path=run.ckpt_path))


def server_run(grid: Grid, config: Mapping[str, Any]) -> Run:
    """Return the run that an app's configuration names, as its server has it.

    Args:
        grid: Flower's connection to the SuperNodes.
        config: The app's configuration.
    """
    run = load_run(config)
    timeouts = {name: float(config[key]) for name, key in TIMEOUTS.items() if key in config}
    run.federation.backend = Flower(grid, **timeouts)
    return replace(run, data=PoolAndTest(run.data)) if config.get("own-data", False) else run


TIMEOUTS = {"start_timeout": "start-timeout", "client_timeout": "client-timeout"}
"""Arguments of `Flower`, and their names in an app's configuration."""


@client_app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Tell the server which clients are here and how many images they have, or why they cannot take part."""
    try:
        text = header_of(message.content)
        place = Place.of(context.node_config)
        told = node(text, context, place).introduce(place, json.loads(text)["lines"])
    except Exception as error:  # whatever it is, the server is told
        told = {"error": said_by(error)}
    return Message(pack(json.dumps(told), []), reply_to=message)


@client_app.train("work")
def work(message: Message, context: Context) -> Message:
    """Do the work of the clients here."""
    try:
        text = json.loads(header_of(message.content))["stage"]["hello"]
        place = Place.of(context.node_config)
        here = node(text, context, place)  # first: it imports the classes that the task names
        content = pack_outcomes(here.run(place, *unpack_work(message.content)))
    except Exception as error:  # whatever it is, the server is told
        return Message(Error(FAILED, said_by(error)), reply_to=message)
    return Message(content, reply_to=message)


def node(hello: str, context: Context, place: Place) -> Node:
    """Return the node of a run, made once in a process.

    Raises:
        FedKDError: If the server runs another version of fedkd, or a client cannot be made here.
    """
    told = json.loads(hello)
    if told["fedkd"] != __version__:
        raise FedKDError(f"fedkd {__version__} is installed here, and {told['fedkd']} at the server.")
    if told["own_data"] != (place.data_root is not None):
        wants = "a data-root in its --node-config" if told["own_data"] else "no data-root, since own-data is false"
        raise FedKDError(f"The run expects a SuperNode with {wants}.")
    own = place if place.data_root is not None else Place(0, 1)  # one node for all clients of a shared data set
    key = (hello, json.dumps(dict(context.run_config), sort_keys=True), own)
    if key not in _nodes.get(context.run_id, {}):
        run, scratch = load_run(context.run_config), cache_dir("flower") / f"run-{context.run_id}"
        classes, image_shape = tuple(told["classes"]), tuple(told["image_shape"])
        made = Node(run.federation, run.module, run.data, own, classes, image_shape, scratch)
        kept = _nodes.get(context.run_id, {})
        _nodes.clear()  # of runs that are over
        _nodes[context.run_id] = {**kept, key: made}
    return _nodes[context.run_id][key]
