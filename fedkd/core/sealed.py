"""Safetensors files with a checksum of every byte, so that a damaged file is never used.

The header's metadata hold the SHA-256 of the file as it is with zeros in the checksum's place. So the file stays an
ordinary safetensors file, which any reader can open.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

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
