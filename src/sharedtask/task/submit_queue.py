"""Submits of a task that are alike, in one session. Items that cannot run yet wait in it.

    submit -> queue -> (a worker has room) -> chunk -> Session.submit -> report -> futures

While quick items run, those that come meanwhile gather, are sent together, and return together.
Each keeps its own future and outcome: a chunk ends early if one of its items is killed or
cancelled, and what was not begun of it goes back to the front of the queue.

Only numbers, strings and the like wait here. No caller can change those, so they are kept by
reference, and encoding them runs no user code, so any thread may do it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import queue
import time
from collections import deque
from concurrent.futures import InvalidStateError
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sharedtask.backends.base import CLOSED_SESSION, Chunk, Limits
from sharedtask.backends.worker.result_format import PLAIN_TYPES
from sharedtask.errors import SharedTaskError
from sharedtask.outcomes import told_of
from sharedtask.serialization import losses, missing
from sharedtask.system import background, critical_sections, forks, interrupts
from sharedtask.system.forks import Step

from .futures import TaskFuture, is_past
from .gathering import gathers, next_size
from .queued_submit import QueuedSubmit, QueueSink, SentChunk
from .retries import runs_again

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedtask.backends.base import Backend, Call, Session
    from sharedtask.outcomes import Batch, Report

# Handing a chunk over takes microseconds, unless a signal handler has interrupted it.
_GIVEN_SECONDS = 0.1
# A killed worker ends its chunk within milliseconds; the caller waits no longer than this for that.
_KILL_SECONDS = 0.5


def may_wait(call: Call, item: Any) -> bool:
    """Whether an item may wait in a queue: no caller can change it, nor what its call brings."""
    if call.shared or call.bound or call.randomness or call.options.strict is True:
        return False
    if Limits.of(call.options) is not None:
        return False
    given = (*call.args, *call.kwargs.values()) if call.args or call.kwargs else ()
    return type(item) in PLAIN_TYPES and PLAIN_TYPES.issuperset(map(type, given))


class SubmitQueue:
    """Submits in one session. When all have their outcomes, it is closed, or rests if it is light.

    Not while a chunk is in flight, of items that were killed: a queue at rest learns of no end.

    ``open``, ``joins`` and ``add`` are called within a shield of ``interrupts``.
    """

    def __init__(self, backend: Backend, call: Call) -> None:
        self._options = call.options
        self._call = call = replace(call, of_submits=True)
        self._sink = QueueSink(self)
        self._session: Session = backend.session(call, self._sink)
        self._awake = self._session  # also when it is closed: a thread may wait in it
        self._queue: deque[QueuedSubmit] = deque()
        self._sent: dict[int, SentChunk] = {}
        self._unfinished: dict[int, QueuedSubmit] = {}  # those without an outcome
        self._held = 1  # submits that are about to add a submit
        self._failures: dict[int, int] = {}  # of unfinished items
        self._numbers = itertools.count(1)
        self._seconds: float | None = None  # of an item, smoothed
        self._sent_at = 0.0  # when the last chunk was sent
        self._is_due = False  # what has gathered is sent soon
        self._awaited_by = 0  # threads that wait for an outcome: then nothing gathers
        self._may_rest = True
        self.calls: deque[Callable[[], object]] = deque()  # of callbacks, after a batch

    def open(self, on_shares: Callable[[Any], None]) -> None:
        """Open the session; ``add`` must follow."""
        try:
            with losses.collected() as lost:
                self._session.open()
            if lost:
                missing.warn(self._call.task, lost, self._call.named)
        except BaseException:
            self._session.close()
            self._session = CLOSED_SESSION
            raise
        on_shares(self._session.shares)

    def joins(self, call: Call) -> bool:
        """Whether a submit of ``call`` may be added; then ``add`` must follow."""
        if call.options is not self._options:
            return False
        with _lock:
            session = self._session
            if session is CLOSED_SESSION:
                return False
            self._held += 1
            self._sink.owner = self
        joins = False
        try:
            joins = session.serves(call)
        finally:
            if not joins:
                self._may_rest = False
                self._let_go()
        return joins

    def add(self, index: int, item: Any, name: str = "") -> TaskFuture[Any]:
        """Add a submit, which ``joins`` or ``open`` has allowed; ``name``: see ``QueuedSubmit``."""
        submit = QueuedSubmit(self, index, item, name)
        with _lock:
            self._held -= 1
            self._unfinished[index] = submit
            self._queue.append(submit)
            _queues.add(self)
        self._feed(gathers=True)
        self._session.leave()
        return submit.future

    def _let_go(self) -> None:
        with _lock:
            self._held -= 1
        self._close_if_done()

    def _close_if_done(self) -> None:
        with _lock:
            if self._unfinished or self._held or self._sent:
                return
            _queues.discard(self)
            session = self._session
            if self._may_rest and session.is_light:
                self._sink.owner = None
                return
            self._session = CLOSED_SESSION
        session.close()

    # ----------------------------------------------------------------------------- sending

    def _feed(self, *, gathers: bool = False) -> None:
        """Send what the workers have room for, soon if others may follow that ``gathers`` with."""
        if gathers and self._gathers():
            return
        while (sent := self._next()) is not None:
            try:
                self._session.submit(sent.chunk)
                sent.is_given = True
            except BaseException as error:  # noqa: BLE001  the pool was shut down
                self._fail(error)
                return

    def _gathers(self) -> bool:
        since = time.monotonic() - self._sent_at
        waiting, flying = len(self._queue), len(self._sent)
        if self._awaited_by or not gathers(waiting, flying, since, self._seconds):
            return False
        if not self._is_due:
            self._is_due = True
            self._session.soon(self._send_gathered)
        return True

    def _send_gathered(self) -> None:
        self._is_due = False
        self._feed()

    def _next(self) -> SentChunk | None:
        with _lock:
            workers = self._session.concurrency.workers
            size = next_size(len(self._queue), len(self._sent), workers, self._seconds)
            if not size:
                return None
            submits = [self._queue.popleft()]
            while len(submits) < size and self._queue[0].index == submits[-1].index + 1:
                submits.append(self._queue.popleft())
            items = [submit.item for submit in submits]
            chunk = Chunk(next(self._numbers), submits[0].index, items)
            sent = self._sent[chunk.number] = SentChunk(chunk, submits)
            self._sent_at = time.monotonic()
            for submit in submits:
                submit.sent = sent
            return sent

    def begun(self, chunk: int) -> bool:
        """A chunk is handed to a worker."""
        sent = self._sent.get(chunk)
        if sent is None:  # it was taken back
            return False
        for submit in sent.submits:
            submit.set_running()
        return True

    # ----------------------------------------------------------------------------- outcomes

    def report(self, report: Report) -> None:
        """Called by any thread, which may be one that must not run user code, or wait."""
        with _lock:
            submits = self._reported(report)
        if not submits:
            report.delivery.discard()
        elif report.delivery.is_plain:
            self._open(report, submits)
        else:
            background.put(functools.partial(self._open_behind, report, submits))
        self._feed(gathers=True)
        if not submits:  # else when their outcomes are taken
            self._close_if_done()

    def _reported(self, report: Report) -> list[QueuedSubmit]:
        """The submits of a report; what a chunk has not begun goes back to the queue."""
        sent = self._sent.get(report.chunk)
        if sent is None:
            return []
        if report.count:
            seconds = report.seconds / report.count
            known = self._seconds
            self._seconds = seconds if known is None else (known + seconds) / 2
        if report.finished:
            del self._sent[report.chunk]
            self._put_back(sent.submits[report.stop :])
            if sent.ended is not None:
                sent.ended.put(True)
        submits = sent.submits[report.first : report.stop]
        for submit in submits:
            submit.sent = None
        return submits

    def _put_back(self, submits: list[QueuedSubmit]) -> None:
        again = [submit for submit in submits if not submit.is_over]
        for submit in again:
            submit.sent = None
        self._queue.extendleft(reversed(again))

    def _open_behind(self, report: Report, submits: list[QueuedSubmit]) -> None:
        """Take outcomes in another thread than the one that serves the workers, and wake that."""
        self._open(report, submits)
        self._awake.wake()

    def _open(self, report: Report, submits: list[QueuedSubmit]) -> None:
        """Take outcomes; any error becomes that of their futures."""
        try:
            batch = report.delivery.open()
        except BaseException as error:  # noqa: BLE001
            for submit in submits:
                self._finish(submit, None, error)
        else:
            self._take(batch, submits)
        if self.calls:
            background.put(self._call_all)
        self._close_if_done()

    def _call_all(self) -> None:
        while (call := critical_sections.first_of(self.calls)) is not None:
            call()

    def _take(self, batch: Batch, submits: list[QueuedSubmit]) -> None:
        again = []
        for offset, submit in enumerate(submits):
            error = batch.errors.get(offset) if batch.errors else None
            if error is not None and self._may_be_tried(submit, error):
                again.append(submit)
            else:
                self._finish(submit, batch.values[offset], error)
        if again:
            with _lock:
                self._put_back(again)
            self._feed()
            self._session.leave()

    def _may_be_tried(self, submit: QueuedSubmit, error: BaseException) -> bool:
        again = runs_again(self._options, self._failures, submit.index, error)
        submit.was_tried = submit.was_tried or again
        return again and not submit.is_over

    def _finish(self, submit: QueuedSubmit, value: Any, error: BaseException | None) -> None:
        if not self._claim(submit):
            return
        future = submit.future
        if error is not None and submit.name:
            error = told_of(error, self._call.task, submit.index, submit.name)
        try:
            if error is None:
                future.set_result(value)
            elif self._options.return_exceptions:
                future.set_result(error)
            else:
                future.set_exception(error)
        except InvalidStateError:  # resolved by the user
            return

    def _claim(self, submit: QueuedSubmit) -> bool:
        """Whether the caller may resolve the future; True for one caller at most."""
        with _lock:
            if submit.is_over:
                return False
            submit.is_over = True
            del self._unfinished[submit.index]
            self._failures.pop(submit.index, None)
            return True

    def _fail(self, error: BaseException) -> None:
        """No more chunks are accepted."""
        with _lock:
            submits = list(self._unfinished.values())
            self._queue.clear()
            self._sent.clear()
        for submit in submits:
            self._finish(submit, None, error)
        self._call_all()
        self._close_if_done()
        self._awake.wake()

    # ------------------------------------------------------------------------ waiting, ending

    def wait(self, submit: QueuedSubmit, until: float | None) -> None:
        """Wait for an outcome and serve the workers meanwhile.

        No effect if another thread waits for it already.
        """
        news: queue.SimpleQueue[bool] = queue.SimpleQueue()
        with _lock:  # the outcome is claimed under it, and then ``news`` is told
            if submit.news is not None:
                return
            submit.news = news
            self._awaited_by += 1
        try:
            self._feed()
            while not (submit.is_over or is_past(until)):
                self._awake.wait(news, until, leaves=True)
        finally:
            with _lock:
                submit.news = None
                self._awaited_by -= 1

    def leave(self) -> None:
        """See ``Pending``."""
        self._session.leave(at_once=True)

    @interrupts.shielded
    def give_up(self, submit: QueuedSubmit, *, running: bool) -> bool:
        """See ``Pending``. What a worker has not begun is taken back from it."""
        if submit.was_tried and not running:
            return False
        waited = self._take_out(submit)
        if not (waited or running) or not self._claim(submit):
            return False
        try:
            if not waited:
                self._kill(submit)
        finally:
            submit.future._set_cancelled()
            self._feed()
            self._close_if_done()
            self._awake.wake()
        return True

    def _take_out(self, submit: QueuedSubmit) -> bool:
        """Take an item that has not begun out of the queue, or back from its worker."""
        patience = time.monotonic() + _GIVEN_SECONDS
        while (sent := submit.sent) is not None:
            if not (sent.is_given or is_past(patience)):
                time.sleep(0)  # another thread is about to hand it over
                continue
            begun = self._session.withdraw(sent.chunk.number)
            with _lock:
                if submit.sent is sent:  # else its chunk has ended meanwhile
                    return self._shorten(sent, begun, submit)
        with _lock:
            waits = submit in self._queue
            if waits:
                self._queue.remove(submit)
        return waits

    def _shorten(self, sent: SentChunk, begun: int, out: QueuedSubmit) -> bool:
        """Only ``begun`` items of a chunk are run; the others wait again, ``out`` excepted."""
        back, sent.submits = sent.submits[begun:], sent.submits[:begun]
        if not begun:
            self._sent.pop(sent.chunk.number, None)
        self._put_back([submit for submit in back if submit is not out])
        if out not in back:
            return False
        out.sent = None
        return True

    def _kill(self, submit: QueuedSubmit) -> None:
        """Kill the worker of an item, unless it is past it, and wait for the end of its chunk."""
        with _lock:
            sent = submit.sent
            if (
                sent is None
                or sent.chunk.number not in self._sent
                or sent.submits[-1] is not submit
            ):
                return
            ended: queue.SimpleQueue[bool] = queue.SimpleQueue()
            sent.ended = ended
        self._session.kill_chunk(sent.chunk.number)
        with contextlib.suppress(SharedTaskError):  # this thread must not wait here
            self._session.wait(ended, time.monotonic() + _KILL_SECONDS, leaves=True)

    def abandon(self) -> None:
        """In a forked child: the workers belong to the parent."""
        for submit in list(self._unfinished.values()):
            submit.is_over = True
            submit.future._abandon()
        self._unfinished.clear()
        self._session = CLOSED_SESSION


_lock = critical_sections.table_lock()
_queues: set[SubmitQueue] = set()


def _abandon() -> None:
    """In a forked child: its parent's futures cannot be resolved here."""
    for each in _queues.copy():
        each.abandon()
    _queues.clear()


forks.in_child(Step.OUTCOMES, _abandon)
