"""The pool: who has which chunk, and what happens when a worker ends.

        caller's threads                     one I/O thread                     workers
    dispatch(ticket) --CHUNK frame------------------------------------------->  run
          |  no worker free                                                      |
          v                                                                      |
        queue  <--- a worker has room ---  receive  <------RESULTS frames--------+
                                              |
                             sink.report() of the call   (decoded by whoever waits for it)

A caller's thread writes straight into the socket of a free worker; the I/O thread reads all sockets,
hands out what is queued, kills what has run too long, and buries the dead. One lock guards the
tables; nothing blocks under it. A death is an ordinary event: what the worker had finished is on its
board or in the socket, the item in hand gets the error, what was not begun is begun elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import selectors
import signal
import socket
import sys
import threading
import time
from collections import deque
from queue import Empty
from typing import TYPE_CHECKING, Any

from sharedtask import interrupts
from sharedtask.errors import ClosedError, RemoteTraceback, TaskTimeoutError, WorkerDiedError
from sharedtask.outcomes import Batch, Report
from sharedtask.sharing.stores import SegmentStore

from . import calls, results, starter, tickets
from .board import Phase, Word
from .links import StarterLink, Suspicion, WorkerLink
from .wire import Frame, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from queue import SimpleQueue

    from sharedtask.sharing.publication import Publication

    from .tickets import OpenCall, Ticket

# A second chunk waits in a worker's socket while its chunks take less than this: then the way to the
# caller and back counts. Longer ones wait in the queue, for whichever worker is free first.
_PREFETCH_BELOW_SECONDS = 0.01
# A chunk that was given up may finish its item in this time before its worker is killed.
_GRACE_SECONDS = 0.4
# Results are fetched at least this often, so that progress is smooth even in large chunks.
_HURRY_SECONDS = 0.02
# The I/O thread waits this long for more before it rests: being woken twice costs 0.05 ms.
_LINGER_SECONDS = 0.05
# How often values are looked for that nobody but the cache holds.
_SWEEP_SECONDS = 1.0
# The starter answers within a millisecond when a worker has stopped.
_STOP_SECONDS = 0.5
_MAX_STILLBORN = 3

class Pool:
    """Worker processes, shared by all tasks and threads of this process."""

    def __init__(self, sweep: Callable[[], bool]) -> None:
        self.pid = os.getpid()
        self._sweep = sweep
        self._lock = threading.RLock()
        self._workers: dict[int, WorkerLink] = {}
        self._queue: deque[Ticket] = deque()
        self._given_up: list[Ticket] = []
        self._to_cancel: deque[OpenCall] = deque()
        self._serial = 0
        self._stillborn = 0
        self._starter: StarterLink | None = None
        self._closed = self._silent = False
        self._driving = threading.Lock()
        self._driven = False
        self._permit = threading.Lock()
        self._permit.acquire()
        self._swept = self._hurried = 0.0
        self._sweeps = False
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        for end in (self._waker, self._woken):
            end.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, self._on_wake)
        self._thread = threading.Thread(target=self._serve, name="sharedtask-io", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------- the callers' side

    def dispatch(self, ticket: Ticket) -> None:
        """Give a chunk to a worker that has room, or queue it."""
        with interrupts.shield(), self._lock:
            self._refuse_when_closed()
            ticket.call.pending += 1
            worker = self._choose(ticket.call)
            if worker is None:
                self._queue.append(ticket)
            else:
                self._send(worker, ticket)
            if not self._driven:
                self._unpark()

    def _refuse_when_closed(self) -> None:
        if not self._closed:
            return
        if self._silent:  # a daemon thread at exit: the interpreter stops it here
            threading.Event().wait()
        raise ClosedError(_CLOSED)

    def wait(self, reports: SimpleQueue[Any], until: float | None, *, leaves: bool) -> Any:
        """The next of ``reports``, or None at the time ``until``.

        The thread that waits does the I/O thread's work meanwhile, which saves a switch between
        threads for every report. Where another one is at it already, it only waits. Who ``leaves``
        for longer hands over to the I/O thread.
        """
        if not self._driving.acquire(blocking=False):
            return _next_of(reports, until)
        try:
            self._driven = True
            while reports.empty() and not self._closed and not _is_past(until):
                self._step(until)
        finally:
            self._driven = False
            self._driving.release()
            if leaves:
                self.hand_over()
        return _next_of(reports, until)

    def hand_over(self) -> None:
        """Leave what is under way to the I/O thread."""
        if self._is_busy():
            self._unpark()

    def give_up(self, call: OpenCall) -> None:
        """Give up all chunks of a call soon: this may run in a finalizer, so it takes no lock."""
        self._to_cancel.append(call)
        self.wake()

    def _cancel(self, call: OpenCall) -> None:
        """What is queued is dropped at once; what runs may finish its item for a moment."""
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
                        ticket.kill_at = time.monotonic() + _GRACE_SECONDS
                        worker.cancel(ticket)
                        self._given_up.append(ticket)

    def drop(self, token: int) -> None:
        """Have the workers forget a published value."""
        with self._lock:
            for worker in self._workers.values():
                if worker.tokens.pop(token, None) is not None:
                    self._write(worker, Frame(Kind.DROP, chunk=token))

    def wake(self) -> None:
        """Have the I/O thread look around. Takes no lock: finalizers call it."""
        with contextlib.suppress(OSError):
            self._waker.send(b"\0")
        self._unpark()

    def _unpark(self) -> None:
        """The I/O thread's permit; it takes it when it has time. Takes no lock."""
        with contextlib.suppress(RuntimeError):  # it has one already
            self._permit.release()

    def pids(self) -> list[int]:
        """The workers that are known to run."""
        with self._lock:
            return [worker.pid for worker in self._workers.values() if worker.pid is not None]

    def close(self, *, silent: bool = False) -> None:
        """End all workers; calls that still run get ClosedError, or wait for ever if ``silent``."""
        with self._lock:
            if self._closed:
                return
            self._closed, self._silent = True, silent
            reports = self._fail_everything()
            link, self._starter = self._starter, None
            workers = list(self._workers.values())
            self._workers.clear()
        if not silent:
            self._deliver(reports)
        self.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        if link is not None:
            link.end()
        for worker in workers:
            worker.close()
        self._selector.close()
        for end in (self._waker, self._woken):
            end.close()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's pool without a word to it."""
        self._closed = True
        for worker in self._workers.values():
            worker.close()
        if self._starter is not None:
            self._starter.abandon()
        self._selector.close()
        for end in (self._waker, self._woken):
            end.close()

    def _fail_everything(self) -> list[Any]:
        reports = []
        waiting = [*self._queue, *(t for w in self._workers.values() for t in w.tickets)]
        for ticket in waiting:
            if not ticket.call.closed:
                reports.append((ticket.call, ticket.all_failed(ClosedError(_CLOSED))))
            self._done(ticket)
        self._queue.clear()
        return reports

    # ------------------------------------------------------------------------- scheduling

    def _choose(self, call: OpenCall) -> WorkerLink | None:
        """The worker for the next chunk of ``call``: an idle one, a new one, one with room."""
        fit = [worker for worker in self._workers.values() if self._suits(worker, call)]
        idle = [worker for worker in fit if not worker.tickets]
        if idle:
            return max(idle, key=lambda worker: sum(p.token in worker.tokens for p, _ in call.needs))
        if len(self._workers) < call.limit and len(call.users) < call.limit:
            return self._spawn()
        if call.seconds is not None and call.seconds < _PREFETCH_BELOW_SECONDS:
            return next((worker for worker in fit if len(worker.tickets) == 1), None)
        return None

    def _suits(self, worker: WorkerLink, call: OpenCall) -> bool:
        """Whether a worker may take a chunk of a call: no call uses more of them than it asked for."""
        if worker.ended or worker.verdict is not None or worker.suspicion is not None:
            return False
        return len(call.users) < call.limit or worker.serial in call.users

    def _spawn(self) -> WorkerLink:
        if self._starter is None:
            self._starter = StarterLink()
            self._selector.register(self._starter.sock, selectors.EVENT_READ, self._on_starter)
        self._serial += 1
        worker = self._starter.spawn(self._serial)
        self._workers[worker.serial] = worker
        self._selector.register(
            worker.sock, selectors.EVENT_READ, lambda mask: self._on_worker(worker, mask)
        )
        self._want_write(self._starter)
        return worker

    def _send(self, worker: WorkerLink, ticket: Ticket) -> None:
        call = ticket.call
        if not call.sink.begun(ticket.chunk.number):
            call.closed = True
            self._done(ticket)
            return
        for publication, private in call.needs:
            self._attach(worker, publication, private=private)
        ticket.slot = worker.free_slot()
        worker.prepare(ticket.slot)
        worker.tickets.append(ticket)
        call.users[worker.serial] += 1
        self._write(worker, ticket.frame())

    def _attach(self, worker: WorkerLink, publication: Publication, *, private: bool) -> None:
        if worker.tokens.get(publication.token, False) >= private and (
            publication.token in worker.tokens
        ):
            return
        worker.tokens[publication.token] = private
        publication.tell_on_release(self.drop)
        self._write(worker, attach_frame(publication, private=private))

    def _write(self, worker: WorkerLink, frame: Frame) -> None:
        worker.writer.send(frame)
        self._want_write(worker)

    def _want_write(self, link: WorkerLink | StarterLink) -> None:
        """Ask for a word when the socket has room again, as long as something waits for it."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.writer.pending else 0)
        with contextlib.suppress(KeyError):
            key = self._selector.get_key(link.sock)
            if key.events != events:
                self._selector.modify(link.sock, events, key.data)

    def _refill(self, worker: WorkerLink) -> None:
        """Hand out what is queued to a worker that has room."""
        for ticket in list(self._queue):
            room = 1
            seconds = ticket.call.seconds
            if seconds is not None and seconds < _PREFETCH_BELOW_SECONDS:
                room = 2
            if len(worker.tickets) >= room:
                continue
            if self._suits(worker, ticket.call):
                self._queue.remove(ticket)
                self._send(worker, ticket)

    def _done(self, ticket: Ticket, worker: WorkerLink | None = None) -> None:
        """A chunk is over, one way or another."""
        call = ticket.call
        if worker is not None:
            worker.tickets.remove(ticket)
            call.leave(worker.serial)
        ticket.parcel.close()
        call.pending -= 1
        if call.closed and not call.pending:
            call.release()

    # ------------------------------------------------------------------------ I/O thread

    def _serve(self) -> None:
        """Work while there is something under way that no waiting caller sees to."""
        while not self._closed:
            timeout = _SWEEP_SECONDS if self._sweeps else -1
            self._permit.acquire(timeout=timeout)
            with self._driving:
                lingers = time.monotonic() + _LINGER_SECONDS
                while not self._closed:
                    self._step(lingers)
                    if self._is_busy():
                        lingers = time.monotonic() + _LINGER_SECONDS
                    elif _is_past(lingers):
                        break

    def _step(self, until: float | None) -> None:
        """Wait for news, not longer than ``until``, and see to it."""
        try:
            events = self._selector.select(self._patience(until))
        except (OSError, ValueError):  # closed meanwhile
            return
        with interrupts.shield():
            for key, mask in events:
                key.data(mask)
            self._tick()

    def _is_busy(self) -> bool:
        with self._lock:
            return bool(
                self._queue
                or self._given_up
                or self._to_cancel
                or any(worker.tickets or worker.ended for worker in self._workers.values())
            )

    def _patience(self, until: float | None) -> float | None:
        """Seconds until something must be looked at."""
        waits = [] if until is None else [until - time.monotonic()]
        with self._lock:
            now = time.monotonic()
            waits.extend(ticket.kill_at - now for ticket in self._given_up if ticket.kill_at)
            waits.extend(self._time_left(w) for w in self._workers.values() if _is_timed(w))
            waits.extend(
                w.suspicion.until - now for w in self._workers.values() if w.suspicion is not None
            )
            if any(worker.tickets for worker in self._workers.values()):
                waits.append(_HURRY_SECONDS)
        return max(min(waits), 0.0) if waits else None

    def _on_wake(self, _mask: int) -> None:
        with contextlib.suppress(OSError):
            self._woken.recv(4096)
        self._swept = 0.0

    def _on_starter(self, mask: int) -> None:
        link = self._starter
        if link is None:
            return
        with self._lock:
            if mask & selectors.EVENT_WRITE:
                link.writer.flush()
            frames = link.receive()
            self._want_write(link)
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
            worker.exit = starter.exit_status(frame.body)
            self._bury(worker)

    def _on_starter_end(self, link: StarterLink) -> None:
        """The starter was killed, and the kernel kills the workers: a new one starts on demand."""
        with self._lock:
            if self._starter is not link:
                return
            self._starter = None
            self._selector.unregister(link.sock)
            link.end()
            workers = list(self._workers.values())
        for worker in workers:
            worker.exit = worker.exit or (worker.pid, None, None)
            self._bury(worker)

    def _on_worker(self, worker: WorkerLink, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            with self._lock:
                worker.writer.flush()
                self._want_write(worker)
        if mask & selectors.EVENT_READ:
            self._take(worker, worker.receive())
        if worker.ended:
            self._on_worker_end(worker)

    def _on_worker_end(self, worker: WorkerLink) -> None:
        """Its socket ended. How it died is for the starter to tell; if it lives, it must not."""
        with self._lock:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(worker.sock)
            if worker.serial in self._workers:
                self._kill(worker)

    def _take(self, worker: WorkerLink, frames: list[Frame]) -> None:
        for frame in frames:
            if frame.kind == Kind.OUTPUT:
                _print(frame)
            elif frame.kind == Kind.RESULTS:
                self._deliver(self._on_results(worker, frame))
            elif frame.kind == Kind.FAILED:
                self._resend_each(worker, frame.chunk)

    def _on_results(self, worker: WorkerLink, frame: Frame) -> list[Any]:
        with self._lock:
            ticket = _find(worker, frame.chunk)
            if ticket is None:
                return []
            mode = frame.body[0] & ~results.FINISHED
            finished = bool(frame.body[0] & results.FINISHED)
            ticket.received = frame.first + frame.count
            call = ticket.call
            if finished:
                self._stillborn = 0
                call.note(frame.elapsed / 1e9)
                self._done(ticket, worker)
                self._forget_given_up(ticket)
                self._refill(worker)
            if call.closed:
                _close_fds(frame.fds)
                return []
        first = ticket.chunk.first + frame.first
        results_of = _Results(mode, frame, first, call.task)
        seconds = frame.elapsed / 1e9
        report = Report(ticket.chunk.number, results_of, frame.count, finished, seconds)
        return [(call, report)]

    def _resend_each(self, worker: WorkerLink, number: int) -> None:
        """A chunk could not be unpickled as a whole: item by item, the bad one can be named."""
        with self._lock:
            ticket = _find(worker, number)
            if ticket is None:
                return
            if not ticket.cancelled:
                again = tickets.encode_each(ticket.call, ticket.chunk)
                ticket.call.pending += 1
                self._queue.appendleft(again)
            self._done(ticket, worker)
            self._forget_given_up(ticket)
            self._refill(worker)

    def _deliver(self, reports: list[Any]) -> None:
        for call, report in reports:
            call.sink.report(report)

    # -------------------------------------------------------------------- time and death

    def _tick(self) -> None:
        while self._to_cancel:
            self._cancel(self._to_cancel.popleft())
        now = time.monotonic()
        if now - self._hurried > _HURRY_SECONDS:
            self._hurried = now
            with self._lock:
                for worker in self._workers.values():
                    worker.hurry()
        if now - self._swept > _SWEEP_SECONDS:
            self._swept = now
            self._sweeps = self._sweep()
        with self._lock:
            for worker in list(self._workers.values()):
                self._check_time(worker, now)
            for ticket in self._given_up:
                if ticket.kill_at is not None and ticket.kill_at <= now:
                    self._end_given_up(ticket, now)

    def _check_time(self, worker: WorkerLink, now: float) -> None:
        if worker.suspicion is not None and now > worker.suspicion.until:
            self._judge(worker)  # it was stopped already, by somebody else: no word of it comes
        elif _is_timed(worker) and self._time_left(worker) <= 0:
            number, started = worker.tickets[0].number, worker.board.words[Word.STARTED]
            self._suspect(worker, Suspicion("timeout", number, started, now + _STOP_SECONDS))

    def _end_given_up(self, ticket: Ticket, now: float) -> None:
        """A chunk was given up some time ago and its worker has not come to the end of an item."""
        worker = next((w for w in self._workers.values() if ticket in w.tickets), None)
        if worker is None:
            ticket.kill_at = None
        elif worker.in_hand() == ticket.number:
            ticket.kill_at = None
            self._suspect(worker, Suspicion("cancel", ticket.number, None, now + _STOP_SECONDS))
        else:
            ticket.kill_at = now + _GRACE_SECONDS
            if worker.tickets[0] is ticket and worker.board.words[Word.PHASE] == Phase.IDLE:
                # It never got the chunk: an interrupt came between noting and sending it.
                self._kill(worker)

    def _kill(self, worker: WorkerLink) -> None:
        if self._starter is not None:
            self._starter.signal(worker.serial, signal.SIGKILL)
            self._want_write(self._starter)

    def _time_left(self, worker: WorkerLink) -> float:
        """Seconds until the item in hand has used up its time."""
        ticket, words = worker.tickets[0], worker.board.words
        timeout = ticket.call.timeout or 0.0
        if words[Word.CHUNK] != ticket.number or not words[Word.STARTED]:
            return max(timeout / 2, 0.01)  # not begun yet: look again
        if words[Word.PHASE] not in (Phase.RUNNING, Phase.UNPACKING):
            return max(timeout / 2, 0.01)
        return timeout - (time.monotonic_ns() - words[Word.STARTED]) / 1e9

    def _suspect(self, worker: WorkerLink, suspicion: Suspicion) -> None:
        """Stop the worker first. Killed right away, it might have gone on to the next item, which

        would pay for what is not its fault.
        """
        if worker.suspicion is None and worker.verdict is None and self._starter is not None:
            worker.suspicion = suspicion
            self._starter.signal(worker.serial, signal.SIGSTOP)
            self._want_write(self._starter)

    def _judge(self, worker: WorkerLink) -> None:
        """The worker stands still: it is killed if it is where it was, else it goes on."""
        suspicion, worker.suspicion = worker.suspicion, None
        if suspicion is None or self._starter is None:
            return
        if worker.still(suspicion):
            worker.verdict = suspicion
            self._starter.signal(worker.serial, signal.SIGKILL)
        else:
            self._starter.signal(worker.serial, signal.SIGCONT)
            self._refill(worker)
        self._want_write(self._starter)

    def _forget_given_up(self, ticket: Ticket) -> None:
        if ticket.cancelled and ticket in self._given_up:
            self._given_up.remove(ticket)

    def _bury(self, worker: WorkerLink) -> None:
        """A worker has ended: keep what it did, name the item it died in, begin the rest anew."""
        self._take(worker, worker.drain())
        with self._lock:
            if self._workers.pop(worker.serial, None) is None:
                return
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(worker.sock)
            reports = list(self._settle(worker))
            worker.close()
            self._spread()
        self._deliver(reports)

    def _settle(self, worker: WorkerLink) -> Iterator[Any]:
        in_hand = worker.in_hand()
        phase = worker.board.words[Word.PHASE]
        if not any(t.number == in_hand for t in worker.tickets):
            self._stillborn += bool(worker.tickets) and in_hand == 0
        for ticket in reversed(list(worker.tickets)):
            call = ticket.call
            if ticket.number == in_hand and phase != Phase.IDLE and not ticket.cancelled:
                yield from self._settle_in_hand(worker, ticket, phase)
                self._done(ticket, worker)
            elif ticket.cancelled:
                self._done(ticket, worker)
            elif self._stillborn > _MAX_STILLBORN:
                error = self._death(worker, ticket, "before its first item")
                yield call, ticket.all_failed(error)
                self._done(ticket, worker)
            else:
                self._queue.appendleft(self._taken_back(worker, ticket))
            self._forget_given_up(ticket)

    def _taken_back(self, worker: WorkerLink, ticket: Ticket) -> Ticket:
        ticket.call.leave(worker.serial)
        worker.tickets.remove(ticket)
        return ticket

    def _settle_in_hand(self, worker: WorkerLink, ticket: Ticket, phase: int) -> Iterator[Any]:
        call, words = ticket.call, worker.board.words
        if phase == Phase.LOADING:
            yield call, ticket.all_failed(self._death(worker, ticket, _WHILE[Phase.LOADING]))
            return
        if phase == Phase.UNPACKING and ticket.mode != calls.EACH and len(ticket.chunk.items) > 1:
            call.pending += 1
            self._queue.appendleft(tickets.encode_each(call, ticket.chunk))
            return
        saved = _saved(worker, ticket)
        if saved is not None:
            ticket.received = words[Word.BASE] + words[Word.COUNT]
            yield call, saved
        if ticket.received < len(ticket.chunk.items):
            yield call, ticket.failed(self._death(worker, ticket, _WHILE.get(phase, "")))
        else:
            yield call, ticket.report(Batch(0, []), finished=True)

    def _death(self, worker: WorkerLink, ticket: Ticket, phase: str) -> BaseException:
        index = ticket.chunk.first + ticket.received
        item = ticket.chunk.items[ticket.received]
        pid, number, exitcode = worker.exit or (worker.pid, None, None)
        verdict = worker.verdict
        if verdict is not None and verdict.reason == "timeout":
            return TaskTimeoutError(ticket.call.task, index, item, ticket.call.timeout, pid)
        error = WorkerDiedError(ticket.call.task, index, item, pid, number, exitcode, phase)
        if crash := worker.board.crash():
            error.__cause__ = RemoteTraceback(crash)
        return error

    def _spread(self) -> None:
        """Give queued chunks to workers, new ones if need be."""
        for ticket in list(self._queue):
            worker = self._choose(ticket.call)
            if worker is not None:
                self._queue.remove(ticket)
                self._send(worker, ticket)


_CLOSED = "the pool was shut down while this call was running. Call again: a new pool starts by itself."
_WHILE = {
    Phase.LOADING: "while loading the function and the shared values",
    Phase.UNPACKING: "while unpickling the item",
}


class _Results:
    """The body of a RESULTS frame, decoded when it is opened."""

    __slots__ = ("_first", "_frame", "_mode", "_task")

    def __init__(self, mode: int, frame: Frame, first: int, task: str) -> None:
        self._mode, self._frame, self._first, self._task = mode, frame, first, task

    def open(self) -> Batch:
        frame = self._frame
        body, fds = memoryview(frame.body)[1:], iter(frame.fds)
        try:
            return results.load_batch(self._mode, body, frame.count, self._first, self._task, fds)
        finally:
            _close_fds(frame.fds)

    def discard(self) -> None:
        _close_fds(self._frame.fds)


class _Saved:
    """Results from a dead worker's outbox, without the first ``skip``, which had arrived."""

    __slots__ = ("_count", "_data", "_first", "_mode", "_skip", "_task")

    def __init__(self, worker: WorkerLink, ticket: Ticket, skip: int) -> None:
        words = worker.board.words
        self._mode = words[Word.MODE]
        self._data = worker.board.outbox()
        self._count, self._skip = words[Word.COUNT], skip
        self._first, self._task = ticket.chunk.first + words[Word.BASE], ticket.call.task

    def open(self) -> Batch:
        skip = self._skip
        batch = results.load_batch(
            self._mode, self._data, self._count, self._first, self._task, iter(())
        )
        errors = {offset - skip: e for offset, e in batch.errors.items() if offset >= skip}
        return Batch(self._first + skip, batch.values[skip:], errors)

    def discard(self) -> None:
        pass


