"""Published values in Ray's object store, as seen by the process that published them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import ray.exceptions

from sharedtask.errors import StoreFullError
from sharedtask.memory import capacity
from sharedtask.serialization import codec
from sharedtask.store import stores

from . import runtime
from .objects import RayPayload

if TYPE_CHECKING:
    from sharedtask.backends.carried.boxes import ReceivedPayload
    from sharedtask.memory.payload import Payload
    from sharedtask.memory.strided import Bytes
    from sharedtask.store.stores import PublishedStore, Reader

_KEEP_BYTES = 1 << 20
_FULL = (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError)


def keep(payload: Payload) -> PublishedStore:
    """Store a payload: small ones travel inside messages, others are put into the object store."""
    if payload.nbytes < stores.SEGMENT_FROM:
        return stores.BytesStore.of(payload)
    return RayStore(payload)


class RayStore:
    """A payload that was put once for the whole cluster."""

    def __init__(self, payload: Payload) -> None:
        self.nbytes = payload.nbytes
        buffers = payload.buffers  # collected once
        self._head, *self._buffers = _kept((payload.head, *buffers))
        # The bytes kept are the bytes put, even if the memory is written meanwhile.
        sources = tuple(map(_put_from, buffers, self._buffers))
        self.ref: Any = put(replace(payload, sources=sources))
        self._was_lost = False
        self._key = runtime.current_key()

    def parts(self) -> tuple[memoryview, list[memoryview]]:
        """Head and buffers, as views of the object store if this node has it.

        Raises LookupError if the object is lost.
        """
        try:
            opened: ReceivedPayload = ray.get(self.ref)
        except (ray.exceptions.RayError, ValueError) as error:  # ValueError: of another session
            raise LookupError(str(error)) from error
        return opened.head, opened.buffers

    def reader(self) -> Reader:
        """A reader that reads small parts without asking Ray."""
        if self._was_lost:
            msg = "the object was lost"
            raise LookupError(msg)
        return _Reader(self, self._head, self._buffers)

    def put_again(self, payload: Payload) -> None:
        """Put the value again for the calls that use it now, after the object was lost.

        It may have been written since, and workers may have decoded the earlier contents: a later
        call, which compares, publishes it again.
        """
        self._was_lost = True
        self.ref = put(payload)

    def value(self) -> Any:
        return codec.decode(*self.parts())

    def private_value(self) -> Any:
        head, buffers = self.parts()
        return codec.decode(head, [bytearray(buffer) for buffer in buffers])

    def close(self) -> None:
        """Drop the reference: Ray frees the object when no task uses it."""
        if self._key != runtime.current_key():
            runtime.keep_alive(self.ref)
        self.ref = None


class _Reader:
    """Asks for the object once, and only to compare large parts."""

    def __init__(
        self, store: RayStore, head: memoryview | None, buffers: list[memoryview | None]
    ) -> None:
        self._store, self._head, self._buffers = store, head, buffers

    def head(self) -> memoryview:
        return self._parts()[0] if self._head is None else self._head

    def buffer(self, number: int) -> memoryview:
        kept = self._buffers[number]
        return self._parts()[1][number] if kept is None else kept

    def _parts(self) -> tuple[memoryview, list[memoryview]]:
        if not hasattr(self, "_found"):
            self._found = self._store.parts()
        return self._found


def _kept(parts: tuple[Any, ...]) -> list[memoryview | None]:
    """Copies of the small parts, which are compared at every use; up to a limit."""
    kept: list[memoryview | None] = []
    room = _KEEP_BYTES
    for part in parts:
        view = memoryview(part)
        fits = view.nbytes < min(stores.SEGMENT_FROM, room)
        room -= view.nbytes if fits else 0
        kept.append(memoryview(bytes(view)) if fits else None)
    return kept


def _put_from(buffer: Bytes, kept: memoryview | None) -> Bytes:
    return buffer if kept is None else np.frombuffer(kept, np.uint8)


def put(payload: Payload) -> Any:
    """``ray.put``, with an error that says what to do."""
    try:
        return ray.put(RayPayload(payload))
    except _FULL as error:
        msg = (
            f"Ray's object store has no room for {capacity.human(payload.nbytes)}. It was given "
            f"object_store_memory={capacity.human(runtime.store_memory())} on this node. Start "
            "Ray with more, as in ray.init(object_store_memory=...), or share less at a time. "
            f"({error})"
        )
        raise StoreFullError(msg) from error
