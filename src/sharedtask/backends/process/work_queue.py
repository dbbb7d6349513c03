"""Chunks that wait for a worker: those of each call in a row, and turns between the calls.

Calls of one team share their limit of workers, so their chunks share a *line*. A line has room
while its team has chunks in fewer workers than the limit. Of the lines with room, the one that has
waited longest since it got a worker is next: ``turn`` says since when, and a heap finds it. So the
end of a chunk costs O(log n) in the number of lines, whatever the number of chunks.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .work_items import OpenCall, WorkItem


class Line:
    """The waiting chunks of a team's calls; never empty while it is in the queue."""

    __slots__ = ("calls", "head", "in_heap", "turn")

    def __init__(self, head: OpenCall) -> None:
        self.calls: OrderedDict[OpenCall, deque[WorkItem]] = OrderedDict()
        self.head = head  # the call that is next
        self.turn = 0
        self.in_heap = False  # with this turn


class WorkQueue:
    """All waiting chunks. Whether a line has room is looked up in the calls' ``users``."""

    def __init__(self) -> None:
        self.lines: dict[int, Line] = {}  # by the identity of the table of users
        self._heap: list[tuple[int, Line]] = []  # with entries of earlier turns, and without room
        self._at_back, self._at_front = itertools.count(1), itertools.count(-1, -1)

    def __iter__(self) -> Iterator[WorkItem]:
        for line in self.lines.values():
            for work_items in line.calls.values():
                yield from work_items

    def line_of(self, call: OpenCall) -> Line | None:
        """The line of a call's team, if chunks of it wait."""
        return self.lines.get(id(call.users))

    def append(self, work_item: WorkItem) -> None:
        """Add a chunk behind the others of its call."""
        call = work_item.call
        line = self.lines.get(id(call.users))
        if line is None:
            line = self.lines[id(call.users)] = Line(call)
            self._set_turn(line, next(self._at_back))
        work_items = line.calls.get(call)
        if work_items is None:
            line.calls[call] = deque((work_item,))
        else:
            work_items.append(work_item)

    def append_left(self, work_item: WorkItem) -> None:
        """Add a chunk that was with a worker before: it is next."""
        call = work_item.call
        line = self.lines.setdefault(id(call.users), Line(call))
        line.calls.setdefault(call, deque()).appendleft(work_item)
        line.calls.move_to_end(call, last=False)
        line.head = call
        self._set_turn(line, next(self._at_front))

    def first(self) -> Line | None:
        """The line that is next among those with room."""
        heap = self._heap
        while heap:
            turn, line = heap[0]
            if turn == line.turn:
                if len(line.head.users) < line.head.limit:
                    return line
                line.in_heap = False
            heapq.heappop(heap)
        return None

    def in_turn(self) -> Iterator[Line]:
        """All lines with room, the first one at little cost."""
        first = self.first()
        if first is None:
            return
        yield first
        others = [line for line in self.lines.values() if line is not first]
        for line in sorted(others, key=lambda line: line.turn):
            if len(line.head.users) < line.head.limit:
                yield line

    def pop(self, line: Line) -> None:
        """Take the next chunk out of a line, which then waits for its next turn."""
        call = line.head
        work_items = line.calls[call]
        work_items.popleft()
        if work_items:
            line.calls.move_to_end(call)
        else:
            del line.calls[call]
        self._step(line, call)
        if line.calls:
            self._set_turn(line, next(self._at_back))

    def note_room(self, call: OpenCall) -> None:
        """A worker has one chunk less of this call's team."""
        line = self.lines.get(id(call.users))
        if line is not None and not line.in_heap:
            self._set_turn(line, line.turn)

    def remove(self, call: OpenCall) -> deque[WorkItem]:
        """Take out the chunks of a call."""
        line = self.lines.get(id(call.users))
        work_items = line.calls.pop(call, None) if line is not None else None
        if line is None or work_items is None:
            return deque()
        self._step(line, call)
        return work_items

    def take(self, call: OpenCall, number: int) -> WorkItem | None:
        """Take out one chunk of a call, if it waits."""
        line = self.lines.get(id(call.users))
        work_items = line.calls.get(call) if line is not None else None
        found = next((t for t in work_items or () if t.chunk.number == number), None)
        if found is not None and work_items is not None:
            work_items.remove(found)
            if not work_items:
                self.remove(call)
        return found

    def clear(self) -> None:
        """Forget all chunks."""
        self.lines.clear()
        self._heap.clear()

    def _step(self, line: Line, call: OpenCall) -> None:
        """Chunks of a call were taken out: find the call that is next, or forget the line."""
        if line.calls:
            line.head = next(iter(line.calls))
            return
        line.turn = 0  # of no entry
        del self.lines[id(call.users)]
        if not self.lines:
            self._heap.clear()

    def _set_turn(self, line: Line, turn: int) -> None:
        line.turn, line.in_heap = turn, True
        heapq.heappush(self._heap, (turn, line))
