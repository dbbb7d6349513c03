"""Views of shared values for tasks in the caller's own process.

Large arrays are the caller's memory, read-only as far as numpy enforces it. Native code bypasses
numpy's flag, as ``ufunc.at`` does before numpy 2.5. In a worker it meets pages that cannot be
written, and the worker dies; here the program would die. So small arrays, which are cheap to copy,
are copied: writes to them are detected after the item, and undone. Writes to large ones are
detected after the chunk: see ``memory/write_watch.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask.annotations import Role
from sharedtask.errors import SharedTaskError
from sharedtask.memory import mapping
from sharedtask.serialization import codec
from sharedtask.serialization.filled import unshareable
from sharedtask.store.handles import Handle
from sharedtask.store.stores import SEGMENT_FROM, BytesStore
from sharedtask.system.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedtask.memory.payload import Payload
    from sharedtask.memory.strided import Bytes

    from .base import Call, SharedValue


@dataclass(frozen=True, slots=True)
class LocalView:
    """A local view of a shared value; ``memory`` contains its arrays if they are small.

    ``open`` are the bytes of the large ones, which tasks can write if they bypass numpy's flag.
    """

    name: str
    private: bool
    value: Callable[[], Any]
    private_value: Callable[[], Any]
    memory: Copy | None = None
    open: tuple[Bytes, ...] = ()

    @classmethod
    def of(cls, call: Call, name: str, shared: SharedValue) -> LocalView:
        """The view of a value of a call.

        Raises:
            UnshareableError: It cannot be pickled.
        """
        private = shared.role is Role.COPY_ON_WRITE
        if not isinstance(shared.value, Handle):
            return cls._over(name, private, _encoded(call, name, shared.value, private=private))
        publication = shared.value.publication
        if publication.nbytes >= SEGMENT_FROM:
            return cls(name, private, publication.value, publication.private_value)
        return cls._over(name, private, publication.payload())

    @classmethod
    def _over(cls, name: str, private: bool, payload: Payload) -> LocalView:
        head, buffers = payload.head, payload.buffers

        def value() -> Any:
            return codec.decode(head, [mapping.window(b, readonly=True) for b in buffers])

        def private_value() -> Any:
            return codec.decode(head, [bytearray(b) for b in buffers])

        is_small = payload.nbytes < SEGMENT_FROM and any(buffer.nbytes for buffer in buffers)
        if private:
            return cls(name, private, value, private_value)
        if not is_small:
            return cls(name, private, value, private_value, open=buffers)
        copy = Copy(payload)
        return cls(name, private, copy.value, private_value, copy)

    def restore(self) -> bool:
        """Undo writes into small arrays; returns whether there were any."""
        return self.memory is not None and self.memory.restore()


def _encoded(call: Call, name: str, value: object, *, private: bool) -> Payload:
    try:
        return codec.encode(value, in_place=True, at_home=not private)
    except (SharedTaskError, MemoryError):
        raise
    except Exception as error:
        raise unshareable(value, name, error, f"{call.task}(): {name!r}") from error


class Copy:
    """A small payload in its own memory, with its original bytes."""

    __slots__ = ("_layout", "_memory", "_original", "_view")

    def __init__(self, payload: Payload) -> None:
        store = BytesStore.of(payload)
        self._original, self._layout = bytearray(store.data), store.layout
        self._memory = bytearray(store.data)  # compared at the speed of memcmp
        self._view = mapping.window(np.frombuffer(self._memory, np.uint8), readonly=True)

    def value(self) -> Any:
        """Decode the value over this memory."""
        return codec.decode(*self._layout.split(self._view))

    def restore(self) -> bool:
        """Undo writes; returns whether there were any."""
        if self._memory == self._original:
            return False
        self._memory[:] = self._original
        return True
