"""What the tasks of a call have logged, until a thread that may run user code handles it.

    worker -> (the loop, which runs no user code) -> put -> open of a delivery -> handlers

Handlers, filters and ``warnings.showwarning`` are the user's: they run in the thread that waits for
the results, or where none waits in a background thread, one record at a time, in the order in which
each worker has logged them. A result is passed on when what was logged before it has been handled.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections import deque
from typing import TYPE_CHECKING

from sharedtask.backends.worker import log_records
from sharedtask.outcomes import Batch, Report
from sharedtask.system import background, critical_sections, forks, interrupts

if TYPE_CHECKING:
    from .base import Chunk

# While so many records of a call wait to be handled, those of its running items stay in the memory
# of workers; a result brings all of its own. Of many times as many the rest is dropped.
MOST, _TIMES = 10_000, 10
# A result waits so long for a handler that is at work in another thread: that one may itself wait
# for results.
_WAIT_SECONDS, _LOOK_SECONDS = 0.25, 0.001

_log = logging.getLogger("sharedtask")


class CallLogs:
    """The records of one call that were received and not handled yet."""

    def __init__(self, name: str) -> None:
        """``name`` is that of the call in messages."""
        self._name = name
        self._waiting: deque[bytes] = deque()
        self._lock = critical_sections.object_lock()
        self._began = 0.0  # when the record that is being handled was begun
        self._handles = False
        self.dropped = 0

    @property
    def pending(self) -> bool:
        """Whether a record has not been handled yet, to its end."""
        return bool(self._waiting) or self._handles

    def put(self, data: bytes) -> None:
        """Add a record; any thread may do it."""
        if len(self._waiting) >= MOST * _TIMES:
            self.dropped += 1
            return
        self._waiting.append(data)

    @property
    def is_full(self) -> bool:
        """Whether enough records wait."""
        return len(self._waiting) >= MOST

    def handle(self) -> None:
        """Handle all that has come; returns at once where this thread is within a handler."""
        if not self.pending or self._lock._is_owned():
            return
        if not self._acquired():
            return
        self._handles = True
        try:
            while (data := critical_sections.first_of(self._waiting)) is not None:
                self._began = time.monotonic()
                fields = log_records.fields_of(data)
                if fields is None:
                    self.dropped += 1
                else:
                    interrupts.exposed(log_records.handle, *fields)
        finally:
            self._handles = False
            self._lock.release()

    def _acquired(self) -> bool:
        self._began = self._began or time.monotonic()
        while not self._lock.acquire(blocking=False):
            if time.monotonic() > self._began + _WAIT_SECONDS:
                return False
            interrupts.exposed(time.sleep, _LOOK_SECONDS)
        return True

    def finish(self) -> None:
        """Handle what is left, and tell how much was dropped, once."""
        self.handle()
        dropped, self.dropped = self.dropped, 0
        if dropped:
            interrupts.exposed(_log.warning, _DROPPED, self._name, dropped)

    @property
    def is_open(self) -> bool:
        """Whether there is something left to handle or to tell."""
        return self.pending or bool(self.dropped)

    def finish_behind(self) -> None:
        """``finish`` in a background thread: for a thread that must not run user code."""
        background.put(self.finish_contained)

    def finish_contained(self) -> None:
        """``finish`` where no call could raise what a handler raises: that is printed."""
        while True:
            try:
                self.finish()
            except BaseException:  # noqa: BLE001  the user's
                traceback.print_exc()
            else:
                return

    def abandon(self) -> None:
        """In a forked child: the records are the parent's."""
        self._waiting.clear()
        self._handles, self.dropped = False, 0

    def report(self, chunk: Chunk) -> Report:
        """A report that wakes the thread that waits for results of this chunk."""
        return Report(chunk.number, _Logged(self, chunk.first), 0, finished=False)


_DROPPED = (
    "%s: %d log records and warnings of its tasks were dropped: they came faster than the"
    " handlers of this process take them. Log less, or raise the level."
)


class _Logged:
    """A delivery of records alone."""

    is_plain = False

    def __init__(self, logs: CallLogs, first: int) -> None:
        self._logs, self._first = logs, first

    def open(self) -> Batch:
        """Handle the records."""
        self._logs.handle()
        return Batch(self._first, [])

    def discard(self) -> None:
        """Nothing is lost: another thread handles them."""
        if self._logs.pending:
            self._logs.finish_behind()


strays = CallLogs("a call that is over")
"""What came when its call was over, or that a thread of a task has logged between two chunks."""
forks.abandon_in_child(strays, forks.Step.OUTCOMES)
