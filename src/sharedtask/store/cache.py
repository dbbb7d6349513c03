"""Identity -> publication: bounded, verified at every use, emptied as values die.

The key is the identity of an object that is *held*: by a weak reference where its type allows, by
the object itself elsewhere (dict, list, tuple). A reused ``id()`` can therefore never hit. A hit is
then verified: the value is encoded again, and its head and every buffer are compared with what was
published. A value that the caller has let go of is released: weak references say so at once, the
others are found by ``sweep()`` when nobody but the cache refers to them.
"""

from __future__ import annotations

import sys
import weakref
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sharedtask.memory import capacity
from sharedtask.serialization import codec
from sharedtask.serialization.composition import noted, same
from sharedtask.system import critical_sections, finalizers, interrupts
from sharedtask.system.finalizers import Ending

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
    """What ``task.cache_info()`` tells, in the words of ``functools.lru_cache``.

    ``maxsize`` is the bound in bytes for all tasks together, ``currsize`` the number of values that
    this task has published and could use again, ``nbytes`` the shared memory that they take.
    """

    hits: int
    misses: int
    maxsize: int
    currsize: int
    nbytes: int


class Lease:
    """A publication that stays valid until ``release()``, whatever becomes of the value."""

    __slots__ = ("__del__", "_cache", "hit", "publication")

    def __init__(self, publication: Publication, cache: ShareCache, *, hit: bool) -> None:
        self.publication = publication
        self.hit = hit
        self._cache: ShareCache | None = cache
        # For those who never gave it back, because they were interrupted. An attribute, so that
        # the interpreter finds and calls it without an instruction of ours: see endings.py.
        self.__del__ = finalizers.post(partial(cache.note_loss, publication))

    def release(self) -> None:
        """End the use; twice is once."""
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
        """Whether there is something that workers could have."""
        publication = self.publication
        return publication is not None and not publication.released

    def needs_no_look(self, composition: Composition | None, verify: Verify) -> bool:
        """Whether it is trusted to be right, or a function that is made of the same."""
        publication = self.publication
        if publication is None or verify == "identity":
            return publication is not None
        return same(publication.composition, composition)


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
        self._is_full = False  # more than the bounds allow is in use

    @interrupts.shielded
    def lease(
        self,
        value: Any,
        *,
        verify: Verify = "content",
        encode: Callable[[Any], Payload] = codec.encode,
        composition: Composition | None = None,
    ) -> Lease:
        """Publish ``value``, or find that its publication still says the same.

        A function need not be encoded for that where its ``composition`` is what was published.
        With ``verify="compare"`` every byte is compared, and with "identity" none.

        Raises whatever ``encode`` raises, and StoreFullError where there is no room.
        """
        self.sweep()
        entry = self._entry(value)
        lease = None
        while lease is None:
            # Pickling runs user code, which may bring the same value: it is done without the lock.
            known = entry.is_published() and entry.needs_no_look(composition, verify)
            payload = None if known else encode(value)
            critical_sections.enter(entry.lock)
            try:
                interrupts.acquire(entry.lock)
                try:  # two threads that bring the same value: one publishes
                    lease = self._leased(entry, value, payload, composition, verify=verify)
                finally:
                    entry.lock.release()
            finally:
                critical_sections.leave(entry.lock)
        if not lease.hit or self._is_full:
            self._evict()
        return lease

    def _leased(
        self,
        entry: _Entry,
        value: Any,
        payload: Payload | None,
        composition: Composition | None,
        *,
        verify: Verify,
    ) -> Lease | None:
        """Publish the payload where it says something new; None where one is needed for that."""
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
        """Publish for one use: nobody will ask for it again."""
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
        """Lease a publication that was made elsewhere."""
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
                # Thread 1 found the entry, thread 2 cleared the cache, thread 1 published: nobody
                # else knows of this publication, so it ends with this use.
                self._retired.add(publication)

    def sweep(self) -> None:
        """Release what belongs to values that are gone, and to uses that were not ended."""
        while self._dead:
            self._drop(self._dead.popleft())
        while self._lost:
            self.unpin(self._lost.popleft())
        for entry in [e for e in self._entries.copy().values() if not e.weak]:
            if _is_orphan(entry):
                self._drop(entry)

    def needs_sweeping(self) -> bool:
        """True while an entry holds its value itself, so that nothing tells when it dies."""
        return any(not entry.weak for entry in self._entries.copy().values())

    def forget(self, tokens: Iterable[int]) -> None:
        """Drop the publications with these tokens."""
        wanted = set(tokens)
        for entry in self._entries.copy().values():
            if entry.publication is not None and entry.publication.token in wanted:
                self._drop(entry)

    def clear(self) -> None:
        """Drop everything; what is in use now is released at the end of its use."""
        for entry in self._entries.copy().values():
            self._drop(entry)

    def publications(self) -> list[Publication]:
        """What could be used again."""
        found = [entry.publication for entry in self._entries.copy().values()]
        return [publication for publication in found if publication is not None]

    # ---------------------------------------------------------------------------- entries

    def _entry(self, value: Any) -> _Entry:
        key = id(value)
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and entry.refer() is value:
                self._entries.move_to_end(key)
                return entry
            if entry is not None:  # the id of a dead object, given to another one
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
        """A lease was lost. It takes no lock, and leaves a word."""
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
        if payload is None:  # another thread may have published something else since it was asked
            return entry.needs_no_look(composition, verify)
        if verify == "compare":
            publication.unwatch()
        if not publication.matches(payload):
            return False
        publication.composition = noted(payload.functions, value)
        return True

    def _publish(self, entry: _Entry, value: Any, payload: Payload, verify: Verify) -> None:
        if entry.publication is not None:
            entry.changes += 1
            self.retire(entry.publication)
            entry.publication = None
        watched = entry.changes < _CHANGES_WATCHED and verify == "content"
        entry.publication = Publication(payload, watched=watched, keep=self._keep)
        entry.publication.composition = noted(payload.functions, value)
        if not entry.weak:  # nothing will tell when it dies: somebody has to look from time to time
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
        """Keep within the bounds of bytes and files; what is in use, and the newest value, stay."""
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
