"""The pool: the door to the worker processes, for all calls of this process.

        caller's threads                     the loop                           workers
    dispatch(work_item) --CHUNK frame------------------------------------------->  run
          |  no worker free                                                      |
          v                                                                      |
        queue  <--- a worker has room ---  receive  <------RESULTS frames--------+
                                              |
                             sink.report() of the call   (decoded by the waiting thread)

A caller's thread writes straight into the socket of a free worker. The thread that runs the loop
(``event_loop.py``) reads all sockets (``events.py``), and runs the checks that are due
(``checks.py``). Which worker gets which chunk is decided by ``scheduler.py``, and carried out by
``worker_table.py``. One lock guards the tables of all of them; nothing blocks under it.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from sharedtask.backends.call_logs import strays
from sharedtask.errors import ClosedError, SharedTaskError
from sharedtask.system import critical_sections, interrupts

from . import log_reading, reasons
from .checks import FLUSH_SECONDS, GRACE_SECONDS, Checks
from .due import Due
from .event_loop import Loop
from .events import SocketEvents, deliver
from .scheduler import Scheduler
from .watchdog import Watchdog
from .worker_table import WorkerTable

if TYPE_CHECKING:
    from collections.abc import Callable
    from queue import SimpleQueue

    from sharedtask.backends.call_logs import CallLogs

    from .work_items import OpenCall, WorkItem

# A killed worker ends its chunk within milliseconds; the caller waits no longer than this for that.
_KILL_SECONDS = 0.5
# Interval of the search for values that only the cache refers to.
_SWEEP_SECONDS = 1.0


class Pool:
    """Worker processes, shared by all tasks and threads of this process."""

    def __init__(self, sweep: Callable[[], bool]) -> None:
        self._sweep = sweep
        self._swept = 0.0
        self._sweeps = False
        self._lock = critical_sections.table_lock()
        self._to_cancel: deque[OpenCall] = deque()
        # Logs of calls that ended before all was handled.
        self.left_logs: deque[CallLogs] = deque()
        self._generation = 0
        # An exception that came in the middle of a change: the tables may be wrong since then.
        self.damage = ""
        self._silent = False
        self._loop = Loop(self)
        self.attend = self._loop.attend
        self._due = Due(self._loop.turn_soon)
        self.soon = self._due.add
        self._table = WorkerTable(self._lock, self._loop)
        self._workers = self._table.workers
        self._scheduler = Scheduler(self._table)
        self._checks = Checks(self._table, self._scheduler, Watchdog(self._table.signal))
        self._events = self._table.events = SocketEvents(
            self._lock, self._loop, self._table, self._scheduler, self._checks
        )

    # ------------------------------------------------------------------- the callers' side

    def dispatch(self, work_item: WorkItem) -> None:
        """Give a chunk to a worker that has room, or queue it."""
        if self._lock._is_owned():
            raise SharedTaskError(reasons.INSIDE)
        with interrupts.shield(), self._lock:
            closed = self._table.closed
            try:
                if not closed:
                    self._scheduler.add(work_item)
            except BaseException as error:
                if getattr(error, "errno", None) is None:  # else no worker could be started
                    self.damage = type(error).__name__
                raise
        if closed:
            self._refuse()

    def renew(self, generation: int) -> None:
        """Replace workers that may have imported modules for an earlier generation."""
        if generation == self._generation:
            return
        with interrupts.shield(), self._lock:
            self._generation = generation
            self._table.dismiss_all()

    def _refuse(self) -> None:
        # At exit the interpreter stops daemon threads here; the main thread runs handlers then.
        if self._silent and threading.current_thread() is not threading.main_thread():
            threading.Event().wait()
        raise ClosedError(self._table.closed)

    def wait(self, reports: SimpleQueue[Any], until: float | None, *, leaves: bool) -> Any:
        """See ``Loop.wait``."""
        if self._silent:  # no result will come: at exit calls end without an error
            self._refuse()
        return self._loop.wait(reports, until, leaves=leaves)

    def give_up(self, call: OpenCall) -> None:
        """Give up all chunks of a call soon: this may run in a finalizer, so it takes no lock."""
        self._to_cancel.append(call)
        if self._table.closed:
            self._release_given_up()
        self.wake()

    def kill(self, call: OpenCall) -> None:
        """Kill the running chunks of a call and wait for their end, for milliseconds usually."""
        call.killed = queue.SimpleQueue()
        call.closed = True
        if not call.pending or self._table.closed:
            return
        self.give_up(call)
        with contextlib.suppress(SharedTaskError):  # this thread must not wait here
            self.wait(call.killed, time.monotonic() + _KILL_SECONDS, leaves=True)

    def withdraw(self, call: OpenCall, number: int) -> int:
        """See ``Session.withdraw``."""
        with interrupts.shield(), self._lock:
            return self._scheduler.withdraw(call, number)

    def kill_chunk(self, call: OpenCall, number: int) -> None:
        """See ``Session.kill_chunk``."""
        with interrupts.shield(), self._lock:
            held = self._scheduler.held(call, number)
            if held is not None:
                self._checks.kill_chunk(*held, time.monotonic())
        self.wake()

    def wake(self) -> None:
        """Wake the loop. Takes no lock: finalizers call it."""
        self._swept = 0.0
        self._loop.wake()

    def close(self, *, silent: bool = False) -> None:
        """End all workers; running calls get ClosedError, or block until exit if ``silent``."""
        self._silent = silent
        self._end(reasons.CLOSED, self._loop.stop, orderly=True)

    def is_whole(self) -> bool:
        """Check the pool's descriptors; if the program closed them, close the pool.

        The workers then see the end of the socket, and exit. The loss of a single worker's
        connection is detected when it is used.
        """
        if self.damage:
            self.wake()  # its I/O thread ends it: there may be too little stack left here
            return False
        with self._lock:
            link = self._table.forkserver
            whole = self._loop.is_whole() and (link is None or link.sock.is_open())
        if not whole:
            self._lose()
        return whole

    def _lose(self, reason: str = reasons.LOST) -> None:
        self._end(reason, self._loop.leave)  # this thread may run the loop: do not wait for it

    def _end(self, reason: str, stop: Callable[[], None], *, orderly: bool = False) -> None:
        critical_sections.reserve_stack()
        with self._lock:
            if self._table.closed:
                return
            self._table.closed = reason
            reports = [
                (work_item.call, work_item.all_failed(lambda _: ClosedError(reason)))
                for work_item in self._scheduler.drop_all()
                if not work_item.call.closed
            ]
            link, workers = self._table.remove_all()
        if not self._silent:
            deliver(reports)
        stop()
        if link is not None:
            link.end(workers if orderly else None)
        for worker in workers:
            self._events.show(worker.drain() if orderly else ())
            log_reading.collect(worker)
            worker.close()
        self._table.close()
        self._loop.close()
        self._release_given_up()
        if not self._silent:
            self._due.end()
        if orderly:
            for logs in (*self.left_logs, strays):
                logs.finish_contained()

    def _release_given_up(self) -> None:
        """Once the pool has ended, a call that is given up has no chunk anywhere.

        Its own count may say otherwise, if an exception interrupted a change of it.
        """
        while (call := critical_sections.first_of(self._to_cancel)) is not None:
            call.users.clear()
            call.release()

    def abandon(self) -> None:
        """In a forked child: drop the parent's pool without sending to it."""
        self._table.closed = reasons.CLOSED
        self._table.abandon()
        self._loop.close()

    # ------------------------------------------------------------------------ the loop's side

    def is_busy(self) -> bool:
        """Whether work is in flight."""
        with self._lock:
            scheduler, leaving = self._scheduler, self._table.leaving
            if scheduler.queue.teams or scheduler.given_up or self._to_cancel or leaving:
                return True
            if self._due:
                return True
            for worker in self._workers.values():  # noqa: SIM110  asked often: 4 calls less
                if worker.work_items or worker.ended:
                    return True
            return False

    def rest_seconds(self) -> float | None:
        """How long the loop may sleep with nothing in flight."""
        return _SWEEP_SECONDS if self._sweeps else None

    def timeout(self) -> float:
        """Seconds until the next check is due; infinite if there is none."""
        now = time.monotonic()
        with self._lock:
            return min(self._checks.seconds_left(now), self._due.seconds_left(now))

    def tick(self) -> None:
        """Run the checks that are due: cancellations and expired time limits."""
        if self.damage:
            self._lose(reasons.DAMAGED.format(self.damage))
            return
        while self.left_logs and (logs := critical_sections.first_of(self.left_logs)) is not None:
            logs.finish_behind()
        while self._to_cancel and (call := critical_sections.first_of(self._to_cancel)) is not None:
            self._cancel(call)
        now = time.monotonic()
        if now - self._checks.flush_requested > FLUSH_SECONDS:
            with self._lock:
                lost = not all(worker.sock.is_open() for worker in self._workers.values())
            if lost or not self.is_whole():
                self._lose()
            with self._lock:
                self._checks.request_flushes(now)
            self._events.collect_logs()
        with self._lock:
            self._checks.enforce_limits(now)
        self._due.call()

    def _cancel(self, call: OpenCall) -> None:
        """Drop queued chunks at once; running ones may finish their item within the grace time."""
        grace = GRACE_SECONDS if call.killed is None else 0.0
        with self._lock:
            if call.pending:
                self._scheduler.cancel(call, time.monotonic() + grace)
            else:
                call.release()

    def clean_up(self) -> None:
        """Release values that only the cache refers to."""
        now = time.monotonic()
        if now - self._swept > _SWEEP_SECONDS:
            self._swept = now
            self._sweeps = self._sweep()
