"""Outcomes of the items of a worker that died.

Finished results are on its status page or in its socket, the current item gets the error, and items
not begun are begun elsewhere.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from sharedtask.backends.worker import call_header
from sharedtask.backends.worker.status_page import Phase, Word
from sharedtask.errors import RemoteTraceback, TaskTimeoutError, WorkerDiedError
from sharedtask.outcomes import Batch, written_advice
from sharedtask.system.oom_events import OutOfMemoryKills
from sharedtask.system.records import dataclass

from . import recycling, work_items
from .received import saved_results

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sharedtask.outcomes import Report

    from .connections import WorkerLink
    from .work_items import OpenCall, WorkItem

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

    work_item: WorkItem
    reports: tuple[Report, ...] = ()
    again: WorkItem | None = None


def how_it_ended(worker: WorkerLink) -> tuple[str, bool]:
    """How a worker has ended, in words, and whether it was asked to."""
    _, number, exitcode = worker.exit or (worker.pid, None, None)
    if worker.kill_reason is not None:
        return worker.kill_reason.cause, False
    if worker.leaving:
        if not worker.ran:
            return "not needed", True
        why = f" because of {worker.used_up}" if worker.used_up else ""
        return f"replaced after {worker.ran} items{why}", True
    if number is not None:
        return f"killed by {signal.Signals(number).name}", False
    return f"exit code {exitcode}", False


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
        in_hand, phase = worker.in_hand(), worker.status_page.words[Word.PHASE]
        self._stillborn += bool(worker.work_items) and in_hand == 0
        for work_item in reversed(list(worker.work_items)):
            is_in_hand = work_item.number == in_hand
            if work_item.cancelled:
                yield End(work_item)
            elif is_in_hand and phase not in (Phase.IDLE, Phase.LOADING):
                yield self._end_in_hand(worker, work_item, phase)
            elif lost := self._lost_before(
                work_item, loading=is_in_hand and phase == Phase.LOADING
            ):
                yield End(work_item, (work_item.all_failed(self._cause(worker, work_item, lost)),))
            else:
                yield End(work_item, again=work_item)

    def _lost_before(self, work_item: WorkItem, *, loading: bool) -> str:
        """Why a chunk without a begun item is not retried: its workers die before that."""
        work_item.restarts += 1
        if work_item.restarts > _MAX_RESTARTS:
            return "before its first item"
        if loading:
            work_item.call.stillborn += 1
            return _LOADING if work_item.call.stillborn > _MAX_STILLBORN else ""
        return "before its first item" if self._stillborn > _MAX_STILLBORN else ""

    def _end_in_hand(self, worker: WorkerLink, work_item: WorkItem, phase: int) -> End:
        words = worker.status_page.words
        if (
            phase == Phase.UNPACKING
            and work_item.mode != call_header.EACH
            and len(work_item.chunk.items) > 1
        ):
            return End(work_item, again=work_items.encode_each(work_item.call, work_item.chunk))
        saved = saved_results(worker, work_item)
        if saved is not None:
            work_item.received = words[Word.BASE] + words[Word.COUNT]
        if work_item.call.slot_table is not None:
            work_item.call.slot_table.reap(worker.serial, work_item)
        if work_item.received < len(work_item.chunk.items):
            when = _UNPACKING if phase == Phase.UNPACKING else ""
            last = work_item.failed(self._cause(worker, work_item, when)(work_item.received))
        else:
            last = work_item.report(Batch(0, []), finished=True)
        return End(work_item, (last,) if saved is None else (saved, last))

    def _cause(
        self, worker: WorkerLink, work_item: WorkItem, when: str
    ) -> Callable[[int], BaseException]:
        was_killed = worker.exit is not None and worker.exit[1] == signal.SIGKILL
        starved = was_killed and worker.kill_reason is None and self._kills.claim()
        return _cause(worker, work_item, when, starved=starved)


def _cause(
    worker: WorkerLink, work_item: WorkItem, when: str, *, starved: bool
) -> Callable[[int], BaseException]:
    """A function that gives the error of the item at a position of the chunk.

    ``starved`` says that the kernel had no memory left.
    """
    call, chunk, kill_reason = work_item.call, work_item.chunk, worker.kill_reason
    pid, number, exitcode = worker.exit or (worker.pid, None, None)
    if exitcode is not None and exitcode < 0:
        when = f"for the system forked none: {os.strerror(-exitcode)} (see `ulimit -u`)"
        pid = exitcode = None
    crash = worker.status_page.crash()

    def error_at(position: int) -> BaseException:
        index, item = chunk.first + position, chunk.items[position]
        if kill_reason is not None and kill_reason.cause == "timeout":
            return TaskTimeoutError(call.task, index, item, call.timeout, pid)
        if kill_reason is not None and kill_reason.cause == "memory":
            return recycling.too_large(worker, work_item, position, kill_reason.reached)
        error = WorkerDiedError(call.task, index, item, pid, number, exitcode, when, starved)
        written_advice(error, call.leases.readonly)
        if crash:
            error.__cause__ = RemoteTraceback(crash)
        return error

    return error_at
