"""Layout of a payload in Ray's object store: out of band, read without a copy."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from sharedtask.backends.carried.boxes import ReceivedPayload
from sharedtask.memory import mapping, segments
from sharedtask.memory.mapping import memory_of
from sharedtask.memory.payload import Payload
from sharedtask.memory.segments import Layout
from sharedtask.store.stores import BytesStore

from . import private_pages

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

# Ray spends some microseconds on every buffer, for each task that gets the object: small ones are
# joined.
_SMALL = 1 << 14

_pickle_buffer = cast("Callable[[npt.NDArray[np.uint8]], pickle.PickleBuffer]", pickle.PickleBuffer)


class StoredPayload(ReceivedPayload):
    """A payload in the object store: read-only views, which keep the object alive."""

    __slots__ = ()

    def own(self) -> list[Any]:
        """See ``ReceivedPayload``. Large ones are copied page by page as they are written."""
        return private_pages.private(self.buffers) or super().own()


class RayPayload:
    """Pickles as a payload and arrives as ``StoredPayload``."""

    def __init__(self, payload: Payload) -> None:
        self.payload = payload

    def __reduce__(self) -> Any:
        buffers = self.payload.buffers
        small = tuple(buffer.nbytes < _SMALL for buffer in buffers)
        together = Payload(b"", tuple(b for b, s in zip(buffers, small, strict=True) if s))
        store = BytesStore.of(together)
        large = [_pickle_buffer(b) for b, s in zip(buffers, small, strict=True) if not s]
        head, rest = pickle.PickleBuffer(self.payload.head), pickle.PickleBuffer(store.data)
        return _open, (head, rest, store.layout.parts, small, large)


def _open(
    head: Any, rest: Any, parts: tuple[tuple[int, int], ...], small: tuple[bool, ...], large: Any
) -> StoredPayload:
    _, together = Layout(parts, 0).split(np.frombuffer(rest, np.uint8))
    of_small, of_large = iter(together), iter(map(_readonly, large))
    return StoredPayload(_readonly(head), [next(of_small if s else of_large) for s in small])


def _readonly(buffer: Any) -> memoryview:
    return memory_of(np.frombuffer(buffer, np.uint8)).toreadonly()


# Ray keeps smaller objects in private memory, which cannot be mapped again.
_COPIED = 1 << 20


def guarded(buffers: list[memoryview]) -> list[memoryview]:
    """The same buffers, mapped with pages that the hardware protects from writes.

    Ray maps its object store writable in every worker. Buffers that it keeps elsewhere are copied.
    """
    if not any(buffer.nbytes for buffer in buffers):
        return buffers
    arrays = [np.frombuffer(buffer, np.uint8) for buffer in buffers]
    spans = [mapping.bounds(array) for array in arrays if array.nbytes]
    low, high = min(low for low, _ in spans), max(high for _, high in spans)
    try:
        whole = mapping.mirror(low, high - low, buffers)
    except OSError:
        return _copied(arrays) or buffers
    starts = [mapping.address_of(array) - low if array.nbytes else 0 for array in arrays]
    view = memory_of(whole)
    return [view[at : at + b.nbytes] for at, b in zip(starts, buffers, strict=True)]


def _copied(arrays: list[npt.NDArray[np.uint8]]) -> list[memoryview] | None:
    """Copies in pages of their own; None if they are too large to have twice."""
    if sum(array.nbytes for array in arrays) > _COPIED:
        return None
    store = BytesStore.of(Payload(b"", tuple(arrays)))
    return store.layout.split(segments.protected(np.frombuffer(store.data, np.uint8)))[1]
