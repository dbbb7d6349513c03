"""Outcomes of the items of a worker that died.

Finished results are on its status page or in its socket, the current item gets the error, and items
not begun are begun elsewhere.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sharedtask.errors import RemoteTraceback, TaskTimeoutError, WorkerDiedError
from sharedtask.outcomes import Batch, written_advice
from sharedtask.system.oom_events import OutOfMemoryKills
from sharedtask.worker import call_header
from sharedtask.worker.status_page import Phase, Word

from . import recycling, work_items
from .received import saved_results

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sharedtask.outcomes import Report

    from .connections import WorkerLink
    from .work_items import OpenCall, Ticket

# Limit of consecutive workers that die before they begin an item.
_MAX_STILLBORN = 3
# Limit of the workers that one chunk is given to before an item of it is begun. Each of them died,
# for whatever reason: without a limit the chunk would go round as long as the program runs.
_MAX_RESTARTS = 20

# When it died, if not in the task.
_LOADING = "while loading the function and the shared values"
_UNPACKING = "while unpickling the item"


@dataclass(frozen=True, slots=True)
class End:
    """The end of a chunk: its ``reports``, and the chunk to begin ``again``, if any."""

    ticket: Ticket
    reports: tuple[Report, ...] = ()
    again: Ticket | None = None


class Deaths:
    """Handles the deaths of a pool's workers; counts those before their first item."""

    def __init__(self) -> None:
        self._kills = OutOfMemoryKills()
        self._stillborn = 0  # consecutive

    def note_life(self, call: OpenCall) -> None:
        """A chunk of the call has ended."""
        self._stillborn = call.stillborn = 0

    def ends(self, worker: WorkerLink) -> Iterator[End]:
        """Ends of the chunks of a dead worker, the last one first."""
        in_hand, phase = worker.in_hand(), worker.board.words[Word.PHASE]
        self._stillborn += bool(worker.tickets) and in_hand == 0
        for ticket in reversed(list(worker.tickets)):
            is_in_hand = ticket.number == in_hand
            if ticket.cancelled:
                yield End(ticket)
            elif is_in_hand and phase not in (Phase.IDLE, Phase.LOADING):
                yield self._end_in_hand(worker, ticket, phase)
            elif lost := self._lost_before(ticket, loading=is_in_hand and phase == Phase.LOADING):
                yield End(ticket, (ticket.all_failed(self._cause(worker, ticket, lost)),))
            else:
                yield End(ticket, again=ticket)

    def _lost_before(self, ticket: Ticket, *, loading: bool) -> str:
        """Why a chunk without a begun item is not retried: its workers die before that."""
        ticket.restarts += 1
        if ticket.restarts > _MAX_RESTARTS:
            return "before its first item"
        if loading:
            ticket.call.stillborn += 1
            return _LOADING if ticket.call.stillborn > _MAX_STILLBORN else ""
        return "before its first item" if self._stillborn > _MAX_STILLBORN else ""

    def _end_in_hand(self, worker: WorkerLink, ticket: Ticket, phase: int) -> End:
        words = worker.board.words
        if (
            phase == Phase.UNPACKING
            and ticket.mode != call_header.EACH
            and len(ticket.chunk.items) > 1
        ):
            return End(ticket, again=work_items.encode_each(ticket.call, ticket.chunk))
        saved = saved_results(worker, ticket)
        if saved is not None:
            ticket.received = words[Word.BASE] + words[Word.COUNT]
        if ticket.call.places is not None:
            ticket.call.places.bury(worker.serial, ticket)
        if ticket.received < len(ticket.chunk.items):
            when = _UNPACKING if phase == Phase.UNPACKING else ""
            last = ticket.failed(self._cause(worker, ticket, when)(ticket.received))
        else:
            last = ticket.report(Batch(0, []), finished=True)
        return End(ticket, (last,) if saved is None else (saved, last))

    def _cause(
        self, worker: WorkerLink, ticket: Ticket, when: str
    ) -> Callable[[int], BaseException]:
        was_killed = worker.exit is not None and worker.exit[1] == signal.SIGKILL
        starved = was_killed and worker.kill_reason is None and self._kills.claim()
        return _cause(worker, ticket, when, starved=starved)


def _cause(
    worker: WorkerLink, ticket: Ticket, when: str, *, starved: bool
) -> Callable[[int], BaseException]:
    """A function that gives the error of the item at a position of the chunk.

    ``starved`` says that the kernel had no memory left.
    """
    call, chunk, kill_reason = ticket.call, ticket.chunk, worker.kill_reason
    pid, number, exitcode = worker.exit or (worker.pid, None, None)
    if exitcode is not None and exitcode < 0:
        when = f"for the system forked none: {os.strerror(-exitcode)} (see `ulimit -u`)"
        pid = exitcode = None
    crash = worker.board.crash()

    def error_at(position: int) -> BaseException:
        index, item = chunk.first + position, chunk.items[position]
        if kill_reason is not None and kill_reason.cause == "timeout":
            return TaskTimeoutError(call.task, index, item, call.timeout, pid)
        if kill_reason is not None and kill_reason.cause == "memory":
            return recycling.too_large(worker, ticket, position, kill_reason.reached)
        error = WorkerDiedError(call.task, index, item, pid, number, exitcode, when, starved)
        written_advice(error, call.leases.readonly)
        if crash:
            error.__cause__ = RemoteTraceback(crash)
        return error

    return error_at
