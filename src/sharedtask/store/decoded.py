"""Published values in a worker: decoded once, then kept within a bound."""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from sharedtask.serialization import classes, functions
from sharedtask.serialization.container_snapshot import Snapshot
from sharedtask.serialization.snapshot import Original
from sharedtask.system.records import dataclass, field

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from sharedtask.observing import Clock

    from .stores import Store

# Decoded values are kept while their pickled heads stay below this; arrays cost nothing here.
_KEEP_HEAD_BYTES = 1 << 29
_IN_USE = 2  # the function and the value that was just decoded


@dataclass(slots=True)
class Watch:
    """A decoded value in a worker.

    ``since`` are the first and the last item that ran since it was last found unchanged, in the
    call with the number ``of``; None for none. ``checked_by`` is the last call that checked it.
    """

    snapshot: Snapshot
    since: tuple[int, int] | None = None
    of: int | None = None
    checked_by: int | None = None
    is_fresh: bool = True

    @classmethod
    def begin(cls, value: Any) -> Watch:
        """Watch a freshly decoded value."""
        return cls(Snapshot(value))

    def blame(self, call: int | None, first: int, last: int) -> tuple[int | None, int | None]:
        """The items that may have changed it, including those of the last chunk."""
        if self.since is None:
            return first, last
        if call is None or self.of != call:
            return None, None
        return min(first, self.since[0]), max(last, self.since[1])


@dataclass(slots=True)
class Decoded:
    """A value, the time that its decoding took, and when it was last used.

    ``original`` is its snapshot, as long as it is known to be unchanged. ``watch``
    checks that, if all its users are watched. ``classes`` were decoded with it, in these states.
    """

    value: Any
    head_bytes: int
    seconds: float
    classes: Sequence[tuple[type, classes.State]] = ()
    original: Original | None = None
    watch: Watch | None = None
    used: float = field(default_factory=time.monotonic)


class Values:
    """Stores that are open here, and the values decoded from them: once, then kept.

    Values in ``held`` are kept: the current chunk needs them, and their stores may be closed.
    """

    def __init__(self) -> None:
        self.held: frozenset[Hashable] = frozenset()
        self.stores: dict[Hashable, Store] = {}
        self.decoded: OrderedDict[Hashable, Decoded] = OrderedDict()
        self._needed: dict[Hashable, Sequence[object]] = {}
        self.clock: Clock | None = None  # of the chunk that is loaded, if it is traced

    def attach(self, token: Hashable, store: Store, needed: Sequence[object] = ()) -> None:
        """Bind this token to the value in ``store``, which needs the objects in ``needed``."""
        self.stores[token] = store
        if needed:
            self._needed[token] = needed

    def drop(self, token: Hashable) -> None:
        """Forget a value; its memory is freed with its last view."""
        self.decoded.pop(token, None)
        self._needed.pop(token, None)
        store = self.stores.pop(token, None)
        if store is not None:
            store.close()

    def value(self, token: Hashable) -> Any:
        """The value, decoded at its first use."""
        found = self.decoded.get(token)
        if found is None:
            found = self._decode(token)
        else:
            self.decoded.move_to_end(token)
            found.used = time.monotonic()
            found.original = found.watch = None  # this user is not watched
        return found.value

    def take(self, token: Hashable) -> tuple[Any, Original]:
        """The value as published, for tasks that are watched, and its snapshot.

        A value that is not given back is decoded again at the next call.
        """
        found = self.decoded.get(token)
        if found is None or found.original is None:
            self.renew(token)
            found = self._decode(token)
            found.original = Original(found.value, self.stores[token].value)
        self.decoded.move_to_end(token)
        found.used = time.monotonic()
        original, found.original, found.watch = found.original, None, None
        return found.value, original

    def value_to_watch(self, token: Hashable) -> Any:
        """The value as published, for tasks after which it is checked."""
        found = self.decoded.get(token)
        if found is None or (found.watch is None and token in self.stores):
            self.renew(token)
            found = self._decode(token)
        if found.watch is None:
            found.watch = Watch.begin(found.value)
        self.decoded.move_to_end(token)
        found.used = time.monotonic()
        found.original = None
        return found.value

    def watched(self, token: Hashable) -> Watch | None:
        """The watch of a value, if it has one."""
        found = self.decoded.get(token)
        return None if found is None else found.watch

    def give_back(self, token: Hashable, original: Original) -> None:
        """Give back a value that is unchanged."""
        if token in self.decoded:
            self.decoded[token].original = original

    def renew(self, token: Hashable) -> None:
        """Have a value decoded again at its next use."""
        self.decoded.pop(token, None)

    def can_take(self, token: Hashable) -> bool:
        """Whether ``take`` needs no store for this value."""
        found = self.decoded.get(token)
        return found is not None and found.original is not None

    def _decode(self, token: Hashable) -> Decoded:
        store, began = self.stores[token], time.monotonic()
        before = 0 if self.clock is None else sys.getallocatedblocks()
        with classes.collected_states() as notes:
            value = store.value()
        found = Decoded(value, len(store.parts()[0]), time.monotonic() - began, notes)
        self.decoded[token] = found
        if self.clock is not None:
            mapped = sum(memoryview(buffer).nbytes for buffer in store.parts()[1])
            objects = max(sys.getallocatedblocks() - before, 0)
            self.clock.note_decoding(token, began, found.head_bytes, mapped, objects)
        self._trim()
        return found

    def renew_classes(self, tokens: Iterable[Hashable]) -> None:
        """Reset classes to the state that came with these values; the last one counts.

        Values of other calls may have brought other states of them since.
        """
        states: dict[int, tuple[type, classes.State]] = {}
        for token in tokens:
            found = self.decoded.get(token)
            if found is not None:
                states.update((id(cls), (cls, state)) for cls, state in found.classes)
        for cls, state in states.values():
            classes.renew(cls, state)

    def function(self, token: Hashable) -> Callable[..., Any]:
        """The function, imported or rebuilt at its first use."""
        loaded = self.value(token)
        if isinstance(loaded, functions.NamedFunction):
            loaded = self.decoded[token].value = loaded.load()
        function: Callable[..., Any] = loaded
        return function

    def private_value(self, token: Hashable) -> Any:
        """The value over copy-on-write pages of its own."""
        return self.stores[token].private_value()

    def _trim(self) -> None:
        """Drop the least recently used values while their private parts exceed the limit."""
        total = sum(found.head_bytes for found in self.decoded.values())
        if total <= _KEEP_HEAD_BYTES:
            return
        for token in [t for t in self.decoded if t not in self.held][:-_IN_USE]:
            total -= self.decoded.pop(token).head_bytes
            if total <= _KEEP_HEAD_BYTES:
                return
