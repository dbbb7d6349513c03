"""Accumulator slots of a call's ``Reduced`` parameters: assignment to workers, and collection."""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from typing import TYPE_CHECKING

import numpy as np

from sharedtask.memory.room import needed_for
from sharedtask.outcomes import Partial

from .accumulators import Slots

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sharedtask.writing.handler import Counted

    from .accumulators import Accumulator, AccumulatorLayout, Merger


# The process backend gives a worker at most this many chunks at a time.
_WITH_A_WORKER = 2


class SlotTable:
    """The slots of a call: one for each worker, or for each chunk if the order counts."""

    def __init__(
        self,
        task: str,
        layouts: Mapping[str, AccumulatorLayout],
        merger: Merger,
        workers: int,
        *,
        ordered: bool,
    ) -> None:
        self._merger = merger
        self._ended: deque[Partial] = deque()  # partial results of chunks, not combined yet
        self._by_chunk = ordered
        count = workers * _WITH_A_WORKER if ordered else workers
        self._slots = {}
        for name, layout in layouts.items():
            with needed_for(task, f"{name!r} does not fit once for each of the workers"):
                self._slots[name] = Slots(layout, count)
        self._free = list(reversed(range(count)))
        self._taken: dict[int, int] = {}
        self._users: Counter[int] = Counter()

    @property
    def ordered(self) -> bool:
        """Whether chunks are added up as they were cut."""
        return self._by_chunk

    def accumulator(self, name: str) -> Accumulator:
        """The accumulator that workers get for a parameter."""
        return self._slots[name].accumulator()

    def enter(self, worker: int, work_item: Counted) -> int:
        """The slot for a chunk that goes to a worker."""
        key = self._key(worker, work_item)
        self._users[key] += 1
        if key not in self._taken:
            self._taken[key] = self._free.pop()
        return self._taken[key]

    def leave(self, worker: int, work_item: Counted) -> None:
        """A worker gave back or finished a chunk."""
        key = self._key(worker, work_item)
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]
            self._free.append(self._taken.pop(key))

    def _key(self, worker: int, work_item: Counted) -> int:
        return work_item.number if self._by_chunk else worker

    def reap(self, worker: int, work_item: Counted) -> None:
        """A worker died in this chunk; results that it left are counted as received."""
        for slots in self._slots.values():
            slots[self._taken[self._key(worker, work_item)]].roll_back_to(
                work_item.number, work_item.received
            )
        self.end(worker, work_item)

    def end(self, worker: int, work_item: Counted) -> None:
        """A chunk is over: take its partial result, if the order of chunks counts."""
        if self._by_chunk:
            at = self._taken[self._key(worker, work_item)]
            slots = {name: slots[at] for name, slots in self._slots.items()}
            parts = {
                name: np.array(slot.current())
                for name, slot in slots.items()
                if slot.has_any_of(work_item.number)
            }
            self._ended.append(Partial(work_item.chunk.first, work_item.received, parts))
            for slot in slots.values():
                slot.reset()

    def take(self) -> None:
        """Combine partial results; the function may be the user's, so no lock may be held."""
        with contextlib.suppress(IndexError):
            while self._ended:
                self._merger.add(self._ended.popleft())

    def finish(self) -> None:
        """All items were run: combine the slots into the caller's arrays."""
        self.take()
        for name, slots in self._slots.items():
            for part in slots.used():
                self._merger.add(Partial(0, 0, {name: part}))
        self._merger.finish()
