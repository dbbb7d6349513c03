"""Decides which worker gets which chunk. Without sockets, clocks and locks of its own.

    add(chunk) ---- a worker has room ----> table.send(worker, chunk)
       |  none has                             ^
       v                                       |
    WorkQueue ------- end(worker, chunk) ------+

A call uses at most as many workers as it asked for, and calls of one team together. A worker has
one chunk, and a second one that waits in its socket if chunks of that call are quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from . import recycling
from .work_queue import WorkQueue

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterator, Mapping

    from .work_items import OpenCall, WorkItem
    from .work_queue import TeamQueue

# A second chunk waits in a worker's socket if its chunks take less than this: then the round trip
# to the caller counts. Longer ones wait in the queue for the first worker that is free.
_PREFETCH_BELOW_SECONDS = 0.01
# The chunk that it runs, and the one that waits in its socket.
_MOST_IN_A_WORKER = 2
# How many items may have begun of a chunk that no worker has any more.
_ALL = 1 << 30


class Worker(Protocol):
    """A worker, as the scheduler knows it."""

    serial: int
    ran: int
    leaving: bool
    work_items: deque[WorkItem]
    tokens: dict[int, bool]
    seen_at: int

    @property
    def ended(self) -> bool:
        """Whether its socket has ended."""
        ...

    @property
    def stop_reason(self) -> object | None:
        """Why it is stopped, if it is."""
        ...

    @property
    def kill_reason(self) -> object | None:
        """Why it was killed, if it was."""
        ...

    def free_request_slot(self) -> int:
        """The slot of its next chunk on the status page."""
        ...

    def in_hand(self) -> int:
        """The number of its current chunk, or of its last one."""
        ...

    def cancel(self, work_item: WorkItem) -> None:
        """Ask the worker to give up a chunk between two items."""

    def take_back(self, work_item: WorkItem) -> bool:
        """Take a chunk back; False if the worker has begun it."""
        ...

    def begun(self, work_item: WorkItem) -> int:
        """How many items of a chunk may have begun."""
        ...


W = TypeVar("W", bound=Worker)


class Table(Protocol[W]):
    """Carries out what the scheduler decides."""

    @property
    def workers(self) -> Mapping[int, W]:
        """The workers by serial number; one that died is not among them."""
        ...

    def spawn(self, call: OpenCall) -> W:
        """Start a worker."""
        ...

    def send(self, worker: W, work_item: WorkItem) -> None:
        """Give a chunk to a worker, after the published values that it needs."""

    def dismiss(self, worker: W) -> None:
        """Ask a worker to end when it has run its chunks."""


class Scheduler(Generic[W]):
    """The waiting chunks, and those that were given up while a worker had them."""

    def __init__(self, table: Table[W]) -> None:
        self._table = table
        self._workers = table.workers
        self.queue = WorkQueue()
        self.given_up: list[WorkItem] = []

    # ------------------------------------------------------------------------- chunks come

    def add(self, work_item: WorkItem) -> None:
        """Give a chunk to a worker that has room, or queue it."""
        call = work_item.call
        worker = self._choose(call)
        call.pending += 1
        if worker is None:
            self.queue.append(work_item)
        else:
            self._send(worker, work_item)

    def add_first(self, work_item: WorkItem) -> None:
        """Queue a chunk that a worker had before: it is next."""
        work_item.call.pending += 1
        self.queue.append_left(work_item)

    def _choose(self, call: OpenCall) -> W | None:
        """The worker for the next chunk of ``call``: an idle one, a new one, one with room."""
        idle: list[W] = []
        for worker in self._workers.values():
            if not worker.work_items and self._can_take(worker, call):
                if worker.tokens.keys() >= call.tokens:  # most calls find one that has all
                    return worker
                idle.append(worker)
        if idle:
            return max(idle, key=lambda worker: len(worker.tokens.keys() & call.tokens))
        if len(call.users) < call.limit and self._has_place(call):
            return self._table.spawn(call)
        if _is_quick(call):
            workers = self._workers.values()
            return next(
                (w for w in workers if len(w.work_items) == 1 and self._can_take(w, call)), None
            )
        return None

    def _has_place(self, call: OpenCall) -> bool:
        """Whether one more worker may start; a worker that has run its items is dismissed."""
        staying = [worker for worker in self._workers.values() if not worker.leaving]
        if len(staying) < call.limit:
            return True
        used_up = (w for w in staying if not w.work_items and not recycling.can_run(w, call))
        worker = next(used_up, None)
        if worker is not None:
            self._table.dismiss(worker)
        return worker is not None

    def _can_take(self, worker: W, call: OpenCall) -> bool:
        """Whether a worker may take a chunk: no call uses more workers than it asked for."""
        if worker.ended or worker.kill_reason is not None or worker.stop_reason is not None:
            return False
        if worker.leaving or (call.limits is not None and not recycling.can_run(worker, call)):
            return False
        return len(call.users) < call.limit or worker.serial in call.users

    def _send(self, worker: W, work_item: WorkItem) -> None:
        call = work_item.call
        if not call.sink.begun(work_item.chunk.number):
            self.done(work_item)
            return
        work_item.request_slot = worker.free_request_slot()
        if call.limits is not None:
            cuts = call.slot_table is None or not call.slot_table.ordered
            work_item.chunk_limits = recycling.chunk_limits(worker, call.limits, cuts=cuts)
        worker.work_items.append(work_item)
        call.enter(worker.serial, work_item)
        self._table.send(worker, work_item)

    def _send_next(self, worker: W, team: TeamQueue) -> None:
        # In this order, so that an exception in the middle loses no chunk of another call.
        self._send(worker, team.calls[team.next_call][0])
        self.queue.pop(team)

    # -------------------------------------------------------------------------- chunks end

    def end(self, worker: W, work_item: WorkItem, *, is_used_up: bool) -> None:
        """A worker has finished a chunk: give it another one, or dismiss it if used up."""
        self.done(work_item, worker)
        if is_used_up or worker.leaving:
            self._table.dismiss(worker)
            self.fill_idle()
        else:
            self.refill(worker)

    def done(self, work_item: WorkItem, worker: W | None = None) -> None:
        """A chunk is over, finished or not."""
        call = work_item.call
        if worker is not None:
            self._leave(worker, work_item)
        work_item.envelope.close()
        call.pending -= 1
        if call.closed and not call.pending:
            call.release()

    def _leave(self, worker: W, work_item: WorkItem) -> None:
        worker.work_items.remove(work_item)
        work_item.call.leave(worker.serial, work_item)
        if self.queue.teams:
            self.queue.note_room(work_item.call)
        if work_item.cancelled and work_item in self.given_up:
            self.given_up.remove(work_item)

    def lose(self, worker: W, work_item: WorkItem, again: WorkItem | None) -> None:
        """A worker has died with a chunk; ``again``, often the same, is begun elsewhere."""
        if again is work_item:
            self._leave(worker, work_item)
            self.queue.append_left(work_item)
            return
        if again is not None:
            self.add_first(again)
        self.done(work_item, worker)

    def refill(self, worker: W) -> None:
        """Give waiting chunks to a worker that has room."""
        queue = self.queue
        while queue.teams and (team := self._next_for(worker)) is not None:
            self._send_next(worker, team)
        if queue.teams and not worker.work_items and queue.first() is not None:
            self.fill_idle()  # it has run its items: its end leaves room for one that may run these

    def _next_for(self, worker: W) -> TeamQueue | None:
        """The next team for a worker with room."""
        if not worker.work_items:
            first = self.queue.first()
            if first is None or self._can_take(worker, first.next_call):
                return first
            teams = self.queue.in_turn()
            return next((team for team in teams if self._can_take(worker, team.next_call)), None)
        if len(worker.work_items) < _MOST_IN_A_WORKER:
            return self._to_prefetch(worker)
        return None

    def _to_prefetch(self, worker: W) -> TeamQueue | None:
        """The team of the second chunk in a worker: the first one, or that of the chunk there."""
        for team in (self.queue.first(), self.queue.team_of(worker.work_items[0].call)):
            if (
                team is not None
                and _is_quick(team.next_call)
                and self._can_take(worker, team.next_call)
            ):
                return team
        return None

    def fill_idle(self) -> None:
        """Give waiting chunks to workers with room; start workers as needed."""
        refused: set[object] = set()  # kinds of calls for which there is no worker
        while (found := self._next_placed(refused)) is not None:
            worker, team = found
            self._send_next(worker, team)
        for worker in self._workers.values():
            if worker.work_items:  # a call without room may prefetch into its own workers
                self.refill(worker)

    def _next_placed(self, refused: set[object]) -> tuple[W, TeamQueue] | None:
        """The next team that has a worker, and that worker."""
        for team in self.queue.in_turn():
            call = team.next_call
            kind = call.limit, call.limits, _is_quick(call)
            if kind in refused:
                continue
            worker = self._choose(call)
            if worker is not None:
                return worker, team
            refused.add(kind)
        return None

    def rebalance(self, worker: W) -> None:
        """Take work back from a worker that is busy with a long chunk while another one is idle.

        The chunk queued behind it is dispatched again; of the chunk itself, the items not begun
        come back with the report that it ended early, and are cut into new chunks.
        """
        if not worker.work_items or worker.in_hand() != worker.seen_at:
            worker.seen_at = worker.in_hand()
            return
        waiting = worker.work_items[-1]
        if waiting.cancelled or self.queue.teams or not self._has_idle_worker(waiting.call):
            return
        if len(worker.work_items) == 1:
            if waiting.call.splits and len(waiting.chunk.items) > 1:
                worker.cancel(waiting)
        elif worker.take_back(waiting):
            waiting.cancelled = True
            self.add_first(waiting.again())
            self.fill_idle()

    def _has_idle_worker(self, call: OpenCall) -> bool:
        return any(not w.work_items and self._can_take(w, call) for w in self._workers.values())

    # ------------------------------------------------------------------- chunks are given up

    def cancel(self, call: OpenCall, kill_at: float) -> None:
        """Drop waiting chunks; running ones may finish their item until ``kill_at``."""
        for work_item in self.queue.remove(call):
            self.done(work_item)
        for worker in self._workers.values():
            for work_item in worker.work_items:
                if work_item.call is call and not work_item.cancelled:
                    work_item.cancelled, work_item.kill_at = True, kill_at
                    worker.cancel(work_item)
                    self.given_up.append(work_item)

    def withdraw(self, call: OpenCall, number: int) -> int:
        """See ``Session.withdraw``. An item is announced by its worker before it is begun."""
        waiting = self.queue.take(call, number)
        if waiting is not None:
            self.done(waiting)
            return 0
        held = self.held(call, number)
        if held is None:
            return _ALL
        worker, work_item = held
        worker.take_back(work_item)
        begun = worker.begun(work_item)
        work_item.cancelled = not begun
        return begun

    def held(self, call: OpenCall, number: int) -> tuple[W, WorkItem] | None:
        """A chunk that was not taken back, and the worker that has it."""
        for worker in self._workers.values():
            for work_item in worker.work_items:
                if (
                    work_item.call is call
                    and work_item.chunk.number == number
                    and not work_item.cancelled
                ):
                    return worker, work_item
        return None

    def overdue(self, now: float) -> Iterator[tuple[W, WorkItem]]:
        """The given-up chunks that have not ended in time, with their workers."""
        for work_item in self.given_up:
            if work_item.kill_at is not None and work_item.kill_at <= now:
                for worker in self._workers.values():
                    if work_item in worker.work_items:
                        yield worker, work_item

    def drop_all(self) -> list[WorkItem]:
        """Take back all chunks, for good."""
        running = (
            work_item for worker in self._workers.values() for work_item in worker.work_items
        )
        dropped = list(dict.fromkeys((*self.queue, *running)))
        self.queue.clear()
        for work_item in dropped:
            work_item.call.users.clear()
            self.done(work_item)
        return dropped


def _is_quick(call: OpenCall) -> bool:
    """Whether a second chunk may wait in a worker."""
    return call.seconds is not None and call.seconds < _PREFETCH_BELOW_SECONDS
