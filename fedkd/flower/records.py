"""fedkd's messages as Flower's records: tensors in an ArrayRecord, all else as JSON in a ConfigRecord. No pickle.

A tensor is sent as its bytes, row by row, lowest byte first, so it arrives with the same bits, whatever its dtype.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedkd.core.errors import FedKDError, unknown_name
from fedkd.core.messages import ClientTask, ClientUpdate, from_parts, to_parts

STYPE = "fedkd.raw"
"""How a tensor's bytes are to be read; Flower names numpy's own format ``numpy.ndarray``."""

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}
"""What may be sent, by name."""

MAX_DIMENSIONS = 8


def pack(header: str, tensors: Sequence[Tensor]) -> RecordDict:
    """Return a record of JSON and tensors."""
    arrays = {str(number): to_array(tensor) for number, tensor in enumerate(tensors)}
    return RecordDict({"tensors": ArrayRecord(arrays), "message": ConfigRecord({"json": header})})


def unpack(record: RecordDict) -> tuple[str, list[Tensor]]:
    """Return the JSON and the tensors of a record.

    Raises:
        FedKDError: If the record is none of `pack`.
    """
    header = header_of(record)
    try:
        arrays = record.array_records["tensors"]
        found = [arrays[str(number)] for number in range(len(arrays))]
    except (KeyError, TypeError, AttributeError) as error:
        raise FedKDError(f"This record is no message of fedkd: {type(error).__name__} {error}.") from error
    return header, [to_tensor(array) for array in found]


def header_of(record: RecordDict) -> str:
    """Return the JSON of a record, and leave its tensors as they are.

    Raises:
        FedKDError: If the record is none of `pack`.
    """
    try:
        header = record.config_records["message"]["json"]
    except (KeyError, TypeError, AttributeError) as error:
        raise FedKDError(f"This record is no message of fedkd: {type(error).__name__} {error}.") from error
    if not isinstance(header, str):
        raise FedKDError(f"The JSON of a message must be text, got {type(header).__name__}.")
    return header


def to_array(tensor: Tensor) -> Array:
    """Return a tensor's bytes with what is needed to read them.

    Raises:
        FedKDError: If its dtype is none of `DTYPES`.
    """
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise unknown_name("dtype of a tensor in a message", name, DTYPES)
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    if sys.byteorder == "big":
        raise FedKDError("fedkd sends numbers lowest byte first; this machine has the highest first.")
    return Array(name, tuple(tensor.shape), STYPE, data)


def to_tensor(array: Array) -> Tensor:
    """Return the tensor of an array. Its size is compared with its bytes before memory is taken.

    Raises:
        FedKDError: If dtype, shape and bytes do not belong together.
    """
    if array.stype != STYPE:
        raise FedKDError(f"The array's bytes must be of the type {STYPE!r}, got {array.stype!r}.")
    if array.dtype not in DTYPES:
        raise unknown_name("dtype of a tensor in a message", array.dtype, DTYPES)
    dtype, shape = DTYPES[array.dtype], tuple(array.shape)
    if len(shape) > MAX_DIMENSIONS or any(not isinstance(size, int) or size < 0 for size in shape):
        raise FedKDError(f"A tensor's shape has at most {MAX_DIMENSIONS} sizes, each >= 0, got {shape}.")
    expected = math.prod(shape) * dtype.itemsize
    if expected != len(array.data):
        raise FedKDError(f"A {array.dtype} tensor of shape {shape} has {expected} bytes, got {len(array.data)}.")
    if not expected:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(array.data), dtype=dtype).reshape(shape)


def pack_work(tasks: Sequence[ClientTask], work: str, stage: Mapping[str, Any]) -> RecordDict:
    """Return a record that tells the clients of a node to work.

    A tensor that several tasks have, such as the student's weights, is in it once.

    Args:
        tasks: The tasks.
        work: The work, as ``module:name``.
        stage: What the clients must know to make their sites: `fedkd.flower.stage.to_plain`, with its ``tensors``.
    """
    known = {key: value for key, value in stage.items() if key != "tensors"}
    told: dict[str, Any] = {"work": work, "stage": known, "names": list(stage["tensors"]), "tasks": []}
    tensors, numbers = list(stage["tensors"].values()), {}
    for task in tasks:
        header, own = to_parts(task)
        for tensor in own:
            if id(tensor) not in numbers:
                numbers[id(tensor)] = len(tensors)
                tensors.append(tensor)
        told["tasks"].append([header, [numbers[id(tensor)] for tensor in own]])
    return pack(json.dumps(told), tensors)


def unpack_work(record: RecordDict) -> tuple[list[ClientTask], str, dict[str, Any]]:
    """Return what `pack_work` was given.

    Raises:
        FedKDError: If it was given nothing of the kind.
    """
    header, tensors = unpack(record)
    try:
        told = json.loads(header)
        names = told["names"]
        stage = {**told["stage"], "tensors": dict(zip(names, tensors[: len(names)], strict=True))}
        tasks = [from_parts(ClientTask, text, [tensors[k] for k in numbers]) for text, numbers in told["tasks"]]
        return tasks, told["work"], stage
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise FedKDError(f"This is no task of fedkd: {type(error).__name__}: {error}.") from error


def pack_outcomes(outcomes: Mapping[int, ClientUpdate | str]) -> RecordDict:
    """Return what came of a node's tasks as a record.

    Args:
        outcomes: For each client its update, or why there is none.
    """
    told, tensors = [], []
    for client, outcome in outcomes.items():
        if isinstance(outcome, str):
            told.append({"client": client, "error": outcome})
            continue
        header, own = to_parts(outcome)
        told.append({"client": client, "update": header, "count": len(own)})
        tensors += own
    return pack(json.dumps(told), tensors)


def unpack_outcomes(record: RecordDict, tasks: Sequence[ClientTask]) -> dict[int, ClientUpdate | str]:
    """Return what came of a node's tasks: for each client its update, or why there is none.

    An update of another client counts as none. What else is wrong with an update the exchange finds.

    Raises:
        FedKDError: If the record is no answer.
    """
    header, tensors = unpack(record)
    found: dict[int, ClientUpdate | str] = {}
    try:
        told, start = json.loads(header), 0
        for each in told:
            client = each["client"]
            if "error" in each:
                found[client] = str(each["error"])
                continue
            own, start = tensors[start : start + each["count"]], start + each["count"]
            found[client] = update = from_parts(ClientUpdate, each["update"], own)
            if update.client != client:
                found[client] = f"client {client} was told to work, and the answer is of {update.client}"
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise FedKDError(f"it is no answer to the task ({type(error).__name__}: {error})") from error
    return {task.client: found.get(task.client, "its node sent no answer for it") for task in tasks}
