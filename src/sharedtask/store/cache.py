"""Identity -> publication: bounded, verified at every use, emptied as values are freed.

The key is the identity of an object that is *held*: by a weak reference if its type allows, else by
the object itself (dict, list, tuple). A reused ``id()`` can therefore never hit. A hit is then
verified: the value is encoded again, and its head and every buffer are compared with the published
ones. A value that the caller has freed is released: weak references report that at once, the others
are found by ``sweep()`` when only the cache refers to them.
"""

from __future__ import annotations

import sys
import weakref
from collections import OrderedDict, deque
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sharedtask import observing
from sharedtask.memory import capacity
from sharedtask.serialization import codec
from sharedtask.serialization.composition import composition_of, same
from sharedtask.system import critical_sections, finalizers, interrupts
from sharedtask.system.finalizers import Ending
from sharedtask.system.records import dataclass, field

from . import stores
from .publication import Publication
from .stores import SegmentStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sharedtask.memory.payload import Payload
    from sharedtask.serialization.composition import Composition

    from .stores import PublishedStore

# As the option: "content" may ask the kernel which pages were written, "compare" may not.
Verify = Literal["content", "compare", "identity"]

# A value that was found changed this often is no longer watched: after each publication the first
# write to every page of a watched array costs ten times as much.
_CHANGES_WATCHED = 2


class CacheInfo(NamedTuple):
    """The result of ``task.cache_info()``, with the names of ``functools.lru_cache``.

    ``maxsize`` is the limit in bytes for all tasks together, ``currsize`` the number of values that
    this task has published and could use again, ``nbytes`` the shared memory that they occupy.
    """

    hits: int
    misses: int
    maxsize: int
    currsize: int
    nbytes: int


class Lease:
    """A publication that stays valid until ``release()``, also if the value is freed or changed."""

    __slots__ = ("__del__", "_cache", "hit", "publication")

    def __init__(self, publication: Publication, cache: ShareCache, *, hit: bool) -> None:
        self.publication = publication
        self.hit = hit
        self._cache: ShareCache | None = cache
        # For holders that were interrupted and did not release it. An attribute, so that the
        # interpreter calls it without running Python code: see finalizers.py.
        self.__del__ = finalizers.post(partial(cache.note_loss, publication))

    def release(self) -> None:
        """End the use; idempotent."""
        cache, self._cache = self._cache, None
        if cache is not None:
            del self.__del__
            cache.unpin(self.publication)


@dataclass(slots=True)
class _Entry:
    key: int
    refer: Callable[[], Any]
    weak: bool
    lock: Any = field(default_factory=critical_sections.object_lock)
    publication: Publication | None = None
    changes: int = 0

    def is_published(self) -> bool:
        """Whether there is a publication for workers."""
        publication = self.publication
        return publication is not None and not publication.released

    def needs_no_look(self, composition: Composition | None, verify: Verify) -> bool:
        """Whether no comparison is needed: trusted, or a function with the same composition."""
        publication = self.publication
        if publication is None or publication.released:
            return False
        return verify == "identity" or same(publication.composition, composition)


