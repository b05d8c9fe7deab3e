"""Round checkpoints: written whole or not at all, and refused by a run that they do not belong to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from fedkd.core.errors import FedKDError, MissingResourceError
from fedkd.core.messages import Metrics, ServerState

FORMAT = 1


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader, or a crash at any moment, finds the old one or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def save_checkpoint(
    path: Path,
    state: ServerState,
    strategy_state: Mapping[str, Any],
    history: list[Metrics],
    identity: Mapping[str, Any],
) -> None:
    """Save a finished round.

    Args:
        path: The file.
        state: The server's state after the round.
        strategy_state: The strategy's ``state_dict()``.
        history: One row of metrics for each round that is done.
        identity: What a run must agree on to go on from here, such as seed and partition.
    """
    from io import BytesIO

    buffer = BytesIO()
    torch.save(
        {
            "format": FORMAT,
            "state": {field.name: plain(getattr(state, field.name)) for field in fields(state)},
            "strategy": dict(strategy_state),
            "history": history,
            "identity": dict(identity),
        },
        buffer,
    )
    write_atomically(path, buffer.getvalue())


def plain(value: Any) -> Any:
    """Turn mappings of any kind, at any depth, into dicts; tensors are not copied."""
    return {key: plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def load_checkpoint(path: Path, identity: Mapping[str, Any]) -> tuple[ServerState, dict[str, Any], list[Metrics]]:
    """Load what `save_checkpoint` saved.

    Args:
        path: The file.
        identity: What this run is; each entry must equal the checkpoint's.

    Returns:
        ``(state, strategy_state, history)``.

    Raises:
        MissingResourceError: If there is no such file.
        FedKDError: If it is no round checkpoint, or one of another run.
    """
    if not path.is_file():
        raise MissingResourceError(f"No round checkpoint at {str(path)!r}; ckpt_path takes 'last' or the path of one.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch, zipfile and pickle make of a file that is something else
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FedKDError(f"{str(path)!r} is not a whole round checkpoint: {reason}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FedKDError(f"{str(path)!r} is not a round checkpoint of fedkd, format {FORMAT}.")
    for key, value in identity.items():
        found = content["identity"].get(key)
        if found != value:
            raise FedKDError(f"{str(path)!r} belongs to another run: its {key} is {found!r}, this run's is {value!r}.")
    return ServerState(**content["state"]), content["strategy"], content["history"]
