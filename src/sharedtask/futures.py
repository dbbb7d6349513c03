"""``submit``: one item, its outcome in a future.

Outcomes arrive in any thread, such as the I/O thread, which opens only what runs no user code. The
rest is opened by the thread that waits for the future, or else by a background thread: opening
unpickles the result, may run a reduction's function, and may pickle the item once more.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import queue
import threading
import time
from collections import deque
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Any

from sharedtask import background, interrupts
from sharedtask.backends.base import OVER, Chunk, require_process
from sharedtask.tracebacks import shorten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sharedtask.backends.base import Backend, Call, Session
    from sharedtask.options import Options
    from sharedtask.outcomes import Batch, Report

_log = logging.getLogger("concurrent.futures")


class Promise(Future[Any]):
    """A future whose waiting thread opens the outcome, and whose callbacks run apart."""

    def __init__(self) -> None:
        super().__init__()
        self.submission: Submission | None = None
        self._callbacks: deque[Callable[[Future[Any]], object]] = deque()
        self._canceller = 0  # the thread that is in ``cancel``
        super().add_done_callback(_note_end)

    def result(self, timeout: float | None = None) -> Any:
        """See ``concurrent.futures.Future``."""
        left = self._help(timeout)
        try:
            return super().result(left)
        except Exception as error:
            shorten(error)
            raise

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """See ``concurrent.futures.Future``."""
        return super().exception(self._help(timeout))

    def _help(self, timeout: float | None) -> float | None:
        """Wait for the outcome and open it. Returns how long there is still to wait."""
        submission = self.submission
        if submission is None or self.done():
            return timeout
        until = None if timeout is None else time.monotonic() + timeout
        submission.wait(until)
        return None if until is None else max(until - time.monotonic(), 0.0)

    def cancel(self) -> bool:
        """See ``concurrent.futures.Future``."""
        self._canceller = threading.get_ident()
        try:
            return super().cancel()
        finally:
            self._canceller = 0

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """See ``concurrent.futures.Future``."""
        self._callbacks.append(fn)
        if self.done():
            self._call_back()

    def _end(self) -> None:
        """The state is final.

        Callbacks may wait for other futures, and this thread may be the one that brings those. One
        that is added from now on finds the future done, and runs in the thread that adds it.
        """
        if self._canceller == threading.get_ident():
            self._call_back()
        elif self._callbacks:
            background.put(self._call_back)
        submission, self.submission = self.submission, None
        if submission is not None:
            submission.wake()

    def _call_back(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                call = self._callbacks.popleft()
                try:
                    call(self)
                except Exception:  # noqa: BLE001  logged, as the standard library does
                    _log.exception("exception calling callback for %r", self)


def _note_end(promise: Any) -> None:
    promise._end()


class Submission:
    """One item, its outcome in a future."""

    def __init__(
        self,
        backend: Backend,
        call: Call,
        item: Any,
        options: Options,
        on_shares: Callable[[Any], None],
    ) -> None:
        self.future = Promise()
        self._options = options
        self._left = options.retries
        self._item = item
        self._arrived: deque[Report] = deque()
        self._waiting = threading.Lock()  # held by the one thread that waits for reports
        self._news: queue.SimpleQueue[bool] = queue.SimpleQueue()  # what wakes it
        self._pid = os.getpid()
        self._in_caller = backend.in_caller
        # Such results go into the caller's arrays when they are opened.
        self._writes = bool(call.blocks or call.totals or call.locked)
        self._session = backend.session(call, self)
        self._began = False
        try:
            self._session.open()
            on_shares(self._session.shares)
            self.future.submission = self
            self._session.submit(Chunk(1, 0, [item]))
            self._session.leave()
        except BaseException:
            self._session.close()
            raise

    def begun(self, chunk: int) -> bool:  # noqa: ARG002  a Sink's
        """A future that was cancelled in the queue is not run."""
        if self._began:
            return True
        self._began = self.future.set_running_or_notify_cancel()
        return self._began

    def report(self, report: Report) -> None:
        """Called from any thread, which may be one that must not run user code."""
        if self._in_caller or self._is_at_once(report):
            self._open(report)
            return
        self._arrived.append(report)
        if self._waiting.locked():
            self._news.put(True)
        else:
            background.put(self._open_all)

    def _is_at_once(self, report: Report) -> bool:
        return report.delivery.is_plain and not self._writes and not self._waiting.locked()

    # --------------------------------------------------------------------- who opens reports

    def wait(self, until: float | None) -> None:
        """Open what is reported, until the future is done or it is ``until``.

        Does nothing where another thread waits already: the future is done when that one has it.
        """
        require_process(self._pid)
        if not self._waiting.acquire(blocking=False):
            return
        try:
            while True:
                with interrupts.shield():  # a report that was taken is opened, or handed on
                    self._open_here(is_limited=until is not None)
                if self.future.done() or _is_past(until):
                    return
                self._session.wait(self._news, until, leaves=True)
        finally:
            self._waiting.release()
            # Thread 1 reports and looks then whether a thread waits; thread 2 leaves and looks then
            # for reports. One of them sees the other.
            if self._arrived:
                background.put(self._open_all)

    def _open_here(self, *, is_limited: bool) -> None:
        """Open what may be opened by a thread that waits.

        User code may take longer than that thread wants to wait, and in the main thread a Ctrl-C
        would end it half-way, and the outcome be lost.
        """
        for report in self._taken():
            if report.delivery.is_plain or not (is_limited or interrupts.in_main()):
                self._open(report)
            else:
                background.put(functools.partial(self._open, report))

    def _open_all(self) -> None:
        for report in self._taken():
            self._open(report)

    def _taken(self) -> Iterator[Report]:
        with contextlib.suppress(IndexError):  # another thread was faster
            while self._arrived:
                yield self._arrived.popleft()

    def wake(self) -> None:
        """Have a thread that waits see that the future is done."""
        if self._waiting.locked():
            self._news.put(True)
            self._session.nudge()

    # ------------------------------------------------------------------------------ outcomes

    def _open(self, report: Report) -> None:
        """Take an outcome; whatever goes wrong becomes that of the future."""
        try:
            batch = report.delivery.open()
            if batch.values and not self._is_tried_again(batch):
                self._finish(batch.values[0], batch.errors.get(0))
        except BaseException as error:  # noqa: BLE001
            self._finish(None, error)

    def _is_tried_again(self, batch: Batch) -> bool:
        self._session.accept(batch)
        error = batch.errors.get(0)
        if error is None or not self._left or not isinstance(error, self._options.retry_on):
            return False
        self._left -= 1
        self._session.submit(Chunk(1, 0, [self._item]))
        self._session.leave()
        return True

    def _finish(self, value: Any, error: BaseException | None) -> None:
        session, self._session = self._session, OVER
        error = error or self._finished(session)
        session.close()
        with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
            self._resolve(value, error)

    def _finished(self, session: Session) -> BaseException | None:
        """Complete the caller's totals, by a function that may be the user's."""
        try:
            session.finish()
        except BaseException as error:  # noqa: BLE001  it becomes the outcome of the future
            return error
        return None

    def _resolve(self, value: Any, error: BaseException | None) -> None:
        if error is None:
            self.future.set_result(value)
        elif self._options.return_exceptions:
            self.future.set_result(error)
        else:
            self.future.set_exception(error)


def _is_past(until: float | None) -> bool:
    return until is not None and time.monotonic() >= until
