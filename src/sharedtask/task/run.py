"""A run: feeds chunks to a backend, takes reports back, retries, orders, and cleans up.

    items -> Chunker -> Session.submit -> (workers) -> report() -> queue -> advance() -> pieces

The thread that wants the results drives a ``Run``: it feeds as long as few enough items are in
flight, waits for a report, and passes on finished results. ``collect`` makes a list of them,
``in_order`` and ``as_completed`` make streams.
"""

from __future__ import annotations

import contextlib
import os
import queue
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from sharedtask.backends.base import CLOSED_SESSION, FORKED, Chunk, Session
from sharedtask.errors import ClosedError
from sharedtask.outcomes import Batch, Known, Report
from sharedtask.serialization import losses, missing
from sharedtask.system import interrupts
from sharedtask.system.finalizers import Ending
from sharedtask.system.loading import undisturbed
from sharedtask.system.records import dataclass
from sharedtask.system.tracebacks import SHORTENED, shorten

from .chunking import Chunker, Pace
from .progress import Bar, open_bar, show_busy, skip
from .retries import runs_again

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sharedtask.backends.base import Backend
    from sharedtask.outcomes import Change
    from sharedtask.task.journal.recording import Recording

    from .callsite import Callsite
    from .plan import Plan

# After an error the results of earlier items are awaited for this long: if several items fail, the
# first of them is reported, as in a loop, unless that means a long wait.
_GRACE_SECONDS = 0.5
# Encoding chunks may take longer than this: then another thread serves the chunks in flight.
_SOON_SECONDS = 0.01
# Chunks in flight per worker: one that runs, one that waits in its socket, one in the queue.
_AHEAD = 3


@dataclass(slots=True)
class _Open:
    """A chunk in flight, and the position after its last item with an outcome."""

    chunk: Chunk
    stop: int = 0


class _Inbox:
    """The queue of a session's reports. The session refers to it, not to the run.

    So a run that its user has dropped is freed, even while its session works.
    """

    def __init__(self) -> None:
        self.reports: queue.SimpleQueue[Report | None] = queue.SimpleQueue()

    def begun(self, chunk: int) -> bool:  # noqa: ARG002  a Sink's
        """A chunk is about to run; a map takes no chunk back."""
        return True

    def report(self, report: Report) -> None:
        """Called from any thread."""
        self.reports.put(report)


