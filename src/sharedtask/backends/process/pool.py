"""The pool: which worker has which chunk, and what happens when a worker ends.

        caller's threads                     the loop                           workers
    dispatch(ticket) --CHUNK frame------------------------------------------->  run
          |  no worker free                                                      |
          v                                                                      |
        queue  <--- a worker has room ---  receive  <------RESULTS frames--------+
                                              |
                             sink.report() of the call   (decoded by the waiting thread)

A caller's thread writes straight into the socket of a free worker. The thread that runs the loop
(``event_loop.py``) reads all sockets, hands out what is queued, stops what runs too long
(``watchdog.py``), and reaps the dead (``worker_death.py``). One lock guards the tables; nothing
blocks under it. A death is an ordinary event: finished results are on the worker's status page or
in the socket, the current item gets the error, and items not begun are begun elsewhere.
"""

from __future__ import annotations

import contextlib
import itertools
import marshal
import math
import queue
import selectors
import signal
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from sharedtask.errors import ClosedError, SharedTaskError
from sharedtask.outcomes import Change, Report
from sharedtask.serialization import functions
from sharedtask.system import background, critical_sections, interrupts
from sharedtask.worker import result_format
from sharedtask.worker.status_page import Phase, Word, fence

from . import attaching, clocks, forkserver, recycling, stdio, work_items
from .connections import StarterLink, WorkerLink
from .event_loop import INSIDE, Loop
from .received import SentResults
from .tracker import Tracker
from .watchdog import Court
from .wire import Frame, Kind, close_all
from .worker_death import Deaths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from queue import SimpleQueue

    from sharedtask.store.publication import Publication

    from .work_items import OpenCall, Ticket

# A second chunk waits in a worker's socket if its chunks take less than this: then the round trip
# to the caller counts. Longer ones wait in the queue for the first worker that is free.
_PREFETCH_BELOW_SECONDS = 0.01
# How many of the queued chunks are checked for that: there may be thousands of submits.
_LOOKED_AT = 32
# Time that a given-up chunk has to finish its item before its worker is killed.
_GRACE_SECONDS = 0.4
# A killed worker ends its chunk within milliseconds; the caller waits no longer than this for that.
_KILL_SECONDS = 0.5
# Results are fetched at least this often, so that progress is smooth even in large chunks.
_HURRY_SECONDS = 0.02
# Interval of the search for values that only the cache refers to.
_SWEEP_SECONDS = 1.0
# Interval of the check of workers' memory while an item runs, if it is limited.
_WEIGH_SECONDS = 0.05
# A worker ends at once when asked to, unless a thread of the task keeps it alive.
_LEAVE_SECONDS = 1.0

_CLOSED = (
    "the pool was shut down while this call was running. Call again: a new pool starts by itself."
)

_LOST = (
    "the program has closed file descriptors that it did not open, and with them the connections to"
    " the workers that this call had. Call again: a new pool starts by itself."
)

_DAMAGED = (
    "an exception ({}) came while the library changed its table of workers, so the pool was ended."
    " Call again: a new pool starts by itself."
)