class ShareCache:
    """Publications of the values that are alive, the most recently used ones last."""

    def __init__(
        self,
        limit: int | None = None,
        wake: Callable[[], object] = lambda: None,
        keep: Callable[[Payload], PublishedStore] = stores.keep,
    ) -> None:
        self.limit = capacity.total() // 4 if limit is None else limit
        self._keep = keep
        self._wake = wake
        self._lock = critical_sections.table_lock()
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._pins: dict[Publication, int] = {}
        self._retired: set[Publication] = set()
        self._dead: deque[_Entry] = deque()
        self._lost: deque[Publication] = deque()
        self._is_full = False  # the values in use exceed the bounds

    def lease(
        self,
        value: Any,
        *,
        verify: Verify = "content",
        encode: Callable[[Any], Payload] = codec.encode,
        composition: Composition | None = None,
    ) -> Lease:
        """Publish ``value``, or verify that its publication is current.

        A function is not encoded for that if its ``composition`` is the published one.
        With ``verify="compare"`` every byte is compared, and with "identity" none.

        Called within a shield of ``interrupts``.

        Raises the errors of ``encode``, and StoreFullError if there is no room.
        """
        entry = self._entry(value)
        is_known = verify == "identity" or composition is not None
        lease = self._lease_known(entry, composition, verify) if is_known else None
        if lease is None and verify == "content":
            lease = self._lease_recognised(entry, value)
        if lease is None and not entry.is_published():
            self.sweep()
        while lease is None:
            # Pickling runs user code, which may lease the same value: so without the lock.
            payload = None if entry.needs_no_look(composition, verify) else encode(value)
            critical_sections.enter(entry.lock)
            try:
                interrupts.acquire(entry.lock)
                try:  # if two threads lease the same value, one publishes
                    lease = self._leased(entry, value, payload, composition, verify=verify)
                    if lease is not None and lease.hit and verify == "content":
                        lease.publication.recognise(value, payload, encode)
                finally:
                    entry.lock.release()
            finally:
                critical_sections.leave(entry.lock)
        if not lease.hit or self._is_full:
            self._evict()
        return lease

    def is_current(
        self,
        value: Any,
        publication: Publication,
        *,
        verify: Verify,
        composition: Composition | None,
    ) -> bool:
        """Whether ``lease`` would find this publication without a comparison of contents."""
        if verify != "identity" and composition is None:
            return False
        with self._lock:
            entry = self._entries.get(id(value))
            return (
                entry is not None
                and entry.refer() is value
                and entry.publication is publication
                and entry.needs_no_look(composition, verify)
                and not stores.has_lost_file(publication.store)
            )

    def has(self, value: Any) -> bool:
        """Whether this very object is published, in its present state or an earlier one."""
        with self._lock:
            entry = self._entries.get(id(value))
            return entry is not None and entry.refer() is value and entry.is_published()

    def _lease_known(
        self, entry: _Entry, composition: Composition | None, verify: Verify
    ) -> Lease | None:
        """The publication, if it needs no comparison; the case of most calls."""
        if not entry.lock.acquire(blocking=False):
            interrupts.acquire(entry.lock)
        try:
            if not entry.needs_no_look(composition, verify):
                return None
            publication = entry.publication
            if publication is None or stores.has_lost_file(publication.store):
                return None
            self._pin(entry, publication)
            return Lease(publication, self, hit=True)
        finally:
            entry.lock.release()

    def _lease_recognised(self, entry: _Entry, value: Any) -> Lease | None:
        """The publication, if the value is seen to be the same without being encoded."""
        known = entry.publication
        if known is None or known.outline is None:
            return None
        critical_sections.enter(entry.lock)
        try:
            interrupts.acquire(entry.lock)
            try:
                publication = entry.publication
                if publication is None or publication.released:
                    return None
                stores.restore(publication.store)
                if not publication.is_recognised(value):
                    return None
                self._pin(entry, publication)
                return Lease(publication, self, hit=True)
            finally:
                entry.lock.release()
        finally:
            critical_sections.leave(entry.lock)

    def _leased(
        self,
        entry: _Entry,
        value: Any,
        payload: Payload | None,
        composition: Composition | None,
        *,
        verify: Verify,
    ) -> Lease | None:
        """Publish the payload if it is new; None if a payload is needed to decide that."""
        hit = self._is_current(entry, value, payload, composition, verify=verify)
        if not hit:
            if payload is None:
                return None
            self._publish(entry, value, payload, verify)
        publication = entry.publication
        assert publication is not None  # noqa: S101  just made or found
        self._pin(entry, publication)
        return Lease(publication, self, hit=hit)

    def lease_once(self, payload: Payload) -> Lease:
        """Publish for one use: it is not reused."""
        publication = Publication(payload, watched=False, keep=self._keep)
        lease = self.adopt(publication)
        lease.hit = False
        self.retire(publication)
        return lease

    def unpin(self, publication: Publication) -> None:
        """End one use of a publication."""
        with self._lock:
            left = self._pins.pop(publication) - 1
            if left:
                self._pins[publication] = left
            free = not left and publication in self._retired
            if free:
                self._retired.remove(publication)
        if free:
            publication.release()

    def adopt(self, publication: Publication) -> Lease:
        """Lease a publication that was not made by this cache."""
        stores.restore(publication.store)
        with self._lock:
            self._pins[publication] = self._pins.get(publication, 0) + 1
        return Lease(publication, self, hit=True)

    def retire(self, publication: Publication) -> None:
        """Release a publication: now, or at the end of its last use."""
        with self._lock:
            if publication in self._pins:
                self._retired.add(publication)
                return
        publication.release()

    def _pin(self, entry: _Entry, publication: Publication) -> None:
        with self._lock:
            self._pins[publication] = self._pins.get(publication, 0) + 1
            if self._entries.get(entry.key) is not entry:
                # Thread 1 found the entry, thread 2 cleared the cache, thread 1 published: only
                # this lease refers to the publication, so it ends with this use.
                self._retired.add(publication)

    def sweep(self) -> None:
        """Release publications of freed values, and leases that were lost."""
        while self._dead and (entry := critical_sections.first_of(self._dead)) is not None:
            self._drop(entry)
        while self._lost and (publication := critical_sections.first_of(self._lost)) is not None:
            self.unpin(publication)
        for entry in self._known():
            if not entry.weak and _is_orphan(entry):
                self._drop(entry)

    def needs_sweeping(self) -> bool:
        """True while an entry holds its value itself, so that its death is not reported."""
        return any(not entry.weak for entry in self._known())

    def forget(self, tokens: Iterable[int]) -> None:
        """Drop the publications with these tokens."""
        wanted = set(tokens)
        for entry in self._known():
            if entry.publication is not None and entry.publication.token in wanted:
                self._drop(entry)

    def clear(self) -> None:
        """Drop everything; what is in use now is released at the end of its use."""
        for entry in self._known():
            self._drop(entry)

    def publications(self) -> list[Publication]:
        """The publications that could be used again."""
        found = [entry.publication for entry in self._known()]
        return [publication for publication in found if publication is not None]

    # ---------------------------------------------------------------------------- entries

    def _known(self) -> list[_Entry]:
        """The entries as they are now; without the GIL, an OrderedDict cannot copy itself alone."""
        with self._lock:
            return list(self._entries.values())

    def _entry(self, value: Any) -> _Entry:
        key = id(value)
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and entry.refer() is value:
                self._entries.move_to_end(key)
                return entry
            if entry is not None:  # the id of a freed object was reused
                self._dead.append(entry)
            entry = self._new_entry(key, value)
            self._entries[key] = entry
            return entry

    def _new_entry(self, key: int, value: Any) -> _Entry:
        try:
            entry = _Entry(key, weakref.ref(value), weak=True)
        except TypeError:

            def refer(held: Any = value) -> Any:
                return held

            return _Entry(key, refer, weak=False)
        entry.refer = Ending(value, partial(self._note_death, entry))
        return entry

    def note_loss(self, publication: Publication) -> None:
        """Record a lost lease, without taking a lock."""
        self._lost.append(publication)
        self._wake()

    def _note_death(self, entry: _Entry) -> None:
        self._dead.append(entry)
        self._wake()

    def _is_current(
        self,
        entry: _Entry,
        value: Any,
        payload: Payload | None,
        composition: Composition | None,
        *,
        verify: Verify,
    ) -> bool:
        publication = entry.publication
        if publication is None or publication.released:
            return False
        stores.restore(publication.store)
        if payload is None:  # another thread may have published a new value since the check
            return entry.needs_no_look(composition, verify)
        if verify == "compare":
            publication.unwatch()
        if not publication.matches(payload):
            return False
        publication.composition = composition_of(payload.functions, value)
        return True

    def _publish(self, entry: _Entry, value: Any, payload: Payload, verify: Verify) -> None:
        if entry.publication is not None:
            entry.changes += 1
            self.retire(entry.publication)
            entry.publication = None
        watched = entry.changes < _CHANGES_WATCHED and verify == "content"
        entry.publication = Publication(payload, watched=watched, keep=self._keep)
        entry.publication.composition = composition_of(payload.functions, value)
        if not entry.weak:  # its death is not reported: it has to be checked from time to time
            self._wake()

    def _drop(self, entry: _Entry) -> None:
        with self._lock:
            if self._entries.get(entry.key) is entry:
                del self._entries[entry.key]
        if isinstance(entry.refer, Ending):
            entry.refer.cancel()
        with entry.lock:
            publication, entry.publication = entry.publication, None
        if publication is not None:
            self.retire(publication)

    def _evict(self) -> None:
        """Evict down to the bounds of bytes and files, but not used values or the newest one."""
        with self._lock:
            held = [e for e in self._entries.values() if e.publication is not None]
            excess = sum(e.publication.nbytes for e in held if e.publication) - self.limit
            files = sum(map(_has_file, held)) - _most_files() if len(held) > _FEW else 0
            victims = []
            for entry in held[:-1]:
                if excess <= 0 and files <= 0:
                    break
                if entry.publication is None or entry.publication in self._pins:
                    continue
                if excess > 0 or _has_file(entry):
                    excess -= entry.publication.nbytes
                    files -= _has_file(entry)
                    victims.append(entry)
            self._is_full = excess > 0 or files > 0
        for entry in victims:
            if observing.recorder is not None and entry.publication is not None:
                observing.recorder.evicted(entry.key, entry.publication.nbytes)
            self._drop(entry)


def _has_file(entry: _Entry) -> bool:
    """Whether a publication holds a descriptor."""
    return entry.publication is not None and isinstance(entry.publication.store, SegmentStore)


def _most_files() -> int:
    """Half of the files that this process may open; the program needs some as well."""
    return capacity.open_files() // 2


_FEW = 16  # values that are never too many


def _is_orphan(entry: _Entry) -> bool:
    """True where the cache alone still refers to the value: the closure's cell and our argument."""
    held = entry.refer.__defaults__ or (None,)
    return sys.getrefcount(held[0]) <= _OWN_REFERENCES


_OWN_REFERENCES = 2