class Run:
    """One map, from its first chunk to its last result.

    ``open``, ``advance`` and ``close`` are called within a shield of ``interrupts``.
    """

    def __init__(
        self,
        backend: Backend,
        plan: Plan,
        pace: Pace,
        on_shares: Callable[[Any], None],
        callsite: Callsite | Callable[[], Callsite | None] | None = None,
    ) -> None:
        """Prepare. ``callsite`` is the line for warnings about changed shared values.

        It is a function where the line is on the stack as long as the run, to be found there.
        """
        self._task, self._callsite = plan.call.task, callsite
        self._wanted = plan, on_shares
        self._options = plan.call.options
        inbox = _Inbox()
        self._reports = inbox.reports
        self._session: Session = backend.session(plan.call, inbox)
        # For a stream whose closing was interrupted before its first instruction.
        self._ending = Ending(self, self._session.close) if plan.streams else None
        self._pid = os.getpid()
        self._pace = pace
        self._in_caller = backend.in_caller
        self._recording: Recording | None = None
        self._known: list[Batch] = []  # results found in the journal
        self._fresh: deque[Chunk] = deque()  # chunks to run between these
        self._open: dict[int, _Open] = {}
        self._failures: dict[int, int] = {}
        self._bar: Bar | None = None
        self._failure: tuple[int, BaseException] | None = None
        self._patience = 0.0
        self._stopped = False
        self._has_items = True
        self._soon = 0.0  # until then this thread need not wait for its submitted chunks
        self._is_bounded = plan.streams or self._options.buffersize is not None
        self._writes = bool(plan.call.handlers)
        self._block = plan.call.block
        self._task = plan.call.task
        self.taken = 0  # items whose results the caller got

    def open(self) -> None:
        """Start the run; ``close`` follows, also after an error."""
        (plan, on_shares), session, options = self._wanted, self._session, self._options
        del self._wanted  # the caller's values may be freed while tasks run
        with losses.collected() as lost:
            session.open()
        if lost:
            missing.warn(self._task, lost, plan.call.named)
        on_shares(session.shares)
        concurrency = session.concurrency
        self._workers = 1 if self._in_caller else concurrency.workers
        self._limit = 1 if self._in_caller else concurrency.workers * _AHEAD
        self._chunker = Chunker(
            plan.items,
            plan.total,
            options.chunksize,
            concurrency,
            self._pace,
            costly=options.strict is True,
        )
        # If the caller is away between two results, or the items come slowly, another thread must
        # serve the workers meanwhile.
        self._leaves = plan.streams or self._chunker.is_lazy
        if options.journal is not None:
            with undisturbed("sharedtask.task.journal.recording"):  # loads SQLite
                from sharedtask.task.journal.recording import Recording

            self._recording = Recording.begin(options.journal, plan.call, plan.total, session)
        if options.shows_progress:
            self._bar = open_bar(options, self._task, plan.total)

    # --------------------------------------------------------------------- the caller's side

    def advance(self) -> list[Batch] | None:
        """Feed, wait for reports, and return finished results; None at the end."""
        if self._pid != os.getpid():
            raise ClosedError(FORKED)
        self._soon = time.monotonic() + _SOON_SECONDS
        if self._has_items and self._failure is None and not self._stopped:
            self._feed()
        if self._known:
            known, self._known = self._known, []
            return known
        if not self._is_over():
            return self._absorb(self._next_report())
        change = self._session.conclude()
        if change is not None:
            self._report_change(change)
        return None

    def raise_failure(self) -> None:
        """Raise the error that ended the run, if one did."""
        if self._failure is not None:
            error = self._failure[1]
            shorten(error)
            self._failure = None
            try:
                raise error
            finally:
                del error

    def finish(self) -> None:
        """The run has ended without an error."""
        if self._stopped or not (self._writes or self._recording is not None):
            return
        with interrupts.shield():
            if self._writes:
                interrupts.exposed(self._session.finish)
            if self._recording is not None:
                self._recording.finish(self._chunker.given)

    @property
    def failed_at(self) -> int | None:
        """The index of the item whose error ends the run."""
        return None if self._failure is None else self._failure[0]

    def stop(self) -> None:
        """Make ``advance`` return None soon; called from another thread."""
        self._stopped = True
        self._reports.put(None)
        self._session.wake()

    def close(self) -> None:
        """End the run: chunks in flight are given up."""
        session, self._session = self._session, CLOSED_SESSION
        ending, self._ending = self._ending, None  # which would wake a thread in vain
        if ending is not None:
            ending.cancel()
        session.close()
        if self._bar is not None:
            self._bar.close()
        recording, self._recording = self._recording, None
        while not self._reports.empty():
            report = self._reports.get()
            if report is not None:
                _part_with(report, recording)
        if recording is not None:
            recording.close()

    # ---------------------------------------------------------------------------- feeding

    def _feed(self) -> None:
        while len(self._open) < self._limit:
            if self._fresh:
                self._submit(self._fresh.popleft())
                continue
            most = self._room() if self._is_bounded else None
            if most is not None and most <= 0:
                return
            chunk = None if self._chunker.exhausted else self._next_chunk(most)
            if chunk is None:
                self._end_of_items()
                return
            if self._recording is None:
                self._submit(chunk)
            else:
                self._sort_out(chunk, self._recording)
            if self._chunker.is_lazy and (self._known or not self._reports.empty()):
                return  # the next item may come late, and there is a result to pass on

    def _next_chunk(self, most: int | None) -> Chunk | None:
        """The next one; the user's iterator may be interrupted, a slice is taken at once."""
        chunker = self._chunker
        if not chunker.is_lazy:
            return chunker.next(most)
        began = time.monotonic()
        chunk: Chunk | None = interrupts.exposed(chunker.next, most)
        if self._session.trace is not None:
            self._session.trace.spend("items", time.monotonic() - began)
        return chunk

    def _sort_out(self, chunk: Chunk, recording: Recording) -> None:
        """Set aside recorded items, and those that cannot be recorded; queue the rest."""
        found = recording.sort_out(chunk)
        self._fresh.extend(self._chunker.again(first, items) for first, items in found.fresh)
        for batch in found.known:
            self._known.append(batch)
            if self._bar is not None:
                skip(self._bar, len(batch.values))
        for batch in found.failed:
            failed = self._chunker.again(batch.first, [chunk.items[batch.first - chunk.first]])
            self._open[failed.number] = _Open(failed)
            self._reports.put(Report(failed.number, Known(batch), 1, finished=True))

    def _end_of_items(self) -> None:
        """An error of the iterator of items counts as the failure of the next item."""
        self._has_items = False
        error, self._chunker.error = self._chunker.error, None
        if error is not None:
            self._fail(self._chunker.given, error)

    def _room(self) -> int:
        """The number of further items that may be in flight or finished ahead of the caller."""
        size = self._options.buffersize or self._limit * self._chunker.last
        room = size - (self._chunker.given - self.taken)
        if self._block is None:
            return room
        return self._block if room > 0 else 0  # no block is split

    def _submit(self, chunk: Chunk) -> None:
        self._open[chunk.number] = _Open(chunk)
        with losses.collected() as lost:
            self._session.submit(chunk)
        if lost:
            missing.warn_of_items(self._task, chunk.first, chunk.items, lost)
        if self._leaves or time.monotonic() > self._soon:
            self._session.leave()

    # --------------------------------------------------------------------------- outcomes

    def _is_over(self) -> bool:
        if not self._open:
            return True
        if self._failure is None:
            return False
        index = self._failure[0]
        earlier = any(o.chunk.first + o.stop < index for o in self._open.values())
        return not earlier or time.monotonic() > self._patience

    def _next_report(self) -> Report | None:
        until = None if self._failure is None else self._patience
        report: Report | None = self._session.wait(self._reports, until, leaves=self._leaves)
        return report

    def _absorb(self, report: Report | None) -> list[Batch] | None:
        if report is None:
            return None if self._stopped else []
        if report.change is not None:
            self._report_change(report.change)
        state = self._open[report.chunk]
        batch = report.delivery.open()
        if self._writes:
            self._session.accept(batch)
        if self._recording is not None:  # before anything else runs, or the caller ends
            self._recording.take(batch)
            self._recording.commit_if_due(more=not self._reports.empty())
        state.stop = max(state.stop, report.first + report.count)  # a log has no items
        if report.finished:
            del self._open[report.chunk]
        self._pace.add(report.seconds, report.count)
        # A chunk may end with a report without outcomes. An empty piece would have the index
        # of the next one, and must not replace it.
        pieces = [batch] if batch.values else []
        if batch.errors:
            pieces = self._pieces(batch, state.chunk)
        if report.finished and state.stop < len(state.chunk.items):
            self._begin_rest(state)  # now it is known whether the run has failed
        if self._bar is not None:
            show_busy(self._bar, len(self._open), self._workers)
            interrupts.exposed(self._bar.update, sum(len(piece.values) for piece in pieces))
        return pieces

    def _report_change(self, change: Change) -> None:
        """Warn, once; a filter may make that an error, which ends the run."""
        callsite, self._callsite = self._callsite, None
        if callable(callsite):
            callsite = callsite()
        if callsite is not None:
            interrupts.exposed(callsite.warn, change.warning(self._task))

    def _begin_rest(self, state: _Open) -> None:
        """Items that a worker had not begun, as it died or gave them back, are begun elsewhere."""
        chunk, stop = state.chunk, state.stop
        if self._failure is None:
            singly = self._block is not None and stop > 0
            for part in self._chunker.parts(chunk.first + stop, chunk.items[stop:], singly):
                self._submit(part)

    def _pieces(self, batch: Batch, chunk: Chunk) -> list[Batch]:
        """The results of a batch without the items that are retried."""
        pieces, start = [], 0
        for offset, error in sorted(batch.errors.items()):
            index = batch.first + offset
            if self._tries_again(index, error):
                self._submit(self._chunker.again(index, [chunk.items[index - chunk.first]]))
            elif self._options.return_exceptions:
                batch.values[offset] = self._in_place(error)
                continue
            else:
                self._fail(index, error)
            pieces.append(Batch(batch.first + start, batch.values[start:offset]))
            start = offset + 1
        pieces.append(Batch(batch.first + start, batch.values[start:]))
        return [piece for piece in pieces if piece.values]

    def _in_place(self, error: BaseException) -> Any:
        """What the caller gets for an item that failed."""
        return error

    def _tries_again(self, index: int, error: BaseException) -> bool:
        if self._failure is not None and index > self._failure[0]:
            return False  # an earlier item may still raise the first error
        return runs_again(self._options, self._failures, index, error)

    def _fail(self, index: int, error: BaseException) -> None:
        if self._failure is None:
            self._patience = time.monotonic() + _GRACE_SECONDS
        if self._failure is None or index < self._failure[0]:
            self._failure = (index, error)


