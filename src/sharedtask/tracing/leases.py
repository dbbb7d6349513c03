"""How shared values of a call came to its workers: found, or compared, encoded and stored."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

from sharedtask.serialization import codec
from sharedtask.store.stores import SegmentStore
from sharedtask.system.records import dataclass

from .records import Value
from .sizes import sizes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sharedtask.backends.base import Call
    from sharedtask.backends.leasing import Leases
    from sharedtask.backends.worker.envelope import Envelope
    from sharedtask.store.cache import Lease, ShareCache

    from .records import Miss, Travel

__all__ = ["Note", "TimedCache", "local_values", "values_of"]


@dataclass(slots=True)
class Note:
    """One lease: seconds by kind of work, and what the cache had of the value before."""

    compare: float
    encode: float
    store: float
    was_known: bool
    was_evicted: bool


class TimedCache:
    """A cache whose leases are timed. ``notes`` are by token."""

    def __init__(self, cache: ShareCache, was_evicted: Callable[[int], bool]) -> None:
        self._cache, self._was_evicted = cache, was_evicted
        self.notes: dict[int, Note] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def lease(
        self, value: Any, *, encode: Callable[[Any], Any] = codec.encode, **how: Any
    ) -> Lease:
        """See ``ShareCache.lease``."""
        spent = [0.0]
        known = self._cache.has(value)
        began = time.monotonic()
        lease = self._cache.lease(value, encode=functools.partial(_timed, spent, encode), **how)
        total = time.monotonic() - began
        store = 0.0 if lease.hit else lease.publication.seconds
        compare = max(total - spent[0] - store, 0.0)
        self.notes[lease.publication.token] = Note(
            compare, spent[0], store, known, self._was_evicted(id(value))
        )
        return lease


def _timed(spent: list[float], encode: Callable[[Any], Any], value: Any) -> Any:
    began = time.monotonic()
    try:
        return encode(value)
    finally:
        spent[0] += time.monotonic() - began


def values_of(
    call: Call, leases: Leases, constants: Envelope, notes: dict[int, Note], had: Any
) -> Iterator[tuple[Value, int | None]]:
    """What came along with a call, and the tokens of what was published.

    ``had`` says whether an earlier call of the task had a value of this name.
    """
    yield _published("function", call.function, leases.function, notes, had)
    for parameter, lease in zip(leases.parameters, leases.shared, strict=True):
        value = call.shared[parameter.name].value
        yield _published(parameter.name, value, lease, notes, had)
    for lease in leases.captures.leases:
        yield _published("captured", None, lease, notes, had)
    unmarked = list(call.unmarked())
    total = len(constants.data) + constants.nbytes_beside
    along: Travel = "beside" if constants.nbytes_beside else "message"
    for (name, value), nbytes in zip(
        unmarked, sizes_of([v for _, v in unmarked], total), strict=True
    ):
        travel = along if nbytes <= total else "shared"  # a large array is stored by itself
        yield Value(name, type(value).__name__, nbytes, marked=False, travel=travel), None


def _published(
    name: str, value: Any, lease: Lease, notes: dict[int, Note], had: Any
) -> tuple[Value, int]:
    publication = lease.publication
    note = notes.get(publication.token) or Note(0.0, 0.0, 0.0, lease.hit, False)
    travel: Travel = "shared" if isinstance(publication.store, SegmentStore) else "message"
    found = Value(
        name,
        type(value).__name__,
        publication.nbytes,
        marked=True,
        hit=lease.hit,
        miss="" if lease.hit else _reason(note, known=had(name)),
        travel="in place" if publication.is_in_place else travel,
        compare=note.compare,
        encode=note.encode,
        store=note.store,
        same_object=note.was_known if had(name) else None,
    )
    return found, publication.token


def _reason(note: Note, *, known: bool) -> Miss:
    if note.was_known:
        return "changed"
    if note.was_evicted:
        return "evicted"
    return "dead" if known else "new"


def local_values(call: Call) -> Iterator[Value]:
    """What came along with a call whose tasks run in this process: nothing is sent."""
    shared = [(name, value.value) for name, value in call.shared.items()]
    for name, value in shared:
        nbytes = sizes_of([value], 0)[0]
        yield Value(name, type(value).__name__, nbytes, True, miss="uncached", travel="none")
    for name, value in call.unmarked():
        yield Value(name, type(value).__name__, sizes_of([value], 0)[0], False, travel="none")
