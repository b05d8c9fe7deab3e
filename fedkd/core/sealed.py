"""Files with a checksum, so that a damaged file is never used.

In a safetensors file the header's metadata hold the SHA-256 of the file as it is with zeros in the checksum's place.
So the file stays an ordinary safetensors file, which any reader can open. In a JSON object an entry of its own holds
the SHA-256 of the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedkd.core.errors import FedKDError, MissingResourceError

KEY = "sha256"
BLANK = "0" * 64


class DamagedFileError(FedKDError):
    """A file's content is not what was written."""


def sealed(content: bytes) -> bytes:
    """Return safetensors with a checksum in the header, whose metadata are put in order: same content, same bytes.

    Args:
        content: As safetensors writes it.
    """
    length = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:length])
    metadata = {**header.pop("__metadata__", {}), KEY: BLANK}
    text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    blank = len(text).to_bytes(8, "little") + text + content[length:]
    start, stop = _place(blank)
    return blank[:start] + hashlib.sha256(blank).hexdigest().encode() + blank[stop:]


def read_sealed(path: Path) -> bytes:
    """Return a file's content, which is as `sealed` made it.

    Args:
        path: The file.

    Raises:
        MissingResourceError: If there is none.
        DamagedFileError: If it is damaged, or was written without a checksum.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise MissingResourceError(f"There is no file {str(path)!r}.") from error
    except OSError as error:
        raise DamagedFileError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    if not is_intact(content):
        raise DamagedFileError(
            f"{str(path)!r} is damaged, or fedkd did not write it: its content does not match its checksum."
        )
    return content


def is_intact(content: bytes) -> bool:
    """Whether content is as `sealed` made it."""
    try:
        start, stop = _place(content)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    found = hashlib.sha256(memoryview(content)[:start])
    found.update(BLANK.encode())
    found.update(memoryview(content)[stop:])
    return found.hexdigest().encode() == content[start:stop]


def with_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with the checksum of its other entries as its last one."""
    return {**record, KEY: _record_checksum(record)}


def is_whole(record: Mapping[str, Any]) -> bool:
    """Whether a JSON object has the checksum of its other entries, or none at all, as one that others wrote."""
    return KEY not in record or record[KEY] == _record_checksum(record)


def read_record(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file, as it was when it was written, without the checksum.

    Args:
        path: The file.

    Raises:
        MissingResourceError: If there is none.
        DamagedFileError: If it is damaged, or no JSON object.
    """
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise MissingResourceError(f"There is no file {str(path)!r}.") from error
    except OSError as error:
        raise DamagedFileError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{str(path)!r} is damaged: it is no JSON ({error}).") from error
    if not (isinstance(record, dict) and is_whole(record)):
        raise DamagedFileError(f"{str(path)!r} is damaged, or was changed: its content does not match its checksum.")
    return {name: value for name, value in record.items() if name != KEY}


def _record_checksum(record: Mapping[str, Any]) -> str:
    entries = {name: value for name, value in record.items() if name != KEY}
    entries = json.loads(json.dumps(entries))  # keys that are numbers become text, which sorts otherwise
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _place(content: bytes) -> tuple[int, int]:
    """Return where the checksum begins and ends.

    Raises:
        ValueError: If there is none.
    """
    length = 8 + int.from_bytes(content[:8], "little")
    if length > len(content):
        raise ValueError("no header")
    value = json.loads(content[8:length])["__metadata__"][KEY]
    needle = f'"{KEY}":"{value}"'.encode()
    stop = content.index(needle, 8, length) + len(needle) - 1
    if len(value) != len(BLANK):
        raise ValueError("no checksum")
    return stop - len(BLANK), stop
