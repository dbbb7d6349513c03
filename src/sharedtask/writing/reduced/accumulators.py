"""Reductions: an accumulator in each worker, which stays consistent if the worker dies.

    worker   item -> adds to an array -> [combined with the contributions of items before it]
    caller   all of these, combined into the caller's array at the end

If a failed item ends the whole call (nothing is added then), items add directly to the
contributions of the items before them. Otherwise each item gets an array of its own, and there are
two buffers: an item's contribution is combined into the inactive one, and a single word then
activates it, with the number of items in it. So a kill at any moment leaves either buffer whole,
and the word and the number of the worker's results tell which one contains exactly those items.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask.memory import arrays, locations
from sharedtask.outcomes import Partial
from sharedtask.system import critical_sections
from sharedtask.system.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

    from sharedtask.writing.reduced.operations import Total

    from .operations import Operation

_HEADER = 64
_CACHE_LINE, _PAGE = 64, 4096
_CHUNK_MASK = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class AccumulatorLayout:
    """The layout of an accumulator: an array for the total, and the number of buffers."""

    operation: Operation
    dtype: Any
    shape: tuple[int, ...]
    buffers: int

    @classmethod
    def of(cls, total: Total, *, itemwise: bool) -> AccumulatorLayout:
        """The layout of the accumulators for one of the caller's arrays."""
        return cls(total.operation, total.array.dtype, total.array.shape, 2 if itemwise else 1)

    @classmethod
    def all_of(cls, totals: Mapping[str, Total], *, itemwise: bool) -> dict[str, AccumulatorLayout]:
        """The layouts of a call, by parameter."""
        return {name: cls.of(each, itemwise=itemwise) for name, each in totals.items()}

    @property
    def stride(self) -> int:
        """Bytes from one buffer to the next: no two workers write to one cache line."""
        size = self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))
        unit = _PAGE if size >= _PAGE else _CACHE_LINE
        return int(-(-size // unit) * unit)

    @property
    def slot(self) -> int:
        """Bytes of one accumulator."""
        return (_PAGE if self.stride >= _PAGE else _HEADER) + self.buffers * self.stride

    def own(self) -> npt.NDArray[Any]:
        """An array for one item."""
        return np.empty(self.shape, self.dtype)


class Slot:
    """One accumulator: a few words, then its buffers."""

    def __init__(self, layout: AccumulatorLayout, memory: npt.NDArray[np.uint8]) -> None:
        self._layout = layout
        self._words = memory[:_HEADER].view(np.uint64)  # whether it is in use; chunk, done, which
        start = layout.slot - layout.buffers * layout.stride
        self._buffers: list[npt.NDArray[Any]] = [
            np.ndarray(layout.shape, layout.dtype, memory, start + k * layout.stride)
            for k in range(layout.buffers)
        ]

    @property
    def is_used(self) -> bool:
        """Whether it was used."""
        return bool(self._words[0])

    def begin(self) -> npt.NDArray[Any]:
        """The active buffer, which contains the identity if nothing was added yet."""
        if not self.is_used:
            self._layout.operation.begin(self._buffers[0])
            self._words[1] = 0
            self._words[0] = 1
        return self.current()

    def reset(self) -> None:
        """Start again with the next item."""
        self._words[0] = 0

    def current(self) -> npt.NDArray[Any]:
        """The active buffer."""
        return self._buffers[int(self._words[1]) & 1]

    def add(self, part: npt.NDArray[Any], chunk: int, done: int) -> None:
        """Combine the contribution of the item before position ``done`` of a chunk."""
        total, other = self.begin(), 1 - (int(self._words[1]) & 1)
        self._layout.operation.combine(total, part, self._buffers[other])
        self._words[1] = (chunk & _CHUNK_MASK) << 32 | done << 1 | other

    def take_back(self) -> None:
        """Drop the last contribution: activate the other buffer, without that item."""
        state = int(self._words[1])
        self._words[1] = (state - 2) ^ 1

    def roll_back_to(self, chunk: int, done: int) -> None:
        """Select the buffer after the worker died, with ``done`` results of this chunk."""
        state = int(self._words[1])
        if state >> 32 == chunk & _CHUNK_MASK and (state & _CHUNK_MASK) >> 1 > done:
            self.take_back()

    def has_any_of(self, chunk: int) -> bool:
        """Whether it contains contributions of items of this chunk."""
        return self.is_used and int(self._words[1]) >> 32 == chunk & _CHUNK_MASK


class Slots:
    """The accumulators of all workers for one of the caller's arrays, in shared memory."""

    def __init__(self, layout: AccumulatorLayout, count: int) -> None:
        self.layout = layout
        self._memory = arrays.empty(count * layout.slot, np.uint8)
        self._slots = [
            Slot(layout, self._memory[k * layout.slot : (k + 1) * layout.slot])
            for k in range(count)
        ]

    def __getitem__(self, number: int) -> Slot:
        return self._slots[number]

    def used(self) -> list[npt.NDArray[Any]]:
        """The totals of the used accumulators."""
        return [slot.current() for slot in self._slots if slot.is_used]

    def accumulator(self) -> Accumulator:
        """The object that workers get."""
        found = locations.find(self._memory)
        assert found is not None  # noqa: S101  it was made for that
        return Accumulator(self.layout, found.region)


class Accumulator:
    """A worker's side of one parameter; without a region its memory is private."""

    def __init__(self, layout: AccumulatorLayout, region: locations.Region | None = None) -> None:
        self._layout, self._region = layout, region
        self._memory: npt.NDArray[np.uint8] | None = None
        self._part: npt.NDArray[Any] | None = None
        self._slot: Slot | None = None
        self._chunk = 0

    def __reduce__(self) -> Any:
        return _accumulator, (self._layout, self._region)

    def enter(self, slot: int, chunk: int) -> None:
        """A chunk begins."""
        self._chunk = chunk
        self._slot = Slot(self._layout, self._memory_of(slot))

    def _memory_of(self, slot: int) -> npt.NDArray[np.uint8]:
        size = self._layout.slot
        if self._region is None:
            memory = np.empty(size, np.uint8)
            memory[:_HEADER] = 0
            return memory
        return self.base()[slot * size : (slot + 1) * size]

    def base(self) -> npt.NDArray[np.uint8]:
        """The slots of all workers."""
        assert self._region is not None  # noqa: S101  else it has memory of its own
        if self._memory is None:
            self._memory = self._region.view(writable=True)
        return self._memory

    def lend(self) -> npt.NDArray[Any]:
        """The array to which the next item adds."""
        assert self._slot is not None  # noqa: S101  entered before
        if self._layout.buffers == 1:
            return self._slot.begin()
        if self._part is None:
            self._part = self._layout.own()
        self._layout.operation.begin(self._part)
        return self._part

    def keep(self, position: int) -> None:
        """The item at a position of the chunk has returned."""
        if self._layout.buffers > 1:
            assert self._slot is not None  # noqa: S101
            assert self._part is not None  # noqa: S101
            self._slot.add(self._part, self._chunk, position + 1)

    def take_back(self) -> None:
        """The item that returned last counts as failed."""
        if self._layout.buffers > 1:
            assert self._slot is not None  # noqa: S101
            self._slot.take_back()

    def result(self) -> npt.NDArray[Any] | None:
        """The partial result of the chunk; None for nothing."""
        slot, self._slot = self._slot, None
        return slot.current() if slot is not None and slot.is_used else None


def _accumulator(layout: AccumulatorLayout, region: locations.Region | None) -> Accumulator:
    """In a worker, mapped at once, so that an error is attributed to the parameter."""
    accumulator = Accumulator(layout, region)
    if region is not None:
        accumulator.base()
    return accumulator


def keep_all(accumulators: Iterable[Accumulator], position: int) -> None:
    """Count all contributions of an item that has returned, or none."""
    kept = []
    try:
        for accumulator in accumulators:
            accumulator.keep(position)
            kept.append(accumulator)
    except BaseException:  # the operation may be the user's
        for accumulator in kept:
            accumulator.take_back()
        raise


def result_of(accumulators: Mapping[str, Accumulator], first: int, count: int) -> Partial | None:
    """The partial results of a chunk for all totals; None for nothing."""
    found = {name: accumulator.result() for name, accumulator in accumulators.items()}
    parts = {name: part for name, part in found.items() if part is not None}
    return Partial(first, count, parts) if parts else None


class Merger:
    """Merges partial results in the caller's process; used by one thread at a time."""

    def __init__(
        self, totals: Mapping[str, Total], block: int | None, *, stops: bool = True
    ) -> None:
        self._totals = totals
        self._block = block  # items that are combined first, if the order counts
        self._is_final = stops  # a received block is complete: no item of it is retried
        self._sums: dict[str, npt.NDArray[Any]] = {}
        self._early: dict[int, list[Partial]] = {}
        self._turn = 0

    def add(self, partial: Partial | None) -> None:
        """Take the partial result of a chunk."""
        if partial is None or not partial.arrays:
            return
        if self._block is None:
            self._combine(partial.arrays)
            return
        self._early.setdefault(partial.first, []).append(partial)
        while self._is_final and self._is_whole(self._turn):
            self._combine(self._early.pop(self._turn)[0].arrays)
            self._turn += self._block

    def _is_whole(self, first: int) -> bool:
        return first in self._early and self._early[first][0].count == self._block

    def _combine(self, parts: Mapping[str, npt.NDArray[Any]]) -> None:
        for name, part in parts.items():
            known = self._sums.get(name)
            if known is None:
                self._sums[name] = np.array(part)
            else:
                self._totals[name].operation.combine(known, part, known)

    def finish(self) -> None:
        """Combine everything into the caller's arrays."""
        for parts in self._in_order():
            self._combine(parts)
        sums, self._sums = self._sums, {}
        names = [name for name in sums if self._totals[name].operation.is_users]
        while not self._is_complete(sums, names):
            pass  # another call has completed one of these arrays meanwhile

    def _is_complete(self, sums: Mapping[str, npt.NDArray[Any]], names: Sequence[str]) -> bool:
        """Write the sums, unless an array of those ``names`` has changed meanwhile.

        The functions of these are the user's, and run without the lock: they may wait for another
        thread that ends a call.
        """
        before = {name: np.array(self._totals[name].array) for name in names}
        made = {name: self._completed(name, sums[name]) for name in names}
        with _finishing:
            if any(_differ(self._totals[name].array, before[name]) for name in names):
                return False
            made.update((n, self._completed(n, sums[n])) for n in sums if n not in made)
            for name, new in made.items():
                self._totals[name].array[...] = new
        return True

    def _completed(self, name: str, found: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The new contents of the caller's array; if one cannot be computed, none is changed."""
        total = self._totals[name]
        locations.find(total.array)  # its memory may have been freed meanwhile
        new = np.array(total.array)
        total.operation.combine(new, found, new)
        return new

    def _in_order(self) -> Iterable[Mapping[str, npt.NDArray[Any]]]:
        """The parts in the order of the items; first those of one block together.

        A block is split if one of its items was retried, or its worker died. Of the parts that
        begin with one item, the longer ones come first.
        """
        blocks: dict[int, Merger] = {}
        for first in sorted(self._early):
            inner = blocks.setdefault(first // (self._block or 1), Merger(self._totals, None))
            for partial in sorted(self._early[first], key=lambda each: -each.count):
                inner.add(partial)
        self._early.clear()
        return [block._sums for block in blocks.values()]


def _differ(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> bool:
    return left.tobytes() != right.tobytes()


# Two calls may end at the same moment with the same array.
_finishing = critical_sections.table_lock()
