"""Pickles whose large tensors and arrays lie in files that the reader maps instead of copying."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedkd.core.storage import writing

LARGE = 1 << 16
"""From so many bytes on, content goes into a file."""


TEMPORARY_ADVICE = "Set TMPDIR to another folder"


class MappedStore:
    """Writes objects for other processes: small parts as pickles, large content once into a file of its own.

    Args:
        folder: Where the files go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._written: dict[tuple[int, int], str] = {}
        self._kept: list[Any] = []  # whatever was written stays alive, so its address stays its own

    def dumps(self, value: Any) -> bytes:
        """Return the pickle of an object; a content that was written before is not written again."""
        buffer = io.BytesIO()
        _Pickler(buffer, self).dump(value)
        return buffer.getvalue()

    def file_of(self, address: int, size: int, content: Any, owner: Any) -> str:
        """Return the name of the file that holds some content, written if need be.

        Args:
            address: Where the content lies.
            size: Its bytes.
            content: A buffer with these bytes.
            owner: What keeps the content alive.
        """
        key = (address, size)
        if key not in self._written:
            name = f"{len(self._written)}.bin"
            with writing(self.folder / name, TEMPORARY_ADVICE):
                (self.folder / name).write_bytes(content)
            self._written[key] = name
            self._kept.append(owner)
        return self._written[key]


class _Pickler(pickle.Pickler):
    def __init__(self, buffer: io.BytesIO, store: MappedStore) -> None:
        super().__init__(buffer, protocol=pickle.HIGHEST_PROTOCOL)
        self.store = store

    def persistent_id(self, value: Any) -> Any:
        """Return where a large tensor's or array's content lies; None leaves a value to pickle."""
        if type(value) is Tensor and value.device.type == "cpu" and value.layout is torch.strided:
            storage = value.untyped_storage()
            if storage.nbytes() < LARGE or value.requires_grad:
                return None
            content = torch.empty(0, dtype=torch.uint8).set_(storage).numpy().data
            name = self.store.file_of(storage.data_ptr(), storage.nbytes(), content, storage)
            layout = (value.dtype, value.storage_offset(), tuple(value.shape), value.stride())
            return ("tensor", name, storage.nbytes(), *layout)
        if type(value) is np.ndarray and value.nbytes >= LARGE and not value.dtype.hasobject:
            array = np.ascontiguousarray(value)
            name = self.store.file_of(array.ctypes.data, array.nbytes, array.data, array)
            return ("array", name, array.dtype.str, array.shape)
        return None


class _Unpickler(pickle.Unpickler):
    def __init__(self, buffer: io.BytesIO, folder: Path) -> None:
        super().__init__(buffer)
        self.folder = folder
        self.storages: dict[str, Any] = {}

    def persistent_load(self, found: Any) -> Any:
        """Map content; a page that is written to becomes this process's own."""
        kind, name, *rest = found
        path = str(self.folder / name)
        if kind == "array":
            dtype, shape = rest
            return np.asarray(np.memmap(path, dtype=np.dtype(dtype), mode="c", shape=shape))
        size, dtype, offset, shape, stride = rest
        if name not in self.storages:
            mapped = torch.from_file(path, shared=False, size=size, dtype=torch.uint8)
            self.storages[name] = mapped.untyped_storage()
        return torch.empty(0, dtype=dtype).set_(self.storages[name], offset, shape, stride)


def loads(data: bytes, folder: Path) -> Any:
    """Return what `MappedStore.dumps` wrote.

    Args:
        data: The pickle. It comes from the process that started this one.
        folder: The store's.
    """
    return _Unpickler(io.BytesIO(data), folder).load()


def unpicklable_part(value: Any, name: str, depth: int = 6) -> tuple[str, Any]:
    """Return the innermost attribute of an object that does not pickle, by its dotted name."""
    parts: dict[str, Any] = {}
    if isinstance(value, dict):
        parts = {f"{name}[{key!r}]": item for key, item in value.items()}
    elif isinstance(value, list | tuple):
        parts = {f"{name}[{i}]": item for i, item in enumerate(value)}
    elif not isinstance(value, type) and hasattr(value, "__dict__"):
        parts = {f"{name}.{key}": item for key, item in vars(value).items()}
    for inner, item in parts.items():
        try:
            pickle.dumps(item)
        except Exception:  # whatever an object's own code makes of being pickled
            return unpicklable_part(item, inner, depth - 1) if depth else (inner, item)
    return name, value
