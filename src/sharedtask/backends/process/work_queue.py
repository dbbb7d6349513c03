"""Chunks that wait for a worker: those of each call in order, and turns between the teams.

Calls of one team share their limit of workers, so their chunks wait in one ``TeamQueue``. A team
has room while it has chunks in fewer workers than the limit. Of the teams with room, the one that
has waited longest since it got a worker is next: ``turn`` says since when, and a heap finds it. So
the end of a chunk costs O(log n) in the number of teams, whatever the number of chunks.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .work_items import OpenCall, WorkItem


class TeamQueue:
    """The waiting chunks of a team's calls; never empty while it is in the queue."""

    __slots__ = ("calls", "in_heap", "next_call", "turn")

    def __init__(self, next_call: OpenCall) -> None:
        self.calls: OrderedDict[OpenCall, deque[WorkItem]] = OrderedDict()
        self.next_call = next_call  # the call that is next
        self.turn = 0
        self.in_heap = False  # with this turn


class WorkQueue:
    """All waiting chunks. Whether a team has room is looked up in the calls' ``users``."""

    def __init__(self) -> None:
        self.teams: dict[int, TeamQueue] = {}  # by the identity of the table of users
        self._heap: list[
            tuple[int, TeamQueue]
        ] = []  # with entries of earlier turns, and without room
        self._at_back, self._at_front = itertools.count(1), itertools.count(-1, -1)

    def __iter__(self) -> Iterator[WorkItem]:
        for team in self.teams.values():
            for work_items in team.calls.values():
                yield from work_items

    def team_of(self, call: OpenCall) -> TeamQueue | None:
        """The queue of a call's team, if chunks of it wait."""
        return self.teams.get(id(call.users))

    def append(self, work_item: WorkItem) -> None:
        """Add a chunk behind the others of its call."""
        call = work_item.call
        team = self.teams.get(id(call.users))
        if team is None:
            team = self.teams[id(call.users)] = TeamQueue(call)
            self._set_turn(team, next(self._at_back))
        work_items = team.calls.get(call)
        if work_items is None:
            team.calls[call] = deque((work_item,))
        else:
            work_items.append(work_item)

    def append_left(self, work_item: WorkItem) -> None:
        """Add a chunk that was with a worker before: it is next."""
        call = work_item.call
        team = self.teams.setdefault(id(call.users), TeamQueue(call))
        team.calls.setdefault(call, deque()).appendleft(work_item)
        team.calls.move_to_end(call, last=False)
        team.next_call = call
        self._set_turn(team, next(self._at_front))

    def first(self) -> TeamQueue | None:
        """The team that is next among those with room."""
        heap = self._heap
        while heap:
            turn, team = heap[0]
            if turn == team.turn:
                if len(team.next_call.users) < team.next_call.limit:
                    return team
                team.in_heap = False
            heapq.heappop(heap)
        return None

    def in_turn(self) -> Iterator[TeamQueue]:
        """All teams with room, the first one at little cost."""
        first = self.first()
        if first is None:
            return
        yield first
        others = [team for team in self.teams.values() if team is not first]
        for team in sorted(others, key=lambda team: team.turn):
            if len(team.next_call.users) < team.next_call.limit:
                yield team

    def pop(self, team: TeamQueue) -> None:
        """Take the next chunk out of a team, which then waits for its next turn."""
        call = team.next_call
        work_items = team.calls[call]
        work_items.popleft()
        if work_items:
            team.calls.move_to_end(call)
        else:
            del team.calls[call]
        self._step(team, call)
        if team.calls:
            self._set_turn(team, next(self._at_back))

    def note_room(self, call: OpenCall) -> None:
        """A worker has one chunk less of this call's team."""
        team = self.teams.get(id(call.users))
        if team is not None and not team.in_heap:
            self._set_turn(team, team.turn)

    def remove(self, call: OpenCall) -> deque[WorkItem]:
        """Take out the chunks of a call."""
        team = self.teams.get(id(call.users))
        work_items = team.calls.pop(call, None) if team is not None else None
        if team is None or work_items is None:
            return deque()
        self._step(team, call)
        return work_items

    def take(self, call: OpenCall, number: int) -> WorkItem | None:
        """Take out one chunk of a call, if it waits."""
        team = self.teams.get(id(call.users))
        work_items = team.calls.get(call) if team is not None else None
        found = next((t for t in work_items or () if t.chunk.number == number), None)
        if found is not None and work_items is not None:
            work_items.remove(found)
            if not work_items:
                self.remove(call)
        return found

    def clear(self) -> None:
        """Forget all chunks."""
        self.teams.clear()
        self._heap.clear()

    def _step(self, team: TeamQueue, call: OpenCall) -> None:
        """Chunks of a call were taken out: find the call that is next, or forget the team."""
        if team.calls:
            team.next_call = next(iter(team.calls))
            return
        team.turn = 0  # of no entry
        del self.teams[id(call.users)]
        if not self.teams:
            self._heap.clear()

    def _set_turn(self, team: TeamQueue, turn: int) -> None:
        team.turn, team.in_heap = turn, True
        heapq.heappush(self._heap, (turn, team))
