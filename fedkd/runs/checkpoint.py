"""Round checkpoints: written whole or not at all, and refused by a run that they do not belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from fedkd.core.errors import FedKDError, MissingResourceError
from fedkd.core.messages import ServerState, from_bytes, metadata_of, to_bytes
from fedkd.core.sealed import DamagedFileError, read_sealed, sealed
from fedkd.core.storage import write_atomically
from fedkd.runs.layout import CHECKPOINT, RECORD

FORMAT = 6


@dataclass(frozen=True)
class Beside:
    """The fingerprints of what belongs to a checkpoint in files of their own.

    Args:
        client_files: What the strategy remembers for each client: `fedkd.runs.client_files.ClientFiles.fingerprint`.
        metrics: The rows of its rounds: `fedkd.runs.metrics_file.fingerprint_of`.
    """

    client_files: str
    metrics: str


def save_checkpoint(path: Path, state: ServerState, identity: Mapping[str, Any], beside: Beside) -> None:
    """Save a finished round, but for its metrics and what the strategy remembers for each client.

    Args:
        path: The file: safetensors with a JSON header, without pickle.
        state: The server's state after the round.
        identity: What a run must agree on to go on from here, such as seed and partition.
        beside: What belongs to it in other files.
    """
    record = {"format": FORMAT, "identity": dict(identity), **asdict(beside)}
    content = to_bytes(replace(state, client_states={}), {RECORD: json.dumps(record)})
    write_atomically(path, sealed(content))


def load_checkpoint(path: Path, identity: Mapping[str, Any], rounds: int | None = None) -> tuple[ServerState, Beside]:
    """Load what `save_checkpoint` saved.

    Args:
        path: The file.
        identity: What this run is; each entry must equal the checkpoint's.
        rounds: How many rounds this run has in all; None is any number.

    Returns:
        The state, without what the strategy remembers for each client; and what belongs to it in other files.

    Raises:
        MissingResourceError: If there is no such file.
        DamagedFileError: If it is damaged, or no round checkpoint.
        FedKDError: If it is one of another run, or has more rounds than this run has in all.
    """
    if not path.is_file():
        raise MissingResourceError(f"No round checkpoint at {str(path)!r}; ckpt_path takes 'last' or the path of one.")
    content = read_sealed(path)
    try:
        state = from_bytes(ServerState, content)
        record = json.loads(metadata_of(content)[RECORD])
    except (FedKDError, KeyError, ValueError) as error:
        raise DamagedFileError(f"{str(path)!r} is not a round checkpoint: {error}") from error
    if record.get("format") != FORMAT:
        raise DamagedFileError(f"{str(path)!r} is not a round checkpoint of fedkd, format {FORMAT}.")
    named = CHECKPOINT.fullmatch(path.name)
    if named and int(named[1]) != state.round:
        raise DamagedFileError(f"{str(path)!r} is named after another round: it is of round {state.round}.")
    if not state.weights.is_finite:
        raise DamagedFileError(f"{str(path)!r} holds weights that are infinite or NaN.")
    for key, value in json.loads(json.dumps(dict(identity))).items():
        found = record["identity"].get(key)
        if found != value:
            raise FedKDError(f"{str(path)!r} belongs to another run: its {key} is {found!r}, this run's is {value!r}.")
    if rounds is not None and rounds < state.round:
        raise FedKDError(
            f"federation.rounds {rounds} is less than the {state.round} rounds that are finished in {str(path)!r}."
        )
    return state, Beside(**{each.name: record[each.name] for each in fields(Beside)})
