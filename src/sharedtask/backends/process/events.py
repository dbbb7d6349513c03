"""What happens when a socket is ready: results, output and deaths of workers.

A death is an ordinary event: finished results are on the worker's status page or in the socket, the
current item gets the error, and items not begun are begun elsewhere.
"""

from __future__ import annotations

import marshal
import selectors
from typing import TYPE_CHECKING, Any

from sharedtask import observing
from sharedtask.backends.worker import result_format
from sharedtask.backends.worker.status_page import Word
from sharedtask.errors import ClosedError
from sharedtask.outcomes import Change, Report
from sharedtask.system import background

from . import forkserver, log_reading, recycling, stdio, work_items
from .received import SentResults
from .wire import Kind, close_all, without_trace
from .worker_death import Deaths, how_it_ended

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .checks import Checks
    from .connections import ForkserverLink, WorkerLink
    from .event_loop import Loop
    from .scheduler import Scheduler
    from .wire import Frame
    from .work_items import OpenCall, WorkItem
    from .worker_table import WorkerTable


class SocketEvents:
    """Reads the sockets of a pool. Methods take the pool's lock, and call no user code under it."""

    def __init__(
        self,
        lock: Any,
        loop: Loop,
        table: WorkerTable,
        scheduler: Scheduler[WorkerLink],
        checks: Checks,
    ) -> None:
        self._lock, self._loop, self._table = lock, loop, table
        self._scheduler, self._checks = scheduler, checks
        self._prints = stdio.Prints()
        self._deaths = Deaths()

    # ---------------------------------------------------------------------- the forkserver

    def on_forkserver(self, mask: int) -> None:
        """Read what the forkserver reports, and write what waits for room in its socket."""
        link = self._table.forkserver
        if link is None:
            return
        with self._lock:
            if mask & selectors.EVENT_WRITE:
                link.writer.flush()
            frames = link.receive()
            self._loop.want_write(link)
        for frame in frames:
            self._on_forkserver_frame(frame)
        if link.ended:
            self._on_forkserver_end(link)

    def _on_forkserver_frame(self, frame: Frame) -> None:
        with self._lock:
            worker = self._table.workers.get(frame.chunk)
            if worker is None:
                return
            if frame.kind == Kind.SPAWNED:
                worker.pid = frame.first
                if observing.recorder is not None:
                    observing.recorder.worker_started("process", frame.first)
            elif frame.kind == Kind.STOPPED:
                self._checks.on_stopped(worker)
        if frame.kind == Kind.EXITED:
            worker.exit = forkserver.exit_status(frame.body)
            self._reap(worker)

    def _on_forkserver_end(self, link: ForkserverLink) -> None:
        """The forkserver was killed, and its workers end with it; start another on demand."""
        with self._lock:
            if not self._table.remove_forkserver(link):
                return
            workers = list(self._table.workers.values())
        for worker in workers:
            worker.exit = worker.exit or (worker.pid, None, None)
            self._reap(worker)

    # -------------------------------------------------------------------------- the workers

    def on_worker(self, worker: WorkerLink, mask: int) -> None:
        """Read what a worker sends, and write what waits for room in its socket."""
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
            if worker.serial in self._table.workers:
                self._table.kill(worker)

    def _take(self, worker: WorkerLink, frames: Iterable[Frame]) -> None:
        for frame in frames:
            if frame.kind == Kind.OUTPUT:
                self._prints.show(frame)
            elif frame.kind == Kind.RESULTS:
                deliver(self._on_results(worker, frame))
            elif frame.kind == Kind.FAILED:
                self._resend_each(worker, frame.chunk)
            elif frame.kind == Kind.LOGS:
                self.collect_logs()
            elif frame.kind == Kind.CHANGED:
                deliver(self._on_change(worker, frame))

    def _find(self, worker: WorkerLink, number: int) -> WorkItem | None:
        """The chunk of this number, if the worker has it and the pool has not ended meanwhile."""
        return worker.find(number) if worker.serial in self._table.workers else None

    def _on_change(self, worker: WorkerLink, frame: Frame) -> list[tuple[OpenCall, Report]]:
        with self._lock:
            work_item = self._find(worker, frame.chunk)
            if work_item is None or work_item.call.closed or work_item.cancelled:
                return []
        return [(work_item.call, work_item.changed(Change(*marshal.loads(frame.body))))]

    def _on_results(self, worker: WorkerLink, frame: Frame) -> list[tuple[OpenCall, Report]]:
        with self._lock:
            words = worker.status_page.words
            logged: list[tuple[OpenCall, Report]] = []
            if words[Word.LOGGED] != words[Word.LOG_READ]:
                logged = log_reading.collect(worker)
            work_item = self._find(worker, frame.chunk)
            if work_item is None:
                close_all(frame.fds)
                return logged
            trace = b""
            if frame.body[0] & result_format.TRACED:
                frame, trace = without_trace(frame)
            mode = frame.body[0] & ~result_format.FINISHED
            finished = bool(frame.body[0] & result_format.FINISHED)
            work_item.received = frame.first + frame.items
            call = work_item.call
            if finished:
                if not work_item.received and recycling.reports_over_memory(worker, work_item):
                    return [*logged, *self._not_begun(worker, work_item)]
                self._deaths.note_life(call)
                call.note(frame.elapsed / 1e9)
                if call.slot_table is not None:
                    call.slot_table.end(worker.serial, work_item)
                worker.ran += work_item.received
                is_used_up = call.limits is not None and recycling.is_used_up(worker, work_item)
                self._scheduler.end(worker, work_item, is_used_up=is_used_up)
            if call.closed or work_item.cancelled:
                close_all(frame.fds)
                return logged
        chunk, at, seconds = work_item.chunk, frame.first, frame.elapsed / 1e9
        results_of = SentResults(mode, frame, chunk.first + at, call, self._prints)
        report = Report(
            chunk.number, results_of, frame.items, finished, seconds, first=at, trace=trace
        )
        return [*logged, (call, report)]

    def collect_logs(self) -> None:
        """Pass on what tasks have logged, also those whose items last."""
        reports: list[tuple[OpenCall, Report]] = []
        with self._lock:
            for worker in self._table.workers.values():  # asked often: no calls
                words = worker.status_page.words
                if words[Word.LOGGED] != words[Word.LOG_READ] and log_reading.is_due(worker):
                    reports += log_reading.collect(worker)
        if reports:
            deliver(reports)

    def _not_begun(self, worker: WorkerLink, work_item: WorkItem) -> list[tuple[OpenCall, Report]]:
        """A worker had too much memory before the first item of a chunk.

        Another worker gets the chunk, unless this one has run no item yet.
        """
        reports: list[tuple[OpenCall, Report]] = []
        if not worker.ran and not work_item.cancelled:
            has = worker.status_page.words[Word.BEFORE]
            failed = work_item.all_failed(
                lambda at: recycling.too_large(worker, work_item, at, has)
            )
            reports.append((work_item.call, failed))
        elif not work_item.cancelled:
            self._scheduler.add_first(work_item.again())
        self._scheduler.end(worker, work_item, is_used_up=recycling.is_used_up(worker, work_item))
        return reports

    def _resend_each(self, worker: WorkerLink, number: int) -> None:
        """A chunk could not be unpickled as a whole: resend it item by item to name the bad one."""
        with self._lock:
            work_item = self._find(worker, number)
            if work_item is None:
                return
            if not work_item.cancelled:
                work_item.call.pending += 1
                background.put(lambda: self._encode_again(work_item))
            self._scheduler.end(
                worker, work_item, is_used_up=recycling.is_used_up(worker, work_item)
            )

    def _encode_again(self, work_item: WorkItem) -> None:
        """Encode in a thread of its own, without the lock: pickling runs user code."""
        call = work_item.call
        again = work_items.encode_each(call, work_item.chunk)
        with self._lock:
            call.pending -= 1
            closed = self._table.closed
            if call.closed:
                if not call.pending:
                    call.release()
            elif not closed:
                self._scheduler.add(again)
        if closed and not call.closed:
            deliver([(call, again.all_failed(lambda _: ClosedError(closed)))])
        self._loop.attend()

    # ---------------------------------------------------------------------------- the end

    def show(self, frames: Iterable[Frame]) -> None:
        """Show the output of workers that ended."""
        for frame in frames:
            if frame.kind == Kind.OUTPUT:
                self._prints.show(frame)
        self._prints.wait()

    def _reap(self, worker: WorkerLink) -> None:
        """Reap a worker: keep its results, fail the item that it died in, restart the others."""
        self._take(worker, worker.drain())
        with self._lock:
            if not self._table.remove(worker):
                return
            if observing.recorder is not None:
                how, expected = how_it_ended(worker)
                observing.recorder.worker_ended(worker.pid or 0, how, expected=expected)
            reports = [*log_reading.collect(worker), *self._results_of_dead(worker)]
            worker.close()
            self._scheduler.fill_idle()
        deliver(reports)

    def _results_of_dead(self, worker: WorkerLink) -> Iterator[tuple[OpenCall, Report]]:
        for end in self._deaths.ends(worker):
            for report in end.reports:
                yield end.work_item.call, report
            self._scheduler.lose(worker, end.work_item, end.again)


def deliver(reports: Iterable[tuple[OpenCall, Report]]) -> None:
    """Hand reports to the sinks of their calls; no lock is held."""
    for call, report in reports:
        call.sink.report(report)
