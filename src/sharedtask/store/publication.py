"""A published value: a sealed segment, and the checks whether it is still current."""

from __future__ import annotations

import ctypes
import itertools
import time
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sharedtask.memory import dirty_pages, mapping
from sharedtask.memory.payload import Payload
from sharedtask.memory.strided import Scattered
from sharedtask.system.loading import undisturbed

from . import stores
from .outline import Outline

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from sharedtask.memory.strided import Source
    from sharedtask.serialization.composition import Composition

    from .stores import PublishedStore, Reader

_tokens = itertools.count(1)


class Publication:
    """A payload for workers, under a token that is never reused in this process.

    ``composition`` is that of the function in it, from the time of its encoding. ``classes``: the
    identities of those that it brings. ``seconds``: how long it took to store it. ``outline``: what
    ``is_recognised`` goes by, if there is one.
    """

    def __init__(
        self,
        payload: Payload,
        *,
        watched: bool,
        keep: Callable[[Payload], PublishedStore] = stores.keep,
    ) -> None:
        self.token = next(_tokens)
        # Protect, then copy: see dirty_pages.py.
        self._checks = _checks(payload.sources, watched=watched)
        began = time.monotonic()
        try:
            self.store = keep(payload)
        except BaseException:
            self._release_checks()
            raise
        self.seconds = time.monotonic() - began
        self._held = payload.held
        self.descriptors = payload.descriptors
        self.classes = frozenset(map(id, payload.classes))
        self._holders: list[weakref.WeakMethod[Callable[[int], None]]] = []
        self._fingerprint: bytes | None = None
        self.composition: Composition | None = None
        self.outline: Outline | None = None
        self._looks = 0  # comparisons since the outline was made, or could be
        self.released = False

    @property
    def is_in_place(self) -> bool:
        """Whether it refers to memory that the caller may go on writing."""
        return bool(self._held)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the value takes."""
        return self.store.nbytes

    def matches(self, payload: Payload) -> bool:
        """True if ``payload`` equals the published bytes, and these still exist."""
        try:
            reader = self.store.reader()
            if len(payload.sources) != len(self._checks):
                return False
            for number, new in enumerate(payload.sources):
                if not self._checks[number].passes(new, reader, number):
                    return False
            return _same_bytes(payload.head, reader.head())
        except LookupError:  # a store on other machines may lose it
            return False

    def is_recognised(self, value: object) -> bool:
        """True if ``value`` is known to equal the published bytes without being encoded."""
        outline = self.outline
        return outline is not None and outline.describes(value, self._passes)

    def _passes(self, source: Source, number: int) -> bool:
        try:
            return self._checks[number].passes(source, self.store.reader(), number)
        except LookupError:
            return False

    def recognise(
        self, value: object, payload: Payload | None, encode: Callable[[object], Payload]
    ) -> None:
        """After a successful comparison with a payload of ``value``: outline it if that pays."""
        if payload is None:
            return
        self.outline = None  # one that has not recognised it
        if len(payload.sources) < _MANY_ARRAYS and len(payload.head) < _LARGE_HEAD:
            return
        self._looks += 1
        if self._looks in _OUTLINED_AT and not self.is_in_place:
            self.outline = self._confirmed(Outline.of(value), encode)

    def _confirmed(
        self, outline: Outline | None, encode: Callable[[object], Payload]
    ) -> Outline | None:
        """The outline if its copy is what is published."""
        if outline is None:
            return None
        payload = encode(outline.copy)
        is_this = self.matches(payload) and outline.confirm(payload.sources)
        return outline if is_this else None

    def unwatch(self) -> None:
        """From now on compare all bytes: the kernel does not see every write."""
        self._release_checks()

    def fingerprint(self, value: Callable[[], object]) -> bytes:
        """The digest of the contents, computed from ``value()`` at its first use.

        Memory that the caller goes on writing is read each time.
        """
        with undisturbed("sharedtask.serialization.hashing"):  # needed by a journal only
            from sharedtask.serialization import hashing

        found = self._fingerprint
        if found is None:
            found = hashing.fingerprint(value())
            self._fingerprint = None if self.is_in_place else found
        return found

    def payload(self) -> Payload:
        """The published payload, as views of its memory."""
        head, buffers = self.store.parts()
        return Payload(bytes(head), tuple(np.frombuffer(buffer, np.uint8) for buffer in buffers))

    def value(self) -> Any:
        """The value as workers see it, read-only."""
        return self.store.value()

    def private_value(self) -> Any:
        """The value over memory of its own."""
        return self.store.private_value()

    def call_on_release(self, holder: Callable[[int], None]) -> None:
        """Call the bound method ``holder(token)`` when the memory is freed."""
        reference = weakref.WeakMethod(holder)
        if reference not in self._holders:
            self._holders.append(reference)

    def release(self) -> None:
        """Free the memory; mappings elsewhere stay valid until they are dropped."""
        if self.released:
            return
        self.released = True
        self._held = ()
        self.outline = None
        self._release_checks()
        self.store.close()
        for reference in self._holders:
            holder = reference()
            if holder is not None:
                holder(self.token)

    def _release_checks(self) -> None:
        for check in self._checks:
            check.release()


# A value is encoded in a fraction of a millisecond that has fewer arrays and a smaller head.
_MANY_ARRAYS, _LARGE_HEAD = 16, 1 << 13
# The comparisons after which an outline is made, which takes as long as two more. It ends where
# that is in vain, because equal objects take the place of others each time.
_OUTLINED_AT = frozenset((2, 4, 8))


def _checks(sources: Sequence[Source], *, watched: bool) -> list[_Check]:
    spans = [_span(source) for source in sources] if watched else []
    watches = dirty_pages.watch_all(spans) if watched else [None] * len(sources)
    return [_Check(source, watch) for source, watch in zip(sources, watches, strict=True)]


class _Check:
    """Checks whether one source of a value still has the published bytes."""

    def __init__(self, source: Source, watch: dirty_pages.Watch | None) -> None:
        self._nbytes, self._place = source.nbytes, _place(source)
        self._in_vain = 0
        self._begin(source, watch)
        self._is_settled = True  # the bytes were the published ones when the watch began

    def passes(self, new: Source, old: Reader, number: int) -> bool:
        """Check that no write was seen, or compare with the published buffer ``number``."""
        if new.nbytes != self._nbytes:
            return False
        if self._watch is None or _place(new) != self._place:
            return _has_bytes(new, old.buffer(number))
        if self._is_settled and self._watch.unchanged() and self._at_edges == self._edges.read():
            self._in_vain = 0
            return True
        # Written, perhaps with equal bytes, or between the elements: compare.
        self._watch_anew(new)
        same = self._is_settled = _has_bytes(new, old.buffer(number))
        self._in_vain += same
        return same

    def _watch_anew(self, source: Source) -> None:
        """Protect, then compare: until the comparison is complete, the new watch proves nothing.

        The comparison may be interrupted, or the published bytes may be unavailable.
        """
        self._is_settled = False
        self.release()
        if self._in_vain < _IN_VAIN:
            self._begin(source, dirty_pages.watch(*_span(source)))

    def _begin(self, source: Source, watch: dirty_pages.Watch | None) -> None:
        if watch is not None:
            low, length = _span(source)
            self._edges = _Edges(low, watch.start - low, watch.end, low + length - watch.end)
            self._at_edges = self._edges.read()
        self._watch = watch

    def release(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.release()


# A watch that saw writes at this many consecutive uses, none of which changed the bytes, is
# removed: it slows the writes down and saves nothing.
_IN_VAIN = 2
# Checking the pages of a span this many times as large takes as long as a comparison: a column of
# numbers 1 kB apart.
_SPREAD = 128


def _place(source: Source) -> Hashable:
    """The place of the bytes: the same place has the same bytes until it is written."""
    if isinstance(source, Scattered):
        return source.place()
    return mapping.address_of(source)


def _span(source: Source) -> tuple[int, int]:
    """The watched range: address and length; 0 if a watch does not pay."""
    if not isinstance(source, Scattered):
        return mapping.address_of(source), source.nbytes
    low, high = source.span()
    pays = source.nbytes >= dirty_pages.WATCH_FROM and high - low <= _SPREAD * source.nbytes
    return low, high - low if pays else 0


class _Edges(NamedTuple):
    """The unwatched parts of pages at both ends: addresses and bytes."""

    low: int
    before: int
    end: int
    behind: int

    def read(self) -> tuple[bytes, bytes]:
        """The bytes of both parts now."""
        return ctypes.string_at(self.low, self.before), ctypes.string_at(self.end, self.behind)


def _has_bytes(source: Source, stored: memoryview) -> bool:
    if isinstance(source, Scattered):
        return source.equals(stored)
    if source.nbytes < _SMALL:
        return source.tobytes() == stored.tobytes()
    return dirty_pages.same_bytes(mapping.address_of(source), _address(stored), source.nbytes)


def _same_bytes(left: bytes, right: memoryview) -> bool:
    if len(left) != len(right):
        return False
    if len(left) < _SMALL:  # no foreign call, which releases the GIL
        return left == bytes(right)
    return dirty_pages.same_bytes(_address(memoryview(left)), _address(right), len(left))


_SMALL = 1 << 14


def _address(view: memoryview) -> int:
    return mapping.address_of(np.frombuffer(view, np.uint8)) if view.nbytes else 0
