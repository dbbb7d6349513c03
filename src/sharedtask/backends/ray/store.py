"""Published values in Ray's object store, as the process that published them sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray
import ray.exceptions

from sharedtask.errors import StoreFullError
from sharedtask.sharing import codec, memory, stores

from . import runtime
from .box import Box, Opened

if TYPE_CHECKING:
    from sharedtask.sharing.codec import Payload
    from sharedtask.sharing.stores import Store

_FULL = (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError)


def keep(payload: Payload) -> Store:
    """Store a payload: small ones travel inside messages, others are put into the object store."""
    if payload.nbytes < stores.SEGMENT_FROM:
        return stores.BytesStore.of(payload)
    return RayStore(payload)


class RayStore:
    """A payload that was put once for the whole cluster."""

    def __init__(self, payload: Payload) -> None:
        self.nbytes = payload.nbytes
        self.ref: Any = put(payload)

    def parts(self) -> tuple[memoryview, list[memoryview]]:
        """Head and buffers, over the object store where this node has it.

        LookupError where the object is lost.
        """
        try:
            opened: Opened = ray.get(self.ref)
        except (ray.exceptions.RayError, ValueError) as error:  # ValueError: of another session
            raise LookupError(str(error)) from error
        return opened.head, opened.buffers

    def put_again(self, payload: Payload) -> None:
        """Put the same payload once more: the object was lost."""
        self.ref = put(payload)

    def value(self) -> Any:
        return codec.decode(*self.parts())

    def private_value(self) -> Any:
        head, buffers = self.parts()
        return codec.decode(head, [bytearray(buffer) for buffer in buffers])

    def close(self) -> None:
        """Drop the reference: Ray frees the object when no task uses it."""
        self.ref = None


def put(payload: Payload) -> Any:
    """``ray.put``, with an error that says what to do."""
    try:
        return ray.put(Box(payload))
    except _FULL as error:
        msg = (
            f"Ray's object store has no room for {memory.human(payload.nbytes)}. It was given "
            f"object_store_memory={memory.human(runtime.store_memory())} on this node. Start "
            "Ray with more, as in ray.init(object_store_memory=...), or share less at a time. "
            f"({error})"
        )
        raise StoreFullError(msg) from error