def _saved(worker: WorkerLink, ticket: Ticket) -> Report | None:
    """A report of the results in the outbox that were never sent, or None."""
    words = worker.board.words
    skip = max(ticket.received - words[Word.BASE], 0)
    count = words[Word.COUNT] - skip
    if count <= 0:
        return None
    saved = _Saved(worker, ticket, skip)
    return Report(ticket.chunk.number, saved, count, finished=False)


def attach_frame(publication: Publication, *, private: bool) -> Frame:
    """The message that gives a published value to a worker."""
    store = publication.store
    layout = (store.layout.parts, store.layout.size)
    if isinstance(store, SegmentStore) and store.fd is not None:
        body = pickle.dumps((layout, private, None))
        return Frame(Kind.ATTACH, chunk=publication.token, body=body, fds=(store.fd,))
    body = pickle.dumps((layout, private, bytes(store.view)))
    return Frame(Kind.ATTACH, chunk=publication.token, body=body)


def _is_past(until: float | None) -> bool:
    return until is not None and time.monotonic() >= until


def _next_of(reports: SimpleQueue[Any], until: float | None) -> Any:
    try:
        return reports.get(timeout=None if until is None else max(until - time.monotonic(), 0.0))
    except Empty:
        return None


def _find(worker: WorkerLink, number: int) -> Ticket | None:
    return next((ticket for ticket in worker.tickets if ticket.number == number), None)


def _is_timed(worker: WorkerLink) -> bool:
    return (
        bool(worker.tickets)
        and worker.tickets[0].call.timeout is not None
        and worker.suspicion is None
        and worker.verdict is None
    )


def _print(frame: Frame) -> None:
    """What a worker printed, to where the caller prints: a terminal, a cell, a captured stream."""
    stream = sys.stdout if frame.first == 1 else sys.stderr
    with contextlib.suppress(Exception):
        stream.write(bytes(frame.body).decode("utf-8", "replace"))
        stream.flush()


def _close_fds(fds: tuple[int, ...]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
