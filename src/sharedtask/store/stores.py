"""Memory of a published value, in the process that published it and in those that use it."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sharedtask.errors import SharedTaskError, StoreFullError
from sharedtask.memory import mapping, segments
from sharedtask.memory.integrity import NONCE_BYTES, Mark
from sharedtask.memory.payload import Payload
from sharedtask.memory.segments import Layout
from sharedtask.serialization import codec
from sharedtask.system import descriptors, interrupts
from sharedtask.system.descriptors import Descriptor
from sharedtask.system.posix import IS_POSIX

if TYPE_CHECKING:
    import numpy.typing as npt


class Store(Protocol):
    """Memory with a payload in it."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        ...

    def parts(self) -> tuple[memoryview, list[memoryview]]:
        """Head and buffers of the payload, read-only."""
        ...

    def value(self) -> Any:
        """Decode the value; arrays view this memory and cannot be made writable."""

    def private_value(self) -> Any:
        """Decode the value over private, writable memory."""

    def close(self) -> None:
        """Release the memory; decoded values stay valid."""


class Reader(Protocol):
    """The parts of a payload, fetched on demand; LookupError if they are lost."""

    def head(self) -> memoryview:
        """The head."""
        ...

    def buffer(self, number: int) -> memoryview:
        """One of the buffers."""
        ...


class PublishedStore(Store, Protocol):
    """A store in the publishing process, which compares it at later calls."""

    def reader(self) -> Reader:
        """A reader that gets the parts one by one."""
        ...


class _AtHand:
    """A reader of parts in this process."""

    def __init__(self, parts: tuple[memoryview, list[memoryview]]) -> None:
        self._head, self._buffers = parts

    def head(self) -> memoryview:
        return self._head

    def buffer(self, number: int) -> memoryview:
        return self._buffers[number]


# Smaller values are kept as bytes and sent inside a message: a descriptor and a mapping in every
# process would cost more. Most functions are that small.
SEGMENT_FROM = 1 << 16


def keep(payload: Payload) -> PublishedStore:
    """Store a payload in memory of this machine; in that of this process where no other has it."""
    if payload.nbytes < SEGMENT_FROM or not IS_POSIX:
        return BytesStore.of(payload)
    return seal(payload)


def seal(payload: Payload, table: bytes = b"") -> SegmentStore:
    """Store a payload in a segment of its own that ends with a random mark and the ``table``."""
    # A descriptor without an owner would leak: hold interrupts back in between.
    with segments.translated(payload.nbytes), interrupts.shield():
        return SegmentStore(*_sealed(payload, table))


def _sealed(payload: Payload, table: bytes = b"") -> tuple[int, Layout, Mark]:
    nonce = os.urandom(NONCE_BYTES)
    parts = (*payload.sources, np.frombuffer(payload.head, np.uint8))
    segment = segments.write(Payload(nonce + table, parts))
    *known, (at, _) = segment.layout.parts
    mark = Mark.of(segment.fd, at, nonce, payload.head)
    return segment.fd, Layout(tuple(known), segment.size), mark


def unseal(fd: int, layout: Layout, mark: Mark) -> SegmentStore:
    """Map a segment of another process; owns the descriptor then, and unpickles nothing.

    Raises:
        SharedTaskError: It is not the expected segment. The descriptor stays open.
    """
    mark.require_file(segments.check(fd, layout.size, frozen=True))
    layout.require_within(layout.size)
    mapped = mapping.view(fd, layout.size)
    mark.require_content(mapping.memory_of(mapped), layout.split(mapped)[0])
    return SegmentStore(fd, layout, mark, mapped)


def restore(store: PublishedStore) -> None:
    """Ensure that workers can get it; see ``SegmentStore.restore``."""
    if isinstance(store, SegmentStore) and store.has_lost_file():
        store.restore()


def has_lost_file(store: PublishedStore) -> bool:
    """Whether ``restore`` has something to do."""
    return isinstance(store, SegmentStore) and store.has_lost_file()


class LaidOut:
    """A payload in memory that this process has mapped."""

    layout: Layout
    _view: npt.NDArray[np.uint8]

    def parts(self) -> tuple[memoryview, list[memoryview]]:
        """Views of this memory."""
        return self.layout.split(self._view)

    def reader(self) -> Reader:
        """See ``PublishedStore``."""
        return _AtHand(self.parts())

    def value(self) -> Any:
        """Decode the value over this memory."""
        return codec.decode(*self.parts())