def _part_with(report: Report, recording: Recording | None) -> None:
    """Record late results that this call does not return, for the next call."""
    if recording is None:
        report.delivery.discard()
        return
    with contextlib.suppress(Exception):  # the error that ended the run is reported instead
        recording.take(report.delivery.open())


# ---------------------------------------------------------------------------------- shapes


@interrupts.shielded
def collect(run: Run, total: int | None) -> list[Any]:
    """All results in the order of the items."""
    results: list[Any] = [None] * (total or 0)
    end = 0
    try:
        run.open()
        while (pieces := run.advance()) is not None:
            for piece in pieces:
                stop = piece.first + len(piece.values)
                if stop > len(results):
                    results.extend([None] * (stop - len(results)))
                results[piece.first : stop] = piece.values
                run.taken += len(piece.values)
                end = max(end, stop)
        run.raise_failure()
        run.finish()
    finally:
        run.close()
    del results[end:]
    return results


# For a caller that is outside of a shield between two results.
_open = interrupts.shielded(Run.open)
_advance = interrupts.shielded(Run.advance)
_close = interrupts.shielded(Run.close)


def in_order(start: Callable[[], Run]) -> Generator[Any, None, None]:
    """Results in the order of the items, each as soon as those before it are there."""
    run = start()
    ready: dict[int, list[Any]] = {}
    turn = 0
    dropped = interrupts.Afterwards(Run.close)
    closing: Callable[[Run], object] = _close
    try:
        _open(run)
        while (pieces := _advance(run)) is not None:
            ready.update((piece.first, piece.values) for piece in pieces)
            while turn in ready:
                values = ready.pop(turn)
                turn += len(values)
                for value in values:
                    run.taken += 1
                    yield value
            if run.failed_at == turn:
                break
        run.raise_failure()
        run.finish()
    except GeneratorExit:
        closing = dropped
        raise
    except SHORTENED as error:
        shorten(error)
        raise
    finally:
        closing(run)


def as_completed(start: Callable[[], Run]) -> Generator[Any, None, None]:
    """Results in the order in which they are ready."""
    run = start()
    dropped = interrupts.Afterwards(Run.close)
    closing: Callable[[Run], object] = _close
    try:
        _open(run)
        while (pieces := _advance(run)) is not None:
            for piece in pieces:
                for value in piece.values:
                    run.taken += 1
                    yield value
        run.raise_failure()
        run.finish()
    except GeneratorExit:
        closing = dropped
        raise
    except SHORTENED as error:
        shorten(error)
        raise
    finally:
        closing(run)
