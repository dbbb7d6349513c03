"""A published value: a sealed segment, and what is needed to tell whether it is still right."""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask.sharing import freshness, mapping, stores
from sharedtask.sharing.payload import Payload

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from sharedtask.sharing.stores import PublishedStore, Reader

_tokens = itertools.count(1)


class Publication:
    """A payload that workers can have, under a token that is never used again in this process."""

    def __init__(
        self,
        payload: Payload,
        *,
        watched: bool,
        keep: Callable[[Payload], PublishedStore] = stores.keep,
    ) -> None:
        self.token = next(_tokens)
        # Protect, then copy: see freshness.py.
        self._checks = _checks(payload.buffers, watched=watched)
        try:
            self.store = keep(payload)
        except BaseException:
            self._release_checks()
            raise
        self._held = payload.held
        self.descriptors = payload.descriptors
        self._holders: list[weakref.WeakMethod[Callable[[int], None]]] = []
        self._fingerprint: bytes | None = None
        self.released = False

    @property
    def is_in_place(self) -> bool:
        """Whether it refers to memory of this machine that the caller goes on writing."""
        return bool(self._held)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the value takes."""
        return self.store.nbytes

    def matches(self, payload: Payload) -> bool:
        """True where ``payload`` is byte for byte what was published, and that is still there."""
        try:
            reader = self.store.reader()
            if len(payload.buffers) != len(self._checks):
                return False
            for number, new in enumerate(payload.buffers):
                if not self._checks[number].passes(new, reader, number):
                    return False
            return _same_bytes(payload.head, reader.head())
        except LookupError:  # a store on other machines may lose it
            return False

    def fingerprint(self, value: Callable[[], object]) -> bytes:
        """The digest of the contents, made of ``value()`` when it is first asked for.

        Memory that the caller goes on writing is read each time.
        """
        from sharedtask.sharing import fingerprint  # of no use to who records nothing

        found = self._fingerprint
        if found is None:
            found = fingerprint.fingerprint(value())
            self._fingerprint = None if self.is_in_place else found
        return found

    def payload(self) -> Payload:
        """What was published, over the memory where it is."""
        head, buffers = self.store.parts()
        return Payload(bytes(head), tuple(np.frombuffer(buffer, np.uint8) for buffer in buffers))

    def value(self) -> Any:
        """The value as every worker sees it, read-only."""
        return self.store.value()

    def private_value(self) -> Any:
        """The value over memory of its own."""
        return self.store.private_value()

    def tell_on_release(self, holder: Callable[[int], None]) -> None:
        """Call the bound method ``holder(token)`` when the memory is given back."""
        reference = weakref.WeakMethod(holder)
        if reference not in self._holders:
            self._holders.append(reference)

    def release(self) -> None:
        """Give the memory back; what is mapped elsewhere stays valid until it is dropped."""
        if self.released:
            return
        self.released = True
        self._held = ()
        self._release_checks()
        self.store.close()
        for reference in self._holders:
            holder = reference()
            if holder is not None:
                holder(self.token)

    def _release_checks(self) -> None:
        for check in self._checks:
            check.release()


def _checks(buffers: Sequence[npt.NDArray[np.uint8]], *, watched: bool) -> list[_Check]:
    spans = [(mapping.address_of(buffer), buffer.nbytes) for buffer in buffers]
    watches = freshness.watch_all(spans) if watched else [None] * len(spans)
    return [
        _Check(buffer, address, watch)
        for buffer, (address, _), watch in zip(buffers, spans, watches, strict=True)
    ]


class _Check:
    """Tells whether one buffer of a value still holds the bytes that were published."""

    def __init__(
        self, buffer: npt.NDArray[np.uint8], address: int, watch: freshness.Watch | None
    ) -> None:
        self._address, self._nbytes, self._watch = address, buffer.nbytes, watch
        self._edges = self._edges_of(buffer)

    def passes(self, new: npt.NDArray[np.uint8], old: Reader, number: int) -> bool:
        """See that nobody has written, or compare with buffer ``number`` of what is published."""
        if new.nbytes != self._nbytes:
            return False
        if self._nbytes < _SMALL:
            return new.tobytes() == old.buffer(number).tobytes()
        address = mapping.address_of(new)
        if address == self._address and self._watch is not None:
            if self._watch.unchanged() and self._edges == self._edges_of(new):
                return True
            # Written, perhaps with what was there before: comparing tells. Protect, then compare.
            self.release()
            self._watch = freshness.watch(address, new.nbytes)
            self._edges = self._edges_of(new)
        return freshness.same_bytes(address, _address(old.buffer(number)), new.nbytes)

    def _edges_of(self, buffer: npt.NDArray[np.uint8]) -> tuple[bytes, bytes]:
        """What stands on a part of a page at either end: that is not watched."""
        if self._watch is None:
            return b"", b""
        before = self._watch.start - self._address
        return buffer[:before].tobytes(), buffer[before + self._watch.length :].tobytes()

    def release(self) -> None:
        if self._watch is not None:
            self._watch.release()
            self._watch = None


def _same_bytes(left: bytes, right: memoryview) -> bool:
    if len(left) != len(right):
        return False
    if len(left) < _SMALL:  # no foreign call, which would let other threads run
        return left == bytes(right)
    return freshness.same_bytes(_address(memoryview(left)), _address(right), len(left))


_SMALL = 1 << 14


def _address(view: memoryview) -> int:
    return mapping.address_of(np.frombuffer(view, np.uint8)) if view.nbytes else 0