class Pool:
    """Worker processes, shared by all tasks and threads of this process."""

    def __init__(self, sweep: Callable[[], bool]) -> None:
        self._sweep = sweep
        self._lock = critical_sections.table_lock()
        self._workers: dict[int, WorkerLink] = {}
        self._queue: deque[Ticket] = deque()
        self._given_up: list[Ticket] = []
        self._to_cancel: deque[OpenCall] = deque()
        self._leaving: list[WorkerLink] = []  # workers that were asked to end
        self._serial = self._generation = 0
        self._starter: StarterLink | None = None
        self._closed = ""  # or the reason
        # An exception that came in the middle of a change: the tables may be wrong since then.
        self.damage = ""
        self._silent = False
        self._swept = self._hurried = self._weighed = 0.0
        self._sweeps = False
        self._prints = stdio.Prints()
        self._deaths = Deaths()
        self._court = Court(self._signal)
        self._loop = Loop(self)
        self._tracker = Tracker(self._loop.watch, self._loop.unwatch)

    # ------------------------------------------------------------------- the callers' side

    def dispatch(self, ticket: Ticket) -> None:
        """Give a chunk to a worker that has room, or queue it."""
        if self._lock._is_owned():
            raise SharedTaskError(INSIDE)
        with interrupts.shield(), self._lock:
            closed = self._closed
            try:
                if not closed:
                    self._place(ticket)
            except BaseException as error:
                if getattr(error, "errno", None) is None:  # else no worker could be started
                    self.damage = type(error).__name__
                raise
        if closed:
            self._refuse()

    def _place(self, ticket: Ticket) -> None:
        worker = self._choose(ticket.call)
        ticket.call.pending += 1
        if worker is None:
            self._queue.append(ticket)
        else:
            self._send(worker, ticket)

    def renew(self, generation: int) -> None:
        """Replace workers that may have imported modules for an earlier generation."""
        if generation == self._generation:
            return
        with interrupts.shield(), self._lock:
            self._generation = generation
            for worker in self._workers.values():
                self._dismiss(worker)

    def attend(self, *, at_once: bool = False) -> None:
        """See ``Loop.attend``."""
        self._loop.attend(at_once=at_once)

    def hand_over(self) -> None:
        """Leave work in flight to the I/O thread."""
        if self.is_busy():
            self._loop.attend()

    def _refuse(self) -> None:
        # At exit the interpreter stops daemon threads here; the main thread runs handlers then.
        if self._silent and threading.current_thread() is not threading.main_thread():
            threading.Event().wait()
        raise ClosedError(self._closed)

    def wait(self, reports: SimpleQueue[Any], until: float | None, *, leaves: bool) -> Any:
        """See ``Loop.wait``."""
        if self._silent:  # no result will come: at exit calls end without an error
            self._refuse()
        return self._loop.wait(reports, until, leaves=leaves)

    def give_up(self, call: OpenCall) -> None:
        """Give up all chunks of a call soon: this may run in a finalizer, so it takes no lock."""
        self._to_cancel.append(call)
        if self._closed:
            self._release_given_up()
        self.wake()

    def kill(self, call: OpenCall) -> None:
        """Kill the running chunks of a call and wait for their end, for milliseconds usually."""
        call.killed = queue.SimpleQueue()
        call.closed = True
        if not call.pending or self._closed:
            return
        self.give_up(call)
        with contextlib.suppress(SharedTaskError):  # this thread must not wait here
            self.wait(call.killed, time.monotonic() + _KILL_SECONDS, leaves=True)

    def _cancel(self, call: OpenCall) -> None:
        """Drop queued chunks at once; running ones may finish their item within the grace time."""
        grace = _GRACE_SECONDS if call.killed is None else 0.0
        with self._lock:
            if not call.pending:
                call.release()
                return
            mine = [ticket for ticket in self._queue if ticket.call is call]
            for ticket in mine:
                self._queue.remove(ticket)
                self._done(ticket)
            for worker in self._workers.values():
                for ticket in worker.tickets:
                    if ticket.call is call and not ticket.cancelled:
                        ticket.cancelled = True
                        ticket.kill_at = time.monotonic() + grace
                        worker.cancel(ticket)
                        self._given_up.append(ticket)

    def drop(self, token: int) -> None:
        """Ask the workers to forget a published value."""
        with interrupts.shield(), self._lock:
            for worker in self._workers.values():
                if worker.tokens.pop(token, None) is not None:
                    self._write(worker, Frame(Kind.DROP, chunk=token))

    def wake(self) -> None:
        """Wake the loop. Takes no lock: finalizers call it."""
        self._swept = 0.0
        self._loop.wake()

    def close(self, *, silent: bool = False) -> None:
        """End all workers; running calls get ClosedError, or block until exit if ``silent``."""
        self._silent = silent
        self._end(_CLOSED, self._loop.stop, orderly=True)

    def is_whole(self) -> bool:
        """Check the pool's descriptors; if the program closed them, close the pool.

        The workers then see the end of the socket, and exit. The loss of a single worker's
        connection is detected when it is used.
        """
        if self.damage:
            self.wake()  # its I/O thread ends it: there may be too little stack left here
            return False
        with self._lock:
            link = self._starter
            whole = self._loop.is_whole() and (link is None or link.sock.is_open())
        if not whole:
            self._lose()
        return whole

    def _lose(self, reason: str = _LOST) -> None:
        self._end(reason, self._loop.leave)  # this thread may run the loop: do not wait for it

    def _end(self, reason: str, stop: Callable[[], None], *, orderly: bool = False) -> None:
        critical_sections.reserve_stack()
        with self._lock:
            if self._closed:
                return
            self._closed = reason
            reports = self._fail_everything()
            link, self._starter = self._starter, None
            workers = list(self._workers.values())
            self._workers.clear()
        if not self._silent:
            self._deliver(reports)
        stop()
        if link is not None and orderly:
            link.dismiss(workers)
        if link is not None:
            link.end()
        for worker in workers:
            self._show(worker.drain() if orderly else ())
            worker.close()
        self._tracker.close()
        self._loop.close()
        self._release_given_up()

    def abandon(self) -> None:
        """In a forked child: drop the parent's pool without sending to it."""
        self._closed = _CLOSED
        for worker in self._workers.values():
            worker.close()
        if self._starter is not None:
            self._starter.abandon()
        self._tracker.close()
        self._loop.close()

    def _release_given_up(self) -> None:
        """Once the pool has ended, a call that is given up has no chunk anywhere.

        Its own count may say otherwise, if an exception interrupted a change of it.
        """
        while self._to_cancel:
            call = self._to_cancel.popleft()
            call.users.clear()
            call.release()

    def _fail_everything(self) -> list[Any]:
        reports = []
        waiting = [*self._queue, *(t for w in self._workers.values() for t in w.tickets)]
        for ticket in waiting:
            if not ticket.call.closed:
                failed = ticket.all_failed(lambda _: ClosedError(self._closed))
                reports.append((ticket.call, failed))
            ticket.call.users.clear()
            self._done(ticket)
        self._queue.clear()
        return reports

    # ------------------------------------------------------------------------- scheduling

    def _choose(self, call: OpenCall) -> WorkerLink | None:
        """The worker for the next chunk of ``call``: an idle one, a new one, one with room."""
        idle: list[WorkerLink] = []
        for worker in self._workers.values():
            if not worker.tickets and self._suits(worker, call):
                if worker.tokens.keys() >= call.tokens:  # most calls find one that has all
                    return worker
                idle.append(worker)
        if idle:
            return max(idle, key=lambda worker: len(worker.tokens.keys() & call.tokens))
        if len(call.users) < call.limit and self._has_place(call):
            return self._spawn(call)
        if _is_quick(call):
            workers = self._workers.values()
            return next((w for w in workers if len(w.tickets) == 1 and self._suits(w, call)), None)
        return None

    def _has_place(self, call: OpenCall) -> bool:
        """Whether one more worker may start; a worker that has run its items is dismissed."""
        staying = [worker for worker in self._workers.values() if not worker.leaving]
        if len(staying) < call.limit:
            return True
        worn = (w for w in staying if not w.tickets and not recycling.suits(w, call))
        worker = next(worn, None)
        if worker is not None:
            self._dismiss(worker)
        return worker is not None

    def _dismiss(self, worker: WorkerLink) -> None:
        """Ask a worker to end when it has run its chunks."""
        worker.leaving = True
        if not worker.tickets:
            worker.leave_by = time.monotonic() + _LEAVE_SECONDS
            self._leaving.append(worker)
            self._write(worker, Frame(Kind.STOP))

    def _suits(self, worker: WorkerLink, call: OpenCall) -> bool:
        """Whether a worker may take a chunk: no call uses more workers than it asked for."""
        if worker.ended or worker.verdict is not None or worker.suspicion is not None:
            return False
        if worker.leaving or (call.limits is not None and not recycling.suits(worker, call)):
            return False
        return len(call.users) < call.limit or worker.serial in call.users

    def _spawn(self, call: OpenCall) -> WorkerLink:
        critical_sections.reserve_stack()
        if self._starter is None:
            self._starter = StarterLink(*_needed_by(call.function))
            self._loop.register(self._starter, self._on_starter)
        self._serial += 1
        worker = self._starter.spawn(self._serial, self._tracker.descriptor())
        self._workers[worker.serial] = worker
        self._loop.register(worker, lambda mask: self._on_worker(worker, mask))
        self._loop.want_write(self._starter)
        return worker

    def _send(self, worker: WorkerLink, ticket: Ticket) -> None:
        call = ticket.call
        if not call.sink.begun(ticket.chunk.number):
            call.closed = True
            self._done(ticket)
            return
        for publication, private in call.needs:
            if worker.tokens.get(publication.token, -1) < private:
                self._attach(worker, publication, private=private)
        ticket.slot = worker.free_slot()
        if call.limits is not None:
            cuts = call.places is None or not call.places.ordered
            ticket.allowance = recycling.allowance(worker, call.limits, cuts=cuts)
        worker.prepare(ticket.slot)
        worker.tickets.append(ticket)
        call.enter(worker.serial, ticket)
        self._write(worker, ticket.frame())

    def _attach(self, worker: WorkerLink, publication: Publication, *, private: bool) -> None:
        worker.tokens[publication.token] = private
        publication.tell_on_release(self.drop)
        self._write(worker, attaching.frame_of(publication, private=private))

    def _write(self, worker: WorkerLink, frame: Frame) -> None:
        if not worker.writer.send(frame):
            self._loop.want_write(worker)

    def _refill(self, worker: WorkerLink) -> None:
        """Give queued chunks to a worker that has room."""
        while (ticket := self._next_for(worker)) is not None:
            self._queue.remove(ticket)
            self._send(worker, ticket)
        idle = self._queue and not worker.tickets
        if idle and any(not recycling.suits(worker, ticket.call) for ticket in self._queue):
            self._spread()  # its end leaves room for one that may run these

    def _next_for(self, worker: WorkerLink) -> Ticket | None:
        """The next work item for a worker with room; to prefetch, one of the first in the queue."""
        if len(worker.tickets) >= 2:
            return None
        for ticket in itertools.islice(self._queue, _LOOKED_AT if worker.tickets else None):
            if (not worker.tickets or _is_quick(ticket.call)) and self._suits(worker, ticket.call):
                return ticket
        return None

    def _done(self, ticket: Ticket, worker: WorkerLink | None = None) -> None:
        """A chunk is over, finished or not."""
        call = ticket.call
        if worker is not None:
            worker.tickets.remove(ticket)
            call.leave(worker.serial, ticket)
        ticket.parcel.close()
        call.pending -= 1
        if call.closed and not call.pending:
            call.release()

    # ------------------------------------------------------------------------ the loop's side

    def is_busy(self) -> bool:
        """Whether work is in flight."""
        with self._lock:
            if self._queue or self._given_up or self._to_cancel or self._leaving:
                return True
            for worker in self._workers.values():  # noqa: SIM110  asked often: 4 calls less
                if worker.tickets or worker.ended:
                    return True
            return False

    def rest_seconds(self) -> float | None:
        """How long the loop may sleep with nothing in flight."""
        return _SWEEP_SECONDS if self._sweeps else None

    def patience(self) -> float:
        """Seconds until the next check is due; infinite if there is none."""
        found = math.inf
        with self._lock:
            now = time.monotonic()
            for worker in self._workers.values():
                if worker.tickets:
                    found = min(found, _HURRY_SECONDS)
                    if clocks.is_timed(worker):
                        found = min(found, clocks.time_left(worker))
                if worker.suspicion is not None:
                    found = min(found, worker.suspicion.until - now)
            for ticket in self._given_up:
                if ticket.kill_at:
                    found = min(found, ticket.kill_at - now)
            if self._leaving:
                found = min(found, self._leaving[0].leave_by - now)
        return found

    def _on_starter(self, mask: int) -> None:
        link = self._starter
        if link is None:
            return
        with self._lock:
            if mask & selectors.EVENT_WRITE:
                link.writer.flush()
            frames = link.receive()
            self._loop.want_write(link)
        for frame in frames:
            self._on_starter_frame(frame)
        if link.ended:
            self._on_starter_end(link)

    def _on_starter_frame(self, frame: Frame) -> None:
        with self._lock:
            worker = self._workers.get(frame.chunk)
            if worker is None:
                return
            if frame.kind == Kind.SPAWNED:
                worker.pid = frame.first
            elif frame.kind == Kind.STOPPED:
                self._judge(worker)
        if frame.kind == Kind.EXITED:
            worker.exit = forkserver.exit_status(frame.body)
            self._bury(worker)

    def _on_starter_end(self, link: StarterLink) -> None:
        """The forkserver was killed, and the kernel kills its workers; start another on demand."""
        with self._lock:
            if self._starter is not link:
                return
            self._starter = None
            self._loop.unregister(link)
            link.end()
            workers = list(self._workers.values())
        for worker in workers:
            worker.exit = worker.exit or (worker.pid, None, None)
            self._bury(worker)

    def _on_worker(self, worker: WorkerLink, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            with self._lock:
                worker.writer.flush()
                self._loop.want_write(worker)
        if mask & selectors.EVENT_READ:
            self._take(worker, worker.receive())
        if worker.ended:
            self._on_worker_end(worker)

    def _on_worker_end(self, worker: WorkerLink) -> None:
        """Its socket ended. The forkserver reports how it died; if it is alive, kill it."""
        with self._lock:
            self._loop.unregister(worker)
            if worker.serial in self._workers:
                self._kill(worker)

    def _take(self, worker: WorkerLink, frames: list[Frame]) -> None:
        for frame in frames:
            if frame.kind == Kind.OUTPUT:
                self._prints.show(frame)
            elif frame.kind == Kind.RESULTS:
                self._deliver(self._on_results(worker, frame))
            elif frame.kind == Kind.FAILED:
                self._resend_each(worker, frame.chunk)
            elif frame.kind == Kind.CHANGED:
                self._deliver(self._on_change(worker, frame))

    def _on_change(self, worker: WorkerLink, frame: Frame) -> list[Any]:
        with self._lock:
            ticket = _find(worker, frame.chunk)
            if ticket is None or ticket.call.closed or ticket.cancelled:
                return []
        return [(ticket.call, ticket.changed(Change(*marshal.loads(frame.body))))]

    def _on_results(self, worker: WorkerLink, frame: Frame) -> list[Any]:
        with self._lock:
            ticket = _find(worker, frame.chunk)
            if ticket is None:
                return []
            mode = frame.body[0] & ~result_format.FINISHED
            finished = bool(frame.body[0] & result_format.FINISHED)
            ticket.received = frame.first + frame.items
            call = ticket.call
            if finished:
                if not ticket.received and recycling.says_so(worker, ticket):
                    return self._not_begun(worker, ticket)
                self._deaths.note_life(call)
                call.note(frame.elapsed / 1e9)
                if call.places is not None:
                    call.places.note(worker.serial, ticket)
                worker.ran += ticket.received
                self._end_chunk(worker, ticket)
            if call.closed or ticket.cancelled:
                close_all(frame.fds)
                return []
        first = ticket.chunk.first + frame.first
        results_of = SentResults(mode, frame, first, call.task, self._prints)
        seconds = frame.elapsed / 1e9
        report = Report(ticket.chunk.number, results_of, frame.items, finished, seconds)
        return [(call, report)]

    def _end_chunk(self, worker: WorkerLink, ticket: Ticket) -> None:
        """A worker has finished a chunk: give it another one or dismiss it."""
        self._done(ticket, worker)
        if ticket.cancelled:
            self._forget_given_up(ticket)
        is_worn = ticket.call.limits is not None and recycling.is_worn(worker, ticket)
        if worker.leaving or is_worn:
            self._dismiss(worker)
            self._spread()
        else:
            self._refill(worker)

    def _not_begun(self, worker: WorkerLink, ticket: Ticket) -> list[Any]:
        """A worker had too much memory before the first item of a chunk.

        Another worker gets the chunk, unless this one has run no item yet.
        """
        reports = []
        if not worker.ran and not ticket.cancelled:
            has = worker.board.words[Word.BEFORE]
            failed = ticket.all_failed(lambda at: recycling.too_large(worker, ticket, at, has))
            reports.append((ticket.call, failed))
        elif not ticket.cancelled:
            ticket.call.pending += 1
            self._queue.appendleft(ticket.again())
        self._end_chunk(worker, ticket)
        return reports

    def _resend_each(self, worker: WorkerLink, number: int) -> None:
        """A chunk could not be unpickled as a whole: resend it item by item to name the bad one."""
        with self._lock:
            ticket = _find(worker, number)
            if ticket is None:
                return
            if not ticket.cancelled:
                ticket.call.pending += 1
                background.put(lambda: self._encode_again(ticket))
            self._end_chunk(worker, ticket)

    def _show(self, frames: Iterable[Frame]) -> None:
        """Show the output of workers that ended."""
        for frame in frames:
            if frame.kind == Kind.OUTPUT:
                self._prints.show(frame)
        self._prints.wait()

    def _encode_again(self, ticket: Ticket) -> None:
        """Encode in a thread of its own, without the lock: pickling runs user code."""
        again = work_items.encode_each(ticket.call, ticket.chunk)
        with self._lock:
            ticket.call.pending -= 1
            closed = self._closed
            if ticket.call.closed:
                if not ticket.call.pending:
                    ticket.call.release()
            elif not closed:
                self._place(again)
        if closed and not ticket.call.closed:
            self._deliver([(ticket.call, again.all_failed(lambda _: ClosedError(closed)))])
        self._loop.attend()

    def _deliver(self, reports: list[Any]) -> None:
        for call, report in reports:
            call.sink.report(report)

    # -------------------------------------------------------------------- time and death

    def tick(self) -> None:
        """Run the checks that are due: cancellations and expired time limits."""
        if self.damage:
            self._lose(_DAMAGED.format(self.damage))
            return
        while self._to_cancel:
            self._cancel(self._to_cancel.popleft())
        now = time.monotonic()
        if now - self._hurried > _HURRY_SECONDS:
            self._hurried = now
            with self._lock:
                lost = not all(worker.sock.is_open() for worker in self._workers.values())
            if lost or not self.is_whole():
                self._lose()
            with self._lock:
                for worker in list(self._workers.values()):
                    worker.hurry()
                    self._relieve(worker)
        if now - self._weighed > _WEIGH_SECONDS:
            self._weighed = now
            with self._lock:
                for worker in self._workers.values():
                    self._court.weigh(worker, now)
        with self._lock:
            for worker in list(self._workers.values()):
                if not worker.tickets and worker.suspicion is None:
                    continue
                if self._court.has_waited(worker, now):
                    self._judge(worker)
                else:
                    self._court.check_time(worker, now)
            for worker in self._leaving:
                if worker.leave_by < now:
                    worker.leave_by = now + _LEAVE_SECONDS
                    self._kill(worker)
            for ticket in self._given_up:
                if ticket.kill_at is not None and ticket.kill_at <= now:
                    self._end_given_up(ticket, now)

    def clean_up(self) -> None:
        """Release values that only the cache refers to."""
        now = time.monotonic()
        if now - self._swept > _SWEEP_SECONDS:
            self._swept = now
            self._sweeps = self._sweep()

    def _relieve(self, worker: WorkerLink) -> None:
        """Take work back from a worker that is busy with a long chunk while another one is idle.

        The chunk queued behind it is dispatched again; of the chunk itself, the items not begun
        come back with the report that it ended early, and are cut into new chunks. Both sides write
        before they read: the worker the chunk that it begins, the pool that the chunk is given up.
        So either the pool sees that it was begun, or the worker sees that it must not begin it.
        """
        if not worker.tickets or worker.in_hand() != worker.seen_at:
            worker.seen_at = worker.in_hand()
            return
        waiting = worker.tickets[-1]
        if waiting.cancelled or self._queue or not self._has_idle_worker(waiting.call):
            return
        if len(worker.tickets) == 1:
            if waiting.call.splits and len(waiting.chunk.items) > 1:
                worker.cancel(waiting)
            return
        worker.cancel(waiting)
        fence()
        if worker.in_hand() != waiting.number:
            waiting.cancelled = True
            again = waiting.again()
            again.call.pending += 1
            self._queue.appendleft(again)
            self._spread()

    def _has_idle_worker(self, call: OpenCall) -> bool:
        return any(not w.tickets and self._suits(w, call) for w in self._workers.values())

    def _end_given_up(self, ticket: Ticket, now: float) -> None:
        """The grace time of a given-up chunk is over and its worker has not finished the item."""
        worker = next((w for w in self._workers.values() if ticket in w.tickets), None)
        if worker is None:
            ticket.kill_at = None
        elif worker.in_hand() == ticket.number:
            ticket.kill_at = None
            self._court.suspect(worker, "cancel", ticket.number, None, now)
        else:
            ticket.kill_at = now + _GRACE_SECONDS
            if worker.tickets[0] is ticket and worker.board.words[Word.PHASE] == Phase.IDLE:
                # It did not get the chunk: an interrupt came between recording and sending it.
                self._kill(worker)

    def _kill(self, worker: WorkerLink) -> None:
        self._signal(worker, signal.SIGKILL)

    def _signal(self, worker: WorkerLink, number: int) -> None:
        if self._starter is not None:
            self._starter.signal(worker.serial, number)
            self._loop.want_write(self._starter)

    def _judge(self, worker: WorkerLink) -> None:
        if self._court.judge(worker):
            self._refill(worker)

    def _forget_given_up(self, ticket: Ticket) -> None:
        if ticket.cancelled and ticket in self._given_up:
            self._given_up.remove(ticket)

    def _bury(self, worker: WorkerLink) -> None:
        """Reap a worker: keep its results, fail the item that it died in, restart the others."""
        self._take(worker, worker.drain())
        with self._lock:
            if self._workers.pop(worker.serial, None) is None:
                return
            if worker in self._leaving:
                self._leaving.remove(worker)
            self._loop.unregister(worker)
            reports = list(self._settle(worker))
            worker.close()
            self._spread()
        self._deliver(reports)

    def _settle(self, worker: WorkerLink) -> Iterator[Any]:
        for end in self._deaths.ends(worker):
            ticket, again = end.ticket, end.again
            for report in end.reports:
                yield ticket.call, report
            if again is ticket:
                ticket.call.leave(worker.serial, ticket)
                worker.tickets.remove(ticket)
            else:
                ticket.call.pending += again is not None
                self._done(ticket, worker)
            if again is not None:
                self._queue.appendleft(again)
            self._forget_given_up(ticket)

    def _spread(self) -> None:
        """Give queued chunks to workers; start workers as needed."""
        for ticket in list(self._queue):
            worker = self._choose(ticket.call)
            if worker is not None:
                self._queue.remove(ticket)
                self._send(worker, ticket)


def _needed_by(function: Callable[..., Any]) -> list[str]:
    """Modules of ours that workers will need.

    Loading them once in the forkserver is faster than once in each worker. A module that defines
    tasks imports the whole library.
    """
    if (function.__module__ or "").startswith("sharedtask."):
        return [function.__module__]
    return ["sharedtask.task.decorator"] * functions.is_defined_as_task(function)


def _is_quick(call: OpenCall) -> bool:
    """Whether a second chunk may wait in a worker."""
    return call.seconds is not None and call.seconds < _PREFETCH_BELOW_SECONDS


def _find(worker: WorkerLink, number: int) -> Ticket | None:
    for ticket in worker.tickets:  # the first one, nearly always
        if ticket.number == number:
            return ticket
    return None
