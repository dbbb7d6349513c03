"""The number of items per chunk.

Guided: large chunks first, smaller ones towards the end, so that all workers finish together. The
time per item is learned from results, and remembered from one call to the next.
"""

from __future__ import annotations

import itertools
from time import monotonic
from typing import TYPE_CHECKING, Any

from sharedtask.backends.base import Chunk, Concurrency

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

# A chunk should take at least this many round trips to a worker ...
_AT_LEAST_WAYS = 25
# ... and at most this long, so that work can be distributed at any time.
_AT_MOST_SECONDS = 0.1
# A second worker pays if all items take longer than this many round trips: waking it, and being
# woken by it, costs as much as it saves below.
_WORTH_A_SECOND = 3
# Interval of results in a stream, if the round trip allows.
_STREAM_SECONDS = 0.01
# Items that come slower than this are sent at once.
_COLLECT_SECONDS = 0.005
_LARGEST_OF_STREAM = 1 << 11
_FEW = 4


class Pace:
    """Seconds that an item takes, smoothed; None before the first result of a task."""

    def __init__(self) -> None:
        self.seconds: float | None = None

    def add(self, seconds: float, items: int) -> None:
        """``items`` items took ``seconds`` seconds in one worker."""
        if items:
            new = seconds / items
            self.seconds = new if self.seconds is None else 0.5 * (self.seconds + new)


class Chunker:
    """Cuts a stream of items into chunks."""

    def __init__(
        self,
        items: Iterable[Any],
        total: int | None,
        chunksize: int | str,
        concurrency: Concurrency,
        pace: Pace,
        *,
        costly: bool = False,
    ) -> None:
        sliced = type(items) in (list, tuple, range)
        self._sequence: Any = items if sliced else None
        self._items = iter(items)
        self._total = total
        self._fixed = chunksize if isinstance(chunksize, int) else None
        self._workers = concurrency.workers
        # A small job gains nothing from more workers than there are CPUs.
        self._useful = min(concurrency.workers, concurrency.cpus)
        self._overhead = concurrency.overhead
        self._largest = concurrency.largest
        self._pace = pace
        # If each chunk has a cost, a worker gets only a few.
        self._least = -(-total // (_FEW * self._useful)) if total and costly else 1
        self._numbers = itertools.count(1)
        self.last = 1
        self.is_lazy = self._sequence is None
        self.given = 0
        self.error: Exception | None = None  # raised by the iterator of items, after its last item
        self.exhausted = False

    def next(self, most: int | None) -> Chunk | None:
        """The next chunk, of at most ``most`` items; None at the end, or when ``error`` is set."""
        if self.exhausted:
            return None
        size = self._fixed or self._size()
        if most is not None:
            size = min(size, most)
        if self._sequence is None:
            items = self._take(size)
        else:  # of a range it is a range, of any length
            items = self._sequence[self.given : self.given + size]
            self.exhausted = len(items) < size or self.given + size == self._total
        if not items:
            return None
        self.last = len(items)
        chunk = Chunk(next(self._numbers), self.given, items)
        self.given += len(items)
        return chunk

    def _take(self, size: int) -> list[Any]:
        """Up to ``size`` items; fewer if they come slowly, so that no result is delayed."""
        items: list[Any] = []
        began, step = monotonic(), 1
        try:
            while len(items) < size:
                before = len(items)
                items.extend(itertools.islice(self._items, min(step, size - before)))
                if len(items) - before < min(step, size - before):
                    self.exhausted = True
                    break
                if self._fixed is None and monotonic() - began > _COLLECT_SECONDS:
                    break
                step *= 2
        except Exception as error:  # noqa: BLE001  the user's; what it gave before counts
            self.error, self.exhausted = error, True
        return items

    def again(self, first: int, items: Sequence[Any]) -> Chunk:
        """A chunk of items that are dispatched again, together."""
        return Chunk(next(self._numbers), first, items)

    def parts(self, first: int, items: Sequence[Any], singly: bool) -> Iterator[Chunk]:
        """Chunks of items that are dispatched again, split for all workers, or one by one."""
        size = 1 if singly else self._fixed or -(-len(items) // self._workers)
        for start in range(0, len(items), size):
            yield self.again(first + start, items[start : start + size])

    def _size(self) -> int:
        seconds = self._pace.seconds
        if self._total is None:
            return self._size_of_stream(seconds)
        return max(self._guided(self._total, seconds), min(self._least, self._largest))

    def _guided(self, total: int, seconds: float | None) -> int:
        left = max(total - self.given, 1)
        if seconds is None:
            return min(-(-left // (8 * self._workers)), self._largest)
        guided = -(-left // (3 * self._workers))
        enough = int(self._overhead * _AT_LEAST_WAYS / max(seconds, 1e-9))
        if total * seconds > self._overhead * _WORTH_A_SECOND:
            enough = min(enough, -(-total // self._useful))
        most = min(int(_AT_MOST_SECONDS / max(seconds, 1e-9)), self._largest)
        return max(min(max(guided, enough), most), 1)

    def _size_of_stream(self, seconds: float | None) -> int:
        """The end is unknown: grow from one item until a chunk takes the intended time."""
        if seconds is None:
            return 1
        size = min(2 * self.last, _LARGEST_OF_STREAM)
        enough = max(_STREAM_SECONDS, self._overhead * _AT_LEAST_WAYS)
        return max(min(size, int(enough / max(seconds, 1e-9))), 1)
