"""Checks that are due from time to time while chunks are in flight.

They request results, take work back from busy workers, enforce limits of time and memory, and kill
workers that do not end a given-up chunk.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sharedtask.backends.worker.status_page import Phase, Word

from . import clocks

if TYPE_CHECKING:
    from .connections import WorkerLink
    from .scheduler import Scheduler
    from .watchdog import Watchdog
    from .work_items import WorkItem
    from .worker_table import WorkerTable

# Time that a given-up chunk has to finish its item before its worker is killed.
GRACE_SECONDS = 0.4
# Results are fetched at least this often, so that progress is smooth even in large chunks.
FLUSH_SECONDS = 0.02
# Interval of the check of workers' memory while an item runs, if it is limited.
_MEMORY_SECONDS = 0.05


class Checks:
    """Looks after the workers of a pool, whose lock is held around all methods."""

    def __init__(
        self, table: WorkerTable, scheduler: Scheduler[WorkerLink], watchdog: Watchdog
    ) -> None:
        self._table, self._scheduler, self._watchdog = table, scheduler, watchdog
        self._workers = table.workers
        self.flush_requested = 0.0  # when results were requested last
        self._memory_checked = 0.0

    def seconds_left(self, now: float) -> float:
        """Seconds until the next check is due; infinite if there is none."""
        found = math.inf
        for worker in self._workers.values():
            if worker.work_items:
                found = min(found, FLUSH_SECONDS)
                if clocks.is_timed(worker):
                    found = min(found, clocks.time_left(worker))
            if worker.stop_reason is not None:
                found = min(found, worker.stop_reason.until - now)
        for work_item in self._scheduler.given_up:
            if work_item.kill_at:
                found = min(found, work_item.kill_at - now)
        if self._table.leaving:
            found = min(found, self._table.leaving[0].leave_by - now)
        return found

    def request_flushes(self, now: float) -> None:
        """Request results of all workers, and take work back from those with a long chunk."""
        self.flush_requested = now
        for worker in list(self._workers.values()):
            worker.request_flush()
            self._scheduler.rebalance(worker)

    def enforce_limits(self, now: float) -> None:
        """Stop workers whose item exceeds a limit, and kill those that do not end."""
        if now - self._memory_checked > _MEMORY_SECONDS:
            self._memory_checked = now
            for worker in self._workers.values():
                self._watchdog.check_memory(worker, now)
        for worker in list(self._workers.values()):
            if not worker.work_items and worker.stop_reason is None:
                continue
            if self._watchdog.has_waited(worker, now):
                self.on_stopped(worker)
            else:
                self._watchdog.check_time(worker, now)
        if self._table.leaving:
            self._table.kill_overdue(now)
        if self._scheduler.given_up:
            for worker, work_item in self._scheduler.overdue(now):
                self._end_given_up(worker, work_item, now)

    def on_stopped(self, worker: WorkerLink) -> None:
        """A worker has stopped: kill it, or continue it and give it more chunks."""
        if self._watchdog.confirm(worker):
            self._scheduler.refill(worker)

    def kill_chunk(self, worker: WorkerLink, work_item: WorkItem, now: float) -> None:
        """Kill a worker, unless it is past this chunk when it has stopped."""
        self._watchdog.stop(worker, "cancel", work_item.number, None, now)

    def _end_given_up(self, worker: WorkerLink, work_item: WorkItem, now: float) -> None:
        """The grace time of a given-up chunk is over and its worker has not finished the item."""
        if worker.in_hand() == work_item.number:
            work_item.kill_at = None
            self._watchdog.stop(worker, "cancel", work_item.number, None, now)
            return
        work_item.kill_at = now + GRACE_SECONDS
        if worker.work_items[0] is work_item and worker.status_page.words[Word.PHASE] == Phase.IDLE:
            # It did not get the chunk: an interrupt came between recording and sending it. Or it
            # gets it only now, on a busy machine, and the next call's after it: so stop it first.
            self._watchdog.stop(worker, "cancel", worker.in_hand(), None, now)
