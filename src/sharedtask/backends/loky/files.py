"""Values in mapped files: one copy of memory for the caller and all workers."""

from __future__ import annotations

import mmap
import os
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask.backends.carried.boxes import ReceivedPayload
from sharedtask.errors import StoreFullError
from sharedtask.memory import capacity
from sharedtask.memory.mapping import memory_of
from sharedtask.memory.segments import Layout
from sharedtask.memory.strided import pieces
from sharedtask.serialization import codec
from sharedtask.store import stores
from sharedtask.store.stores import BytesStore, LaidOut
from sharedtask.system import interrupts

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy.typing as npt

    from sharedtask.memory.payload import Payload
    from sharedtask.store.stores import PublishedStore

    from .folder import Folder


class FileStore(LaidOut):
    """A payload in a file, through pages that the hardware protects from writes."""

    def __init__(self, path: str, layout: Layout) -> None:
        self.path, self.layout, self.nbytes = path, layout, layout.size
        self._view = _mapped(path, mmap.ACCESS_READ)

    def private_value(self) -> Any:
        """Decode the value over copy-on-write pages of the file."""
        return codec.decode(*self.layout.split(_mapped(self.path, mmap.ACCESS_COPY)))

    def close(self) -> None:
        """Release the mapping; it ends with the last value."""
        self._view = np.zeros(0, np.uint8)


class PublishedFile(FileStore):
    """A file that goes with its publication."""

    def __init__(self, path: Path, layout: Layout, folder: Folder) -> None:
        super().__init__(str(path), layout)
        self._path, self._folder = path, folder

    def close(self) -> None:
        super().close()
        self._folder.drop(self._path)


def keep(payload: Payload, folder: Folder) -> PublishedStore:
    """Store a payload: small ones travel inside messages, others are put into a file.

    Raises:
        StoreFullError: There is no room for it.
    """
    if payload.nbytes < stores.SEGMENT_FROM:
        return BytesStore.of(payload)
    layout, path = Layout.of(payload), folder.new_path("value")
    capacity.require(layout.size)
    with interrupts.shield():
        try:
            _write(path, payload, layout)
            return PublishedFile(path, layout, folder)
        except OSError as error:
            folder.drop(path)
            if error.errno not in capacity.FULL:
                raise
            room = shutil.disk_usage(folder.path).free
            text = capacity.no_room(layout.size, os.strerror(error.errno), room)
            raise StoreFullError(text) from None
        except BaseException:
            folder.drop(path)
            raise


def _write(path: Path, payload: Payload, layout: Layout) -> None:
    parts: tuple[Iterable[Any], ...] = (*map(pieces, payload.sources), (payload.head,))
    with path.open("xb", buffering=0) as file:
        for part, (start, _) in zip(parts, layout.parts, strict=True):
            file.seek(start)
            for piece in part:
                _write_all(file, memory_of(piece))
                interrupts.check()
        file.truncate(max(layout.size, 1))


def _write_all(file: Any, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


def _mapped(path: str, access: int) -> npt.NDArray[np.uint8]:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        return np.frombuffer(mmap.mmap(file.fileno(), size, access=access), np.uint8)


class Box:
    """Pickles as a payload and arrives as ``ReceivedPayload``."""

    def __init__(self, payload: Payload) -> None:
        self.payload = payload

    def __reduce__(self) -> Any:
        buffers = tuple(memory_of(buffer).tobytes() for buffer in self.payload.buffers)
        return _open, (bytes(self.payload.head), buffers)


def _open(head: bytes, buffers: tuple[bytes, ...]) -> ReceivedPayload:
    return ReceivedPayload(memoryview(head), [memoryview(buffer) for buffer in buffers])
