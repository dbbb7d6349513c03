"""Envelopes: encoded values inside a message, small ones as bytes, large ones in a segment."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sharedtask.errors import SharedTaskError
from sharedtask.memory import mapping, segments
from sharedtask.memory.segments import Layout
from sharedtask.system.descriptors import Descriptor
from sharedtask.system.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sharedtask.memory.payload import Payload

# From this size on, a value is sent in a segment of its own instead of inside the message.
SEGMENT_FROM = 1 << 20
# Buffers below this size are copied out of the message, so that a small array that a task keeps
# does not keep the whole message alive.
_COPY_BELOW = 1 << 16


@dataclass(frozen=True, slots=True)
class Envelope:
    """An envelope: an encoded value, with ``data`` in the message and bulk outside.

    The bulk is a segment (its ``file``) or a payload that is sent next to the message.
    """

    data: bytes
    file: Descriptor | None = None
    payload: Payload | None = None

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors to send with the message."""
        return () if self.file is None else (self.file.number,)

    @property
    def nbytes_beside(self) -> int:
        """How many bytes are not in the message."""
        if self.payload is not None:
            return self.payload.nbytes
        return 0 if self.file is None else os.fstat(self.file.number).st_size

    def close(self) -> None:
        """Close the sender's descriptor."""
        if self.file is not None:
            self.file.close()


# Errors of reading damaged bytes.
DAMAGED = (SharedTaskError, OSError, ValueError, TypeError, LookupError, EOFError, struct.error)

_INLINE, _SEGMENT, _ATTACHED = 0, 1, 2
_COUNT = struct.Struct("<BI")
_PAIR = struct.Struct("<QQ")


def pack(payload: Payload, *, frozen: bool) -> Envelope:
    """Make an envelope: small payloads inline, others in a segment (or StoreFullError).

    ``frozen`` if more than one worker may receive it.
    """
    if payload.nbytes >= SEGMENT_FROM:
        segment = segments.write(payload, frozen=frozen)
        table = b"".join(_PAIR.pack(*part) for part in segment.layout.parts)
        file = Descriptor.of(segment.fd)
        return Envelope(_COUNT.pack(_SEGMENT, len(segment.layout.parts)) + table, file)
    return pack_inline(payload)


def pack_inline(payload: Payload) -> Envelope:
    """Make an envelope that consists of bytes only."""
    parts: list[Any] = [*payload.buffers, payload.head]
    table = b"".join(_PAIR.pack(0, memoryview(part).nbytes) for part in parts)
    return Envelope(b"".join((_COUNT.pack(_INLINE, len(parts)), table, *parts)))


def pack_attached(payload: Payload) -> Envelope:
    """Make an envelope whose bulk, if large, is sent next to the message."""
    if payload.nbytes < SEGMENT_FROM:
        return pack_inline(payload)
    return Envelope(_COUNT.pack(_ATTACHED, 0), payload=payload)


@dataclass(frozen=True, slots=True)
class Received:
    """A received envelope: input of ``codec.decode``. The next one begins at ``end``."""

    head: bytes | memoryview
    buffers: list[bytearray | memoryview]
    end: int


class Attached(Protocol):
    """A payload that came next to a message."""

    head: memoryview

    def own(self) -> list[Any]:
        """The buffers as memory of the receiver, which it may write."""
        ...


def unpack(data: memoryview, attachments: Iterator[Any], *, private: bool) -> Received:
    """Open the envelope at the beginning of ``data``.

    ``attachments`` gives the descriptor of its segment, which is kept open, or the payload sent
    next to the message. Buffers are writable: ``private`` pages if others map the same segment,
    else the segment itself, which then belongs to the receiver alone. Damaged bytes raise one of
    ``DAMAGED``.
    """
    kind, count = _COUNT.unpack_from(data)
    at = _COUNT.size
    if kind == _ATTACHED:
        payload: Attached = _next(attachments)
        return Received(payload.head, payload.own(), at)
    parts = [_PAIR.unpack_from(data, at + k * _PAIR.size) for k in range(count)]
    at += count * _PAIR.size
    if kind == _SEGMENT:
        *buffers, head = _open_segment(_next(attachments), parts, private=private)
        return Received(head, [_own(buffer) for buffer in buffers], at)
    views = []
    for _, length in parts:
        views.append(data[at : at + length])
        at += length
    if at > len(data):  # a slice would be shorter, without an error
        msg = f"an envelope of {at} bytes in a message of {len(data)}"
        raise ValueError(msg)
    return Received(views[-1], [bytearray(view) for view in views[:-1]], at)


def _next(attachments: Iterator[Any]) -> Any:
    for each in attachments:
        return each
    msg = "a segment that belongs to the message has not come with it"
    raise ValueError(msg)


def _open_segment(fd: int, parts: list[tuple[int, int]], *, private: bool) -> list[memoryview]:
    size = sum(parts[-1])
    segments.check(fd, size, frozen=private)
    Layout(tuple(parts), size).require_within(size)
    whole = memoryview(mapping.view(fd, size, private=private, writable=not private))
    return [whole[start : start + length] for start, length in parts]


def copied(buffer: Any) -> Any:
    """A copy in own memory: if large, numpy requests huge pages, which is twice as fast."""
    if memoryview(buffer).nbytes < SEGMENT_FROM:
        return bytearray(buffer)
    return mapping.memory_of(np.frombuffer(buffer, np.uint8).copy())


def _own(buffer: memoryview) -> bytearray | memoryview:
    return bytearray(buffer) if len(buffer) < _COPY_BELOW else buffer
