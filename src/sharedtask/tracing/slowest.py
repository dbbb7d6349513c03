"""The slowest items of a call, with a text for each.

Items belong to the user: those of at most five chunks are held, until the call ends.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sharedtask.backends.worker import chunk_clock

from .sizes import describe

if TYPE_CHECKING:
    from .records import Item

__all__ = ["Slowest"]

_MOST = 5
_numbers = itertools.count()


class Slowest:
    """See the module. ``see`` and ``release`` are called while the call runs.

    A chunk is to be seen if what was told of it is larger than ``floor``, as bytes.
    """

    def __init__(self) -> None:
        self.floor = b""
        self._chunks: list[tuple[bytes, int, int, Sequence[Any]]] = []
        self._items: list[tuple[float, int, Item]] = []
        self._texts: dict[int, str] = {}

    def see(self, first: int, items: Sequence[Any], told: bytes) -> None:
        """A chunk has ended: its items are among the slowest if its longest is."""
        chunks = self._chunks
        if len(chunks) < _MOST:
            heapq.heappush(chunks, (told, next(_numbers), first, items))
        else:
            heapq.heapreplace(chunks, (told, next(_numbers), first, items))
        if len(chunks) == _MOST:
            self.floor = chunks[0][0]

    def release(self) -> None:
        """The call has ended: take the texts of its slowest items, and let go of them."""
        self._take_texts()
        self._chunks.clear()

    def _take_texts(self) -> None:
        for told, _, first, items in list(self._chunks):
            positions, spent = chunk_clock.durations_of(told)
            for k in sorted(range(len(spent)), key=spent.__getitem__)[-_MOST:]:
                at = positions[k]
                if at < len(items):
                    self._texts[first + at] = describe(items[at])

    def offer(self, item: Item) -> None:
        """One of the items, which may be among the slowest."""
        slowest = self._items
        if len(slowest) < _MOST:
            heapq.heappush(slowest, (item.seconds, next(_numbers), item))
        elif item.seconds > slowest[0][0]:
            heapq.heapreplace(slowest, (item.seconds, next(_numbers), item))

    def records(self) -> tuple[Item, ...]:
        """The slowest first, each with its text."""
        self._take_texts()
        found = [item for *_, item in sorted(self._items, reverse=True)]
        return tuple(replace(item, text=self._texts.get(item.index, "")) for item in found)