class BytesStore(LaidOut):
    """A small payload, as bytes of this process."""

    def __init__(self, data: bytes, layout: Layout) -> None:
        self.data = data
        self.layout = layout
        self.nbytes = layout.size
        self._view = np.frombuffer(data, np.uint8)

    @classmethod
    def of(cls, payload: Payload) -> BytesStore:
        """Lay the parts of a payload out as in a segment."""
        layout = Layout.of(payload)
        data = bytearray(layout.size)
        parts: tuple[npt.NDArray[np.uint8] | bytes, ...] = (*payload.buffers, payload.head)
        for part, (start, length) in zip(parts, layout.parts, strict=True):
            data[start : start + length] = mapping.memory_of(part)
        return cls(bytes(data), layout)

    def private_value(self) -> Any:
        """Decode the value over copies of its buffers."""
        head, buffers = self.parts()
        return codec.decode(head, [bytearray(buffer) for buffer in buffers])

    def close(self) -> None:
        """Nothing to do: bytes are freed with their last user."""


class ReceivedBytes(BytesStore):
    """A small payload in a worker: arrays are decoded over read-only pages."""

    def value(self) -> Any:
        """Decode the value; without arrays it needs no pages."""
        head, buffers = self.parts()
        if any(buffer.nbytes for buffer in buffers):
            # Without room for a page, rely on numpy's own protection.
            with contextlib.suppress(StoreFullError):
                head, buffers = self.layout.split(segments.protected(self._view))
        return codec.decode(head, buffers)


class RefusedStore:
    """A store that could not be received: each use of the value raises the error."""

    nbytes = 0

    def __init__(self, error: SharedTaskError) -> None:
        self._error = error

    def parts(self) -> tuple[memoryview, list[memoryview]]:
        """Raise the error."""
        raise self._error.with_traceback(None)

    def value(self) -> Any:
        """Raise the error."""
        raise self._error.with_traceback(None)

    def private_value(self) -> Any:
        """Raise the error."""
        raise self._error.with_traceback(None)

    def close(self) -> None:
        """Nothing to release."""


class SegmentStore(LaidOut):
    """A payload in a sealed segment. Without a descriptor no private copies can be made."""

    def __init__(
        self,
        fd: int,
        layout: Layout,
        mark: Mark,
        mapped: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        self._hold(fd, layout, mark, mapped)

    def _hold(
        self, fd: int, layout: Layout, mark: Mark, mapped: npt.NDArray[np.uint8] | None = None
    ) -> None:
        self.fd: int | None = fd
        self._file = Descriptor(fd, mark.device, mark.inode)
        self._closer = descriptors.closing(self, self._file)  # in case of an interrupt
        self.layout = layout
        self.mark = mark
        self.nbytes = layout.size
        self._view = mapping.view(fd, layout.size) if mapped is None else mapped

    def private_value(self) -> Any:
        """Decode the value over copy-on-write pages of the segment."""
        self.restore()
        if self.fd is None:
            msg = "a segment without a descriptor was asked for a private copy"
            raise ValueError(msg)
        mapped = mapping.view(self.fd, self.layout.size, private=True)
        return codec.decode(*self.layout.split(mapped))

    def has_lost_file(self) -> bool:
        """Whether the program has closed the descriptor."""
        return self.fd is not None and not self._file.is_open()

    def restore(self) -> None:
        """Copy the value to a new segment if the program has closed the descriptor of this one.

        Raises:
            StoreFullError: There is no room for it.
        """
        if not self.has_lost_file():
            return
        head, buffers = self.parts()
        payload = Payload(bytes(head), tuple(np.frombuffer(each, np.uint8) for each in buffers))
        with segments.translated(payload.nbytes):
            self._hold(*_sealed(payload))

    def close(self) -> None:
        """Release the mapping and the descriptor; the pages are freed with the last value."""
        self._view = self._view[:0].copy()
        self.close_descriptor()

    def close_descriptor(self) -> None:
        """Close the descriptor and keep the mapping."""
        self._closer.now()
        self.fd = None
